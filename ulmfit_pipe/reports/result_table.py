"""The metrics of a run as a small text table: scores with intervals, the baseline, the classes, what to try next."""

from collections.abc import Iterator, Mapping
from typing import Any

from ulmfit_pipe.console import in_one_line
from ulmfit_pipe.reports.text_tables import Report

MOST_CLASSES = 20  # that are shown one by one
WORST_SHOWN = 5  # where there are more
NESTED = ("interval", "per_class", "baseline")  # entries of a table's scores that are not numbers
SHORT = ("accuracy", "micro_f1", "macro_f1", "loss", "perplexity")  # columns of a notebook's table, where known
CLASS_COLUMNS = ("precision", "recall", "f1", "support")


class Metrics(dict[str, Any]):
    """The metrics of a run, or the scores of a table: a dictionary that a notebook shows as a short table."""

    def _repr_html_(self) -> str:
        """Return a row of scores for each table and for the baseline on the same rows, and what else matters."""
        tables = {name: self[name] for name in ("test", "validation", "out_of_fold") if self.get(name)}
        tables = tables or ({"scores": self} if "n" in self else {})
        shown = [name for name in SHORT if any(name in scores for scores in tables.values())]
        rows: list[tuple[str, ...]] = [("", *(name.replace("_", " ") for name in shown), "rows")]
        for name, scores in tables.items():
            rows.append((name.replace("_", " "), *(_with_interval(scores, each) for each in shown), _count(scores)))
            if baseline := scores.get("baseline"):
                rows.append((f"  {baseline['name']}", *(_with_interval(baseline, each) for each in shown), ""))
        notes = [*self.get("warnings", []), *self.get("try_next", [])]
        if folder := self.get("classifier"):
            notes.append(f"classifier: {folder}")
        return Report.of(rows, *map(in_one_line, notes))._repr_html_()


def _with_interval(scores: Mapping[str, Any], name: str) -> str:
    if scores.get(name) is None:
        return ""
    interval = (scores.get("interval") or {}).get(name)
    return f"{scores[name]:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def _count(scores: Mapping[str, Any]) -> str:
    return f"{scores['n']:,}" if "n" in scores else ""


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return the metrics of a run as a small text table."""
    lines: list[str] = []
    for name in ("validation", "test"):
        if scores := metrics.get(name):
            lines.append(f"{name:<12}{_scores(scores)}")
            lines.extend(_baseline_line(scores))
    lines.extend(_repeated_lines(metrics))
    shown = metrics.get("test") or metrics.get("validation") or {}
    lines.extend(_class_lines(shown.get("per_class") or {}))
    if "seconds" in metrics:
        lines.append("seconds     " + "  ".join(f"{key} {value:.0f}" for key, value in metrics["seconds"].items()))
    lines.extend(f"warning     {line}" for line in metrics.get("warnings") or [])
    lines.extend(f"try next    {command}" for command in metrics.get("try_next") or [])
    return "\n".join(lines)


def class_rows(per_class: Mapping[str, Mapping[str, float]]) -> tuple[list[dict[str, Any]], str]:
    """Return a row of each class, and a line on the classes left out: of more than 20 the five of the lowest F1."""
    names = list(per_class)
    note = ""
    if len(names) > MOST_CLASSES:
        measured = [name for name in names if per_class[name]["support"]]
        names = sorted(measured, key=lambda name: per_class[name]["f1"])[:WORST_SHOWN]
        note = (
            f"the {len(names)} classes of the lowest F1, of {len(per_class):,} ({len(measured):,} of them in the table)"
        )
    return [{"class": in_one_line(name), **per_class[name]} for name in names], note


def _scores(scores: Mapping[str, Any]) -> str:
    intervals = scores.get("interval") or {}
    parts: list[str] = []
    for key, value in scores.items():
        if key in ("n", "majority", *NESTED):
            continue
        part = f"{key} {value:.4f}"
        if key in intervals:
            low, high = intervals[key]
            part += f" ({'' if len(parts) else '95 % '}{low:.3f} to {high:.3f})"
        parts.append(part)
    if intervals:
        parts.append(f"n {scores['n']}")
    return "  ".join(parts)


def _baseline_line(scores: Mapping[str, Any]) -> Iterator[str]:
    if "majority" not in scores:
        return
    majority = f"majority class {scores['majority']:.4f}"
    baseline = scores["baseline"]
    if baseline is None:
        yield f"{'baseline':<12}{majority}"
        return
    named = [f"{key} {baseline[key]:.4f}" for key in ("accuracy", "micro_f1", "macro_f1") if key in baseline]
    yield f"{'baseline':<12}{'  '.join(named)}   {baseline['name']}, the same rows; {majority}"


def _repeated_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the accuracy over all folds, and mean and spread over runs."""
    if pooled := metrics.get("out_of_fold"):
        yield f"{'out of fold':<12}{_scores(pooled)}"
    for table, measures in (metrics.get("spread") or {}).items():
        named = (f"{key} {v['mean']:.4f} ({v['lowest']:.4f} to {v['highest']:.4f})" for key, v in measures.items())
        yield f"{table:<12}{'  '.join(named)}   mean (lowest to highest) of {len(metrics['runs'])} runs"


def _class_lines(per_class: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    rows, note = class_rows(per_class)
    if not rows:
        return
    width = max(12, *(len(row["class"]) + 2 for row in rows))
    yield f"{'class':<{width}}" + "".join(f"{name:>10}" for name in CLASS_COLUMNS)
    for row in rows:
        numbers = "".join(f"{row[name]:>10.4f}" for name in CLASS_COLUMNS[:-1])
        yield f"{row['class']:<{width}}{numbers}{row['support']:>10}"
    if note:
        yield f"({note})"
