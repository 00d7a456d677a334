"""Several runs side by side: their scores with intervals, and the settings in which they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.reports.charts import interval_bar
from ulmfit_pipe.reports.number_words import WORDS, duration, number, percent
from ulmfit_pipe.reports.run_report import render
from ulmfit_pipe.reports.run_view import date_of, judged_table, model_name, things
from ulmfit_pipe.reports.text_tables import format_table

OF_THE_PLACE = ("output_dir",)  # settings in which any two runs differ
MEASURED = ("accuracy", "perplexity", "pseudo_perplexity")


def compare_runs(records: Sequence[Mapping[str, Any]], *, whole: Mapping[str, Any] | None = None) -> bytes:
    """Return a page that compares runs.

    Args:
        records: What each run's files say, as `run_view.view_of` takes it.
        whole: The same of the run that they are the folds or seeds of.
    """
    rows = [_row(record) for record in records]
    names = _names(records)
    return render(
        "comparison.html",
        {
            "title": f"{len(records)} ULMFiT runs" if whole is None else f"ULMFiT run {whole['name']}",
            "summary": [] if whole is None else _summary(whole["metrics"]),
            "rows": [{**row, "name": name} for row, name in zip(rows, names, strict=True)],
            "names": names,
            "tables": sorted({row["on"] for row in rows}),
            "differing": [(name, values) for name, values in _differing(records).items()],
        },
    )


def _summary(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the folds or seeds of a run come to together: pooled accuracy, mean and range of each score."""
    lines = []
    if pooled := metrics.get("out_of_fold"):
        low, high = pooled["interval"]["accuracy"]
        lines.append(
            f"{percent(pooled['accuracy'])} % of {number(pooled['n'])} rows are right, each predicted by the run that "
            f"did not train on it (95 % interval {percent(low)} to {percent(high)})."
        )
    for table, measures in (metrics.get("spread") or {}).items():
        found = "; ".join(
            f"{WORDS.get(name, name)} {value['mean']:.3f} ({value['lowest']:.3f} to {value['highest']:.3f})"
            for name, value in measures.items()
        )
        lines.append(f"{table.capitalize()} rows, mean and range over the runs: {found}.")
    return lines


def comparison_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return runs as a text table, and below it the settings in which they differ."""
    lines = [["run", "score", "95 % interval", "macro F1", "baseline", "on", "time"]]
    for name, row in zip(_names(records), map(_row, records), strict=True):
        lines.append([name, row["score"], row["interval"], row["macro_f1"], row["baseline"], row["on"], row["seconds"]])
    shown = format_table(lines)
    differing = _differing(records)
    if not differing:
        return f"{shown}\n\nno setting differs but the output folder"
    settings = [["setting", *_names(records)]]
    settings += [[name, *(in_one_line(number(value)) for value in values)] for name, values in differing.items()]
    return f"{shown}\n\n{format_table(settings)}"


def _names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the runs' names; their folders where two are called alike."""
    names = [in_one_line(record["name"]) for record in records]
    return names if len({*names}) == len(names) else [in_one_line(record["folder"]) for record in records]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    metrics = record["metrics"]
    table = judged_table(metrics)
    scores = metrics.get(table) or {}
    measure = next((name for name in MEASURED if name in scores), "")
    low_high = (scores.get("interval") or {}).get("accuracy")
    baseline = (scores.get("baseline") or {}).get("accuracy")
    accuracy: Any = scores.get("accuracy")
    shown = f"{percent(accuracy)} %" if measure == "accuracy" else f"{measure} {number(scores.get(measure))}".strip()
    return {
        "model": model_name(record),
        "date": date_of(record),
        "score": shown if measure else "–",
        "accuracy": accuracy,
        "interval": "" if low_high is None else f"{percent(low_high[0])} to {percent(low_high[1])}",
        "macro_f1": "" if "macro_f1" not in scores else f"{scores['macro_f1']:.3f}",
        "baseline": "" if baseline is None else f"{percent(baseline)} %",
        "on": f"{number(scores['n'])} {table} {things(record)}" if "n" in scores else table or "nothing held out",
        "seconds": duration(sum((metrics.get("seconds") or {}).values())),
        "bar": None if low_high is None else interval_bar(accuracy, *low_high, baseline=baseline),
    }


def _differing(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all runs, each with its value in every run."""
    names = dict.fromkeys(name for record in records for name in record["settings"])
    found = {name: [record["settings"].get(name) for record in records] for name in names if name not in OF_THE_PLACE}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}
