"""One self-contained HTML page for one run: results, pictures, plan, history, layer groups, settings.

Everything comes in as plain records and is escaped; pictures are embedded. The page loads nothing from anywhere, so
it can be mailed or opened years later.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ulmfit_pipe.reports.plots import png_of
from ulmfit_pipe.reports.result_table import NESTED, class_rows

Rows = Sequence[Mapping[str, Any]]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
th { color: #555; font-weight: 600; } td.number, th.number { text-align: right; white-space: nowrap; }
pre { background: #f6f7f9; padding: .8rem; overflow-x: auto; font-size: .85rem; }
figure { margin: 1.2rem 0; } figcaption { color: #555; font-size: .9rem; } img { max-width: 100%; height: auto; }
@media print { pre { white-space: pre-wrap; } figure, tr { break-inside: avoid; } }
"""


def run_report(
    *,
    title: str,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    plan_table: str | Rows = "",
    history: str | Rows = "",
    group_table: str | Rows = "",
    pictures: Mapping[str, Figure | str | Path] | None = None,
) -> bytes:
    """Return a run's page in UTF-8; what UTF-8 does not know is escaped.

    Args:
        title: Heading of the page.
        metrics: As in `metrics.json`: splits (`test`, `validation`) to their scores, or None, with intervals, classes
            and baseline where there are some; warnings and what to try next; any other entries are listed below.
        settings: Names to values, nested as they are in YAML.
        plan_table: The plan as text or rows.
        history: What each epoch did, as text or rows.
        group_table: The layer groups as text or rows.
        pictures: Caption to a figure or to a PNG file.

    Raises:
        ValueError: A picture file is not a PNG.
        FileNotFoundError: A picture file does not exist.
    """
    splits = {name: value for name, value in metrics.items() if name in ("test", "validation", "train")}
    others = {name: value for name, value in metrics.items() if name not in (*splits, "warnings", "try_next")}
    advice = "\n".join([*(metrics.get("warnings") or []), *(metrics.get("try_next") or [])])
    shown = next((name for name in ("test", "validation") if splits.get(name)), "")
    classes, note = class_rows((splits.get(shown) or {}).get("per_class") or {})
    sections = [
        ("Results", _block(_split_rows(splits)) + _block(advice)),
        (f"Classes in the {shown} table", _block(classes) + _block(note)),
        ("Pictures", "".join(_figure(caption, picture) for caption, picture in (pictures or {}).items())),
        ("Plan", _block(plan_table)),
        ("History", _block(history)),
        ("Layer groups", _block(group_table)),
        ("Settings", _block(_pair_rows(settings or {}))),
        ("Run", _block(_pair_rows(others))),
    ]
    body = "".join(f"<h2>{heading}</h2>\n{content}\n" for heading, content in sections if content)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}</body>\n</html>\n"
    )
    return page.encode("utf-8", "backslashreplace")


def _split_rows(splits: Mapping[str, Any]) -> Rows:
    """Return a row of each table's scores with their intervals, and below it one of the baseline on the same rows."""
    rows: list[dict[str, Any]] = []
    for name, scores in splits.items():
        if not scores:
            continue
        row: dict[str, Any] = {"": name}
        for key, value in scores.items():
            if key in NESTED:
                continue
            row[key] = value
            if key in (scores.get("interval") or {}):
                low, high = scores["interval"][key]
                row[f"{key}, 95 %"] = f"{low:.3f} to {high:.3f}"
        rows.append(row)
        if baseline := scores.get("baseline"):
            same = {key: value for key, value in baseline.items() if key in scores}
            rows.append({"": f"{baseline['name']}, the same {name} rows", **same})
    return rows


def _pair_rows(values: Mapping[str, Any]) -> Rows:
    return [{"name": name, "value": value} for name, value in _flattened(values)]


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return dotted names and values of a nested mapping."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs.extend(_flattened(value, f"{prefix}{name}."))
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _block(content: str | Rows) -> str:
    """Return text as it stands, rows as a table with a column for every key, nothing for nothing."""
    if not content:
        return ""
    if isinstance(content, str):
        return f"<pre>{escape(content)}</pre>"
    rows = [dict(_flattened(row)) for row in content]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in columns if all(_is_number(row.get(name, 0)) for row in rows)}
    head = "".join(_cell("th", name, right=name in numeric) for name in columns)
    lines = "".join(
        f"<tr>{''.join(_cell('td', row.get(name), right=name in numeric) for name in columns)}</tr>\n" for row in rows
    )
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'


def _cell(tag: str, value: Any, *, right: bool) -> str:
    opening = f'<{tag} class="number">' if right else f"<{tag}>"
    return f"{opening}{escape(_in_words(value))}</{tag}>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if math.isfinite(value) and value.is_integer() and abs(value) < 1e15:
            return f"{value:,.0f}"
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_in_words(part) for part in value)
    return str(value)


def _figure(caption: str, picture: Figure | str | Path) -> str:
    encoded = base64.b64encode(_png(picture)).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}</figcaption></figure>\n'


def _png(picture: Figure | str | Path) -> bytes:
    if isinstance(picture, Figure):
        return png_of(picture)
    content = Path(picture).read_bytes()
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError(f"pictures must be figures or PNG files, {picture} is neither; save it as PNG")
    return content
