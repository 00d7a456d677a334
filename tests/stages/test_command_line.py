"""How a recipe ends when what it was given cannot be used."""

import errno
import json
import sys
from pathlib import Path

import pytest

from ulmfit_pipe.data.tables import TableError, load_table
from ulmfit_pipe.stages.command_line import run_recipe
from ulmfit_pipe.stages.presets import load_preset
from ulmfit_pipe.training.loop import NonFiniteLossError


@pytest.fixture(autouse=True)
def recipe_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/recipe.py"])


def ended(main, capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(main)
    return caught.value.code, capsys.readouterr().err


def test_a_recipe_without_a_fault_just_returns():
    called = []
    run_recipe(lambda: called.append(1))
    assert called == [1]


def test_an_error_of_ours_is_one_line_and_code_2(capsys, tmp_path):
    assert ended(lambda: load_preset("fast"), capsys) == (
        2,
        "recipe.py: error: preset must be one of ['fastai', 'paper', 'scripts-2018', 'transformer'], got 'fast'\n",
    )
    code, err = ended(lambda: load_table(tmp_path / "none.csv"), capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("recipe.py: error: there is no file ")


def test_a_full_disk_is_one_line(capsys):
    def main():
        raise OSError(errno.ENOSPC, "No space left on device")

    code, err = ended(main, capsys)
    assert code == 2
    assert err == (
        "recipe.py: error: the disk is full ([Errno 28] No space left on device); free some space, then run the same "
        "command again, with --resume true where the recipe has it; stages that had finished are kept\n"
    )


def test_a_loss_that_became_nan_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("ulmfit_pipe.stages.command_line.PACKAGE", Path(__file__).parent)

    def main():
        raise NonFiniteLossError("the loss became nan at step 3")

    assert ended(main, capsys) == (2, "recipe.py: error: the loss became nan at step 3\n")


def test_ctrl_c_says_that_finished_stages_are_kept(capsys):
    def main():
        raise KeyboardInterrupt

    code, err = ended(main, capsys)
    assert code == 130
    assert err == (
        "recipe.py: stopped; run the same command again, with --resume true where the recipe has it; stages that had "
        "finished are kept\n"
    )


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(json.JSONDecodeError):  # a ValueError, but none of ours
        run_recipe(lambda: json.loads("{"))
    with pytest.raises(KeyError):
        run_recipe(lambda: {}["x"])


def test_the_traceback_can_be_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("ULMFIT_PIPE_TRACEBACK", "1")
    with pytest.raises(TableError):
        run_recipe(lambda: load_table(tmp_path / "none.csv"))


def test_of_several_processes_one_prints_and_each_tells_its_errors(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run_recipe(lambda rank=rank: print("the table of process", rank))
    assert capsys.readouterr().out == "the table of process 0\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, err = ended(lambda: load_preset("fast"), capsys)
    assert code == 2
    assert err.startswith("recipe.py: process 1 of 2: error: preset must be one of")
