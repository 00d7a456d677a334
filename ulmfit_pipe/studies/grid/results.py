"""What a grid of cells comes to: mean and spread over seeds, as JSON, CSV and a Markdown table."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ulmfit_pipe.console import print_line
from ulmfit_pipe.settings.choices import ALL_ROWS
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.studies.grid.cells import CellFolder

RESULTS_FILE = "results.json"
Record = dict[str, Any]
Summary = list[Record]
CSV_COLUMNS = ("method", "size", "rows", "seed", "test_rows", "error", "accuracy", "macro_f1", "seconds", "steps")


def write_results(
    output: Path,
    *,
    title: str,
    about: str,
    order: Sequence[str],
    table: Callable[[Summary], str],
    settings: Any,
    say: Callable[[str], None] = print_line,
    **more: Callable[[Summary], Any],
) -> Record:
    """Write results.json, results.csv and results.md from the cells there are.

    Args:
        output: Folder of the grid; its cells are in ``cells/``.
        title: Name of the data.
        about: Text that explains the results.
        order: Methods in the order to show them.
        table: Makes the Markdown table of a summary.
        settings: Settings of the run, a dataclass.
        say: Receives log lines on which cells are left out.
        **more: What else results.json holds, made of the summary.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: No cell is finished.
    """
    kept, left = of_one_recipe(CellFolder(output / "cells").records(), say=say)
    if not kept:
        raise ValueError(f"{output / 'cells'} holds no finished cell; run the grid first")
    summary = summarize(kept, order=order)
    results: Record = {
        "title": title,
        "about": about,
        "summary": summary,
        **{name: make(summary) for name, make in more.items()},
        "cells": without_identity(kept),
        "left_out": without_identity(left),
        "table": table(summary),
        "settings": dataclasses.asdict(settings),
        "versions": library_versions(),
    }
    write_json(output / RESULTS_FILE, results)
    write_atomic(output / "results.csv", cells_as_csv(kept))
    write_atomic(output / "results.md", f"{results['table']}\n\n{about}\n".encode())
    return results


def of_one_recipe(
    records: Sequence[Record], *, say: Callable[[str], None] = print_line
) -> tuple[list[Record], list[Record]]:
    """Part the cells that can be averaged from those that were made with other settings.

    Of each method, size and number of test rows the settings of the cell that was finished last count.

    Returns:
        The cells to count, and those left out.
    """
    newest: dict[tuple, Record] = {}
    for record in records:
        place = _place(record)
        if place not in newest or record["finished"] >= newest[place]["finished"]:
            newest[place] = record
    kept = [record for record in records if record["recipe"] == newest[_place(record)]["recipe"]]
    left = [record for record in records if record["recipe"] != newest[_place(record)]["recipe"]]
    for record in left:
        cell = record["cell"]
        say(
            f"left out: {cell['method']}, {cell['size'] or 'all'} labels, seed {cell['seed']}: made with other "
            "settings than the newest cell of its kind; run the grid again to make it anew"
        )
    return kept, left


def summarize(records: Sequence[Record], *, order: Sequence[str]) -> list[Record]:
    """Return one record a method, size and number of test rows.

    Args:
        records: Cells that can be averaged.
        order: Methods in the order to show them; any other comes after.

    Returns:
        ``method, size, labels, test_rows, seeds, error, lowest, highest, macro_f1, seconds, steps``; the error is the
        mean, in [0, 1]. Seconds and steps are means of the training (0 steps where there are none).
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault(_place(record), []).append(record)
    summary = []
    for (method, size, test_rows), cells in groups.items():
        errors = [cell["error"] for cell in cells]
        summary.append(
            {
                "method": method,
                "size": size,
                "labels": max(cell["rows"] for cell in cells),
                "test_rows": test_rows,
                "seeds": len(cells),
                "error": statistics.fmean(errors),
                "lowest": min(errors),
                "highest": max(errors),
                "macro_f1": statistics.fmean(cell["macro_f1"] for cell in cells),
                "seconds": statistics.fmean(cell["seconds"] for cell in cells),
                "steps": statistics.fmean(cell.get("steps", 0) for cell in cells),
            }
        )
    rank = {method: number for number, method in enumerate(order)}
    return sorted(summary, key=lambda row: (row["test_rows"], rank.get(row["method"], len(rank)), row["labels"]))


def curves_of(summary: Sequence[Record], *, titles: dict[str, str]) -> dict[str, list[Record]]:
    """Return what the picture draws: title of a method -> its points, of the test sample with the most cells."""
    seeds: dict[int, int] = {}
    for row in summary:
        seeds[row["test_rows"]] = seeds.get(row["test_rows"], 0) + row["seeds"]
    drawn = max(seeds, key=seeds.__getitem__) if seeds else None
    curves: dict[str, list[Record]] = {}
    for row in summary:
        if row["test_rows"] == drawn:
            point = {name: row[name] for name in ("labels", "error", "lowest", "highest")}
            method = str(row["method"])
            curves.setdefault(titles.get(method, method), []).append(point)
    return curves


def size_table(summary: Sequence[Record], *, titles: dict[str, str]) -> str:
    """Return Markdown: a table for each number of test rows, methods down, labels across, test error in per cent."""
    tables = []
    for test_rows in dict.fromkeys(row["test_rows"] for row in summary):
        rows = [row for row in summary if row["test_rows"] == test_rows]
        sizes = {row["labels"]: _labels_in_words(row) for row in sorted(rows, key=lambda row: row["labels"])}
        methods = dict.fromkeys(row["method"] for row in rows)
        found = {(row["method"], row["labels"]): row for row in rows}
        header = [f"test error %, {test_rows:,} test rows", *sizes.values()]
        body = [
            [titles.get(method, method), *(_error_in_words(found.get((method, labels))) for labels in sizes)]
            for method in methods
        ]
        tables.append(markdown([header, *body]))
    return "\n\n".join(tables)


def variant_table(summary: Sequence[Record], *, phases: dict[str, str]) -> str:
    """Return Markdown: a variant a line with its phases, test error in per cent, seconds and steps."""
    header = ["variant", "phases (epochs)", "labels", "test error %", "seconds", "steps"]
    body = [
        [
            row["method"],
            phases.get(row["method"], ""),
            _labels_in_words(row),
            _error_in_words(row),
            f"{row['seconds']:.0f}",
            f"{row['steps']:.0f}",
        ]
        for row in summary
    ]
    return markdown([header, *body])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows of text out as a Markdown table, the first row as its header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def cells_as_csv(records: Sequence[Record]) -> bytes:
    """Return the cells as CSV, one per row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for record in records:
        values = {**record, **record["cell"]}
        writer.writerow([values.get(name, "") for name in CSV_COLUMNS])
    return text.getvalue().encode()


def without_identity(records: Sequence[Record]) -> list[Record]:
    """Return the cells as a results file keeps them."""
    return [
        {name: value for name, value in record.items() if name not in ("identity", "versions")} for record in records
    ]


def _place(record: Record) -> tuple[str, int, int]:
    cell = record["cell"]
    return cell["method"], cell["size"], cell["test_rows"]


def _labels_in_words(row: Record) -> str:
    return f"all {row['labels']:,}" if row["size"] == ALL_ROWS else f"{row['labels']:,}"


def _error_in_words(row: Record | None) -> str:
    """Mean, range and number of seeds: ``12.3 (11.9-12.8, 3 seeds)``."""
    if row is None:
        return "-"
    mean = f"{100 * row['error']:.1f}"
    if row["seeds"] == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ({100 * row['lowest']:.1f}-{100 * row['highest']:.1f}, {row['seeds']} seeds)"
