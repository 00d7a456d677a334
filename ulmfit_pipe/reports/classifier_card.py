"""A text classifier's card: Markdown with the hub's YAML front matter, from the records of its run alone.

What the records lack is given as not recorded; no path and no text of the user's tables is in it.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from ulmfit_pipe.reports.result_table import CLASS_COLUMNS, class_rows

UNKNOWN = "not recorded"
BUILTIN_LICENSE = "cc-by-sa-4.0"  # of the built-in language models, which derive from Wikipedia's text
MEASURES = ("accuracy", "macro_f1", "micro_f1", "mean_average_precision", "loss")


def classifier_card(
    name: str,
    *,
    config: Mapping[str, Any],
    stage: Mapping[str, Any],
    metrics: Mapping[str, Any],
    base: str | None,
    is_builtin: bool,
) -> str:
    """Return the card as text.

    Args:
        name: The classifier's name.
        config: Its ``config.json``.
        stage: Its ``stage.json``.
        metrics: ``metrics.json`` of its run; empty where it is not at hand.
        base: The model that the run started from, or None for random weights.
        is_builtin: Whether that is a built-in one.
    """
    parts = (
        _front_matter(name, metrics, base, is_builtin),
        f"# {name}\n\nA text classifier of {len(config['id2label'])} labels: {', '.join(config['id2label'].values())}.",
        _loading(config),
        _data(metrics),
        _measured(metrics),
        _training(stage, metrics, base),
        _limits(config, metrics),
        _licence(base, is_builtin),
    )
    return "\n\n".join(parts) + "\n"


def _shown(base: str | None) -> str:
    """Return a model's name; of a folder the last part."""
    return "random weights" if base is None else PurePath(base).name if PurePath(base).is_absolute() else base


def _front_matter(name: str, metrics: Mapping[str, Any], base: str | None, is_builtin: bool) -> str:
    header: dict[str, Any] = {"license": BUILTIN_LICENSE} if is_builtin else {}
    header |= {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": ["ulmfit_pipe", "ulmfit"]}
    if scores := metrics.get("test"):
        values = [{"type": key, "value": round(scores[key], 4)} for key in MEASURES[:3] if key in scores]
        dataset = {"name": "test table of the run", "type": "private"}
        task = {"type": "text-classification"}
        header["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": values}]}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"


def _loading(config: Mapping[str, Any]) -> str:
    remote = ", trust_remote_code=True" if "auto_map" in config else ""
    length = config.get("max_position_embeddings")
    notes = config.get("ulmfit_pipe") or {}
    if config.get("model_type") == "awd_lstm":
        long = "Texts of any length are read whole, by `pipeline` too."
    else:
        ours = notes.get("long_documents", "truncate")
        long = (
            f"Long texts: ulmfit_pipe reads them with long_documents `{ours}`, max_length "
            f"{notes.get('max_length') or 'of the model'}. transformers' `pipeline` does not: with "
            f"`truncation=True` it reads the first {f'{length} tokens' if length else 'tokens up to its limit'} and "
            "drops the rest, without it a longer text may fail; scores of such texts can differ."
        )
    return f"""## How to load it

```python
from ulmfit_pipe import TextPipeline

print(TextPipeline.load("FOLDER").predict(["a text"]))
```

or, without ulmfit_pipe:

```python
from transformers import pipeline

print(pipeline("text-classification", model="FOLDER_OR_NAME"{remote})("a text"))
```

{long}"""


def _data(metrics: Mapping[str, Any]) -> str:
    lines = []
    for name, table in (metrics.get("tables") or {}).items():
        counts = table.get("labels") or {}
        shown = ", ".join(f"{label} {count:,}" for label, count in list(counts.items())[:20])
        more = f", and {len(counts) - 20:,} more labels" if len(counts) > 20 else ""
        lines.append(f"- {name}: {table['rows']:,} rows{f' ({shown}{more})' if shown else ''}")
    return "## Data\n\n" + ("\n".join(lines) or f"Rows: {UNKNOWN}.")


def _measured(metrics: Mapping[str, Any]) -> str:
    parts = []
    for table in ("test", "validation"):
        if not (scores := metrics.get(table)):
            continue
        intervals = scores.get("interval") or {}
        rows = [
            (
                key.replace("_", " "),
                f"{scores[key]:.4f}",
                "{:.3f} to {:.3f}".format(*intervals[key]) if key in intervals else "",
            )
            for key in MEASURES
            if key in scores
        ]
        count = f", {scores['n']:,.0f} rows" if "n" in scores else ""
        parts.append(f"On the {table} table{count}:\n\n" + _table(("measure", "value", "95 % interval"), rows))
    shown = metrics.get("test") or metrics.get("validation") or {}
    classes, note = class_rows(shown.get("per_class") or {})
    if classes:
        cells = [
            (
                row["class"].replace("|", "\\|"),
                *(f"{row[key]:.3f}" for key in CLASS_COLUMNS[:-1]),
                f"{row['support']:,}",
            )
            for row in classes
        ]
        parts.append(_table(("class", *CLASS_COLUMNS), cells) + (f"\n\n({note})" if note else ""))
    return "## What it reached\n\n" + (
        "\n\n".join(parts) or "Nothing was measured: the run had no test or validation rows."
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _training(stage: Mapping[str, Any], metrics: Mapping[str, Any], base: str | None) -> str:
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for epoch in stage.get("epochs") or []:
        phases.setdefault(epoch["phase"], []).append(epoch)
    rows = [
        (
            name,
            str(len(epochs)),
            f"{max(max(epoch['lrs'], default=0) for epoch in epochs):.2g}",
            f"{epochs[-1]['train_loss']:.4f}",
        )
        for name, epochs in phases.items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in (stage.get("versions") or {}).items()) or UNKNOWN
    table = (
        "\n\n" + _table(("phase", "epochs", "highest rate at an epoch's end", "training loss"), rows) if rows else ""
    )
    return f"""## How it was trained

- Started from: {_shown(base)}, by ulmfit_pipe;
  preset {metrics.get("preset") or UNKNOWN}, seed {metrics.get("seed", UNKNOWN)}.
- Plan: {stage.get("plan") or UNKNOWN}.
- Batch size {stage.get("batch_size") or UNKNOWN},
  precision {stage.get("precision") or UNKNOWN}, {stage.get("seconds", 0):.0f} s.
- Made with: {versions}.{table}"""


def _limits(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    several = config.get("problem_type") == "multi_label_classification"
    given = "some of its labels or none" if several else "one of its labels"
    test = metrics.get("test")
    measured = "on the test rows above" if test else "on no test rows: how it does on new texts is not known"
    return f"""## Limits

- It gives every text {given}, also a text of another kind or language than it was trained on.
- Its scores are measured {measured}; rows of another source may have others.
- It can have taken over what its training texts and the model that it started from say of people; that was not
  measured."""


def _licence(base: str | None, is_builtin: bool) -> str:
    if is_builtin:
        what = "derives from a built-in language model of ulmfit_pipe, and so from Wikipedia's text: CC BY-SA 4.0"
    elif base is None:
        what = "started from random weights; its licence is for its author to say"
    else:
        what = f"derives from {_shown(base)}: its licence, which was not recorded, holds"
    return f"## Licence\n\nIt {what}. The licence of the training texts is not recorded."
