"""Cells on disk: finished ones are kept, all others are done again, and processes do not take one another's."""

import json

import numpy as np
import pytest

from ulmfit_pipe.storage.locks import held
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder, Outcome, recipe_of

CELL = Cell("ulmfit", 100, 2, 2000)
IDENTITY = {"settings": {"lr": 1e-2, "betas": (0.8, 0.99)}, "seed": 2, "rows": "ab"}


class Work:
    """Counts how often it is done."""

    def __init__(self, error=0.25):
        self.times, self.error = 0, error

    def __call__(self):
        self.times += 1
        scores = {"accuracy": 1 - self.error, "error": self.error, "macro_f1": 0.7, "n": 2}
        return Outcome(np.array([[0.1, 0.9], [0.6, 0.4]]), scores, {"rows": 100, "seconds": 1.5})


@pytest.fixture
def folder(tmp_path):
    return CellFolder(tmp_path / "cells")


def test_names_tell_method_size_seed_and_test_rows():
    assert CELL.name == "ulmfit_100_seed2_test2000"
    assert Cell("ulmfit", 0, 2, 25_000).name == "ulmfit_all_seed2_test25000"
    assert CELL.describe() == "ulmfit, 100 labels, seed 2, 2,000 test rows"


def test_a_cell_is_done_once_and_found_again(folder):
    work, said = Work(), []
    record = folder.run(CELL, IDENTITY, work, say=said.append)
    again = CellFolder(folder.path).run(CELL, IDENTITY, work, say=said.append)
    assert work.times == 1
    assert (record["error"], record["rows"], record["cell"]["size"]) == (0.25, 100, 100)
    assert again["probabilities"] == record["probabilities"]
    assert said == ["ulmfit, 100 labels, seed 2, 2,000 test rows: error 25.00 %"]
    assert folder.probabilities(CELL).tolist() == [[0.1, 0.9], [0.6, 0.4]]


def test_a_cell_of_another_identity_is_done_again_and_takes_its_place(folder):
    folder.run(CELL, IDENTITY, Work(0.25), say=str)
    changed = {**IDENTITY, "settings": {"lr": 2e-2}}
    assert folder.finished(CELL, changed) is None
    assert folder.run(CELL, changed, Work(0.5), say=str)["error"] == 0.5
    assert folder.finished(CELL, IDENTITY) is None


@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_a_file_that_was_cut_short_or_is_gone_is_no_finished_cell(folder, suffix):
    for spoil in (lambda file: file.write_bytes(file.read_bytes()[:-3]), lambda file: file.unlink()):
        work = Work()
        folder.run(CELL, IDENTITY, work, say=str)
        spoil(folder.path / f"{CELL.name}{suffix}")
        assert folder.finished(CELL, IDENTITY) is None
        assert folder.records() == []
        folder.run(CELL, IDENTITY, work, say=str)
        assert work.times >= 1
        assert folder.finished(CELL, IDENTITY) is not None


def test_a_record_beside_other_probabilities_is_no_finished_cell(folder):
    folder.run(CELL, IDENTITY, Work(), say=str)
    np.save(folder.path / f"{CELL.name}.npy", np.zeros((2, 2)))
    assert folder.finished(CELL, IDENTITY) is None


def test_a_record_in_which_a_number_was_altered_is_no_finished_cell(folder):
    record = folder.run(CELL, IDENTITY, Work(), say=str)
    (folder.path / f"{CELL.name}.json").write_text(json.dumps({**record, "accuracy": 1.0, "record_sha256": "0" * 64}))
    assert folder.finished(CELL, IDENTITY) is None


def test_a_file_of_something_else_is_no_cell(folder):
    folder.path.mkdir()
    for name, content in (("list", []), ("other", {"format": 7})):
        (folder.path / f"{name}.json").write_text(json.dumps(content))
        (folder.path / f"{name}.npy").write_bytes(b"")
    assert folder.records() == []


def test_a_cell_that_another_process_is_at_is_left_to_it(folder):
    work, said = Work(), []
    with held(folder.path / f".{CELL.training}.lock", wait=False) as mine:
        assert mine
        assert folder.run(CELL, IDENTITY, work, say=said.append) is None
    assert work.times == 0
    assert said == ["ulmfit, 100 labels, seed 2, 2,000 test rows: another process is at it, left to it"]
    assert folder.run(CELL, IDENTITY, work, say=str)["error"] == 0.25


def test_a_cell_that_is_finished_while_its_lock_is_taken_is_not_done_again(folder, monkeypatch):
    other, work = CellFolder(folder.path), Work()
    found = []

    def finished(cell, identity):
        found.append(CellFolder.finished(other, cell, identity))
        if len(found) == 1:  # another process finishes the cell just after the first look
            other.write(cell, identity, Work(0.5)())
        return found[-1]

    monkeypatch.setattr(folder, "finished", finished)
    assert folder.run(CELL, IDENTITY, work, say=str)["error"] == 0.5
    assert work.times == 0


def test_the_recipe_is_what_the_seeds_of_a_method_share():
    assert recipe_of(IDENTITY) == recipe_of({**IDENTITY, "seed": 5, "rows": "cd"})
    assert recipe_of(IDENTITY) != recipe_of({**IDENTITY, "settings": {}})


def test_records_come_by_method_size_and_seed(folder):
    cells = [Cell("b", 5, 0, 9), Cell("a", 50, 0, 9), Cell("a", 5, 10, 9), Cell("a", 5, 2, 9)]
    for cell in cells:
        folder.run(cell, IDENTITY, Work(), say=str)
    found = [tuple(record["cell"].values()) for record in folder.records()]
    assert found == [("a", 5, 2, 9), ("a", 5, 10, 9), ("a", 50, 0, 9), ("b", 5, 0, 9)]
