"""Mean, spread and tables of a grid, against numbers worked out by hand."""

import csv
import io
import json

import numpy as np
import pytest

from tests.support.tiny_runs import CLASSIFIER
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder, Outcome
from ulmfit_pipe.studies.grid.results import (
    cells_as_csv,
    curves_of,
    markdown,
    of_one_recipe,
    size_table,
    summarize,
    variant_table,
    write_results,
)


def record(method, size, seed, error, *, test_rows=2000, recipe="r", finished=0.0, rows=None, **more):
    """Return a cell's record as the tables read it."""
    return {
        "cell": {"method": method, "size": size, "seed": seed, "test_rows": test_rows},
        "rows": rows or size,
        "error": error,
        "accuracy": 1 - error,
        "macro_f1": 1 - error / 2,
        "seconds": 10.0 * (seed + 1),
        "recipe": recipe,
        "finished": finished,
        "identity": {"lr": 1},
        "versions": {},
        **more,
    }


CELLS = [
    record("tfidf", 100, 0, 0.25),
    record("tfidf", 100, 1, 0.22),
    record("ulmfit", 100, 0, 0.10, steps=40),
    record("ulmfit", 100, 1, 0.13, steps=44),
    record("ulmfit", 100, 2, 0.16, steps=42),
    record("ulmfit", 0, 0, 0.054, rows=5452, steps=900),
]


def test_the_summary_is_mean_lowest_highest_and_the_number_of_seeds():
    summary = summarize(CELLS, order=["ulmfit", "tfidf"])
    shown = [(row["method"], row["labels"], row["seeds"]) for row in summary]
    assert shown == [("ulmfit", 100, 3), ("ulmfit", 5452, 1), ("tfidf", 100, 2)]
    first = summary[0]
    assert first["error"] == pytest.approx((0.10 + 0.13 + 0.16) / 3)
    assert (first["lowest"], first["highest"]) == (0.10, 0.16)
    assert first["macro_f1"] == pytest.approx(1 - 0.13 / 2)
    assert (first["seconds"], first["steps"]) == (20.0, 42)
    assert summary[2]["error"] == pytest.approx(0.235)
    assert summary[2]["steps"] == 0


def test_methods_that_are_not_in_the_order_come_last():
    summary = summarize([record("new", 5, 0, 0.1), record("ulmfit", 5, 0, 0.1)], order=["ulmfit"])
    assert [row["method"] for row in summary] == ["ulmfit", "new"]


def test_the_table_has_methods_down_and_labels_across():
    table = size_table(summarize(CELLS, order=["ulmfit", "tfidf"]), titles={"tfidf": "TF-IDF"})
    assert table.splitlines() == [
        "| test error %, 2,000 test rows | 100                       | all 5,452    |",
        "|-------------------------------|---------------------------|--------------|",
        "| ulmfit                        | 13.0 (10.0-16.0, 3 seeds) | 5.4 (1 seed) |",
        "| TF-IDF                        | 23.5 (22.0-25.0, 2 seeds) | -            |",
    ]


def test_another_test_sample_gets_a_table_of_its_own_and_no_place_in_the_picture():
    cells = [*CELLS, record("ulmfit", 100, 0, 0.11, test_rows=25_000)]
    summary = summarize(cells, order=["ulmfit", "tfidf"])
    first, second = size_table(summary, titles={}).split("\n\n")
    assert "11.0" not in first
    assert "test error %, 25,000 test rows" in second
    curves = curves_of(summary, titles={"ulmfit": "ULMFiT"})
    assert [point["labels"] for point in curves["ULMFiT"]] == [100, 5452]
    assert curves["tfidf"] == [{"labels": 100, "error": pytest.approx(0.235), "lowest": 0.22, "highest": 0.25}]
    assert curves_of([], titles={}) == {}


def test_cells_made_with_other_settings_than_the_newest_are_left_out_and_told():
    said = []
    old = record("ulmfit", 100, 3, 0.4, recipe="old", finished=-1.0)
    kept, left = of_one_recipe([*CELLS, old], say=said.append)
    assert (kept, left) == (CELLS, [old])
    assert said == [
        "left out: ulmfit, 100 labels, seed 3: made with other settings than the newest cell of its kind; "
        "run the grid again to make it anew"
    ]
    newer = record("ulmfit", 100, 3, 0.4, recipe="new", finished=1.0)
    assert of_one_recipe([*CELLS, newer], say=str)[0] == [cell for cell in CELLS if cell not in CELLS[2:5]] + [newer]


def test_the_table_of_variants_tells_phases_seconds_and_steps():
    table = variant_table(summarize(CELLS[2:5], order=[]), phases={"ulmfit": "head (1), all (8)"})
    assert (
        table.splitlines()[2]
        == "| ulmfit  | head (1), all (8) | 100    | 13.0 (10.0-16.0, 3 seeds) | 20      | 42    |"
    )


def test_a_markdown_table_is_aligned():
    assert markdown([["a", "bb"], ["ccc", "d"]]) == "| a   | bb |\n|-----|----|\n| ccc | d  |"


def test_the_csv_has_one_cell_a_row():
    rows = list(csv.DictReader(io.StringIO(cells_as_csv(CELLS).decode())))
    assert len(rows) == 6
    assert rows[5] == {
        "method": "ulmfit",
        "size": "0",
        "rows": "5452",
        "seed": "0",
        "test_rows": "2000",
        "error": "0.054",
        "accuracy": "0.946",
        "macro_f1": "0.973",
        "seconds": "10.0",
        "steps": "900",
    }
    assert rows[0]["steps"] == ""


def test_results_without_a_finished_cell_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cells holds no finished cell; run the grid first"):
        write(tmp_path)


def write(output):
    return write_results(
        output,
        title="Reviews",
        about="What it is.",
        order=["ulmfit"],
        table=lambda summary: size_table(summary, titles={}),
        settings=CLASSIFIER,
        say=str,
        curves=lambda summary: curves_of(summary, titles={}),
    )


def test_results_are_written_as_json_csv_and_markdown(tmp_path):
    scores = {"accuracy": 0.75, "error": 0.25, "macro_f1": 0.7, "n": 4}
    outcome = Outcome(np.full((4, 2), 0.5), scores, {"rows": 100, "seconds": 1.5})
    CellFolder(tmp_path / "cells").write(Cell("ulmfit", 100, 0, 4), {"seed": 0}, outcome)
    results = write(tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert (
        stored["curves"]
        == results["curves"]
        == {"ulmfit": [{"labels": 100, "error": 0.25, "lowest": 0.25, "highest": 0.25}]}
    )
    assert "identity" not in stored["cells"][0]
    assert stored["settings"]["batch_size"] == 8
    assert (tmp_path / "results.csv").read_text().count("\n") == 2
    assert (tmp_path / "results.md").read_text() == f"{results['table']}\n\nWhat it is.\n"
