"""How a recipe ends when what it was given cannot be used."""

import errno
import io
import json
import os
import runpy
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from ulmfit_pipe import program
from ulmfit_pipe.console import in_one_line, on_terminal, visible
from ulmfit_pipe.data.tables.tables import TableError, load_table
from ulmfit_pipe.program import run_recipe
from ulmfit_pipe.stages.context import RunContext
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


def test_an_error_that_quotes_a_whole_page_keeps_its_beginning_and_its_end(capsys):
    def main():
        raise OSError(errno.ENOENT, "No such file", f"{'x' * 9000}\x1b.csv")

    code, err = ended(main, capsys)
    assert (code, len(err), err[-1]) == (2, 601, "\n")
    assert err.startswith("recipe.py: error: xxx") and "xxx..." in err and err[:-1].isprintable()
    assert err.endswith("stages that had finished are kept\n")


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
    monkeypatch.setattr(program, "PACKAGE", Path(__file__).parent)

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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/run"),
            "/data/run cannot be used: Permission denied. This account has no permission there: change the",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300),
            "a cannot be used: File name too long. The name is too long for the disk: take a shorter one or choose",
        ),
        (
            OSError(errno.EROFS, "could not write out.csv: Read-only file system"),
            "error: could not write out.csv: Read-",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/t.arrow"),
            "on device: '/tmp/t.arrow'); free some space",
        ),
        (
            OSError(errno.EBUSY, "busy", "/a", None, "/b"),
            "/a -> /b cannot be used: busy. Something else is using it: end that or choose another path",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "/home/me/t.arrow"),
            "error: the disk quota of this account is used up ([Errno 122] Disk quota exceeded: '/home/me/t.arrow'); f",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "This process has too many files open: raise the limit (ulimi"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "error: Broken pipe; stages that had"),
        (
            OSError(errno.ENOSPC, "could not write out.csv: No space left on device. Free it"),
            "error: could not write out.csv: No space left on device. Free it; stages",
        ),
    ],
)
def test_a_disk_that_fails_is_one_line_with_the_file(capsys, error, words):
    def main():
        raise error

    code, err = ended(main, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err and err.endswith("; stages that had finished are kept\n")


def test_a_full_disk_that_names_no_file_is_named_by_its_room(capsys, monkeypatch, tmp_path):
    def main():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full = SimpleNamespace(free=4096)
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full if place == str(tmp_path) else usage(place))
    assert f"No space left on device; there is no room in TMPDIR {tmp_path}); free some" in ended(main, capsys)[1]


def test_an_error_without_a_number_keeps_its_traceback():
    def main():
        raise OSError("of a library, about the network")

    with pytest.raises(OSError, match="about the network"):
        run_recipe(main)


HOSTILE = "go\x1b[31mod\r\u202e \ud83d 积极\x9b"
SHOWN = r"go\x1b[31mod\r\u202e \ud83d 积极\x9b"


def test_what_a_terminal_would_act_on_is_printed_escaped_and_tables_keep_their_lines(capsys):
    run_recipe(lambda: print(f"a table\n{HOSTILE}\tx"))
    assert capsys.readouterr().out == f"a table\n{SHOWN}\tx\n"

    def main():
        raise OSError(errno.ENOENT, "No such file", f"{HOSTILE}\n.csv")

    assert f"error: {SHOWN}\\n.csv cannot be used" in ended(main, capsys)[1]
    RunContext().say(HOSTILE)
    assert capsys.readouterr().out == SHOWN + "\n"
    assert in_one_line("a\nb\tc\x00") == r"a\nb\tc\x00"
    assert visible("family 👨\u200d👩 a\u00a0b") == "family 👨\u200d👩 a\u00a0b"


def test_a_console_that_cannot_show_a_label_gets_it_escaped(monkeypatch):
    for encoding, shown in (("cp1252", r"\u79ef\u6781 é"), ("ascii", r"\u79ef\u6781 \xe9"), ("utf-8", "积极 é")):
        console = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
        monkeypatch.setattr(sys, "stdout", console)
        RunContext().say("积极 é")
        run_recipe(lambda: print("积极 é"))
        console.flush()
        assert console.buffer.getvalue().decode(encoding) == f"{shown}\n" * 2


def test_a_recipe_runs_without_a_console(tmp_path):
    program = tmp_path / "recipe.py"
    program.write_text(
        "import sys\n"
        "from ulmfit_pipe import run_recipe\n"
        "from ulmfit_pipe.console import on_terminal, print_line\n"
        "def main():\n"
        "    print_line('line'); print('line'); on_terminal()\n"
        "    file = open(sys.argv[1], 'w'); print(file.fileno(), file=file, flush=True)\n"
        "    raise OSError(2, 'gone', 'in.csv')\n"
        "run_recipe(main)\n"
    )
    assert _forked_without_console(program, tmp_path / "out") == 2
    assert int((tmp_path / "out").read_text()) > 2  # else what libraries write to stderr would go into it


def _forked_without_console(program, *words):
    """Run a program as one that was started with `<&- >&- 2>&-`, and return how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.closerange(0, 3)
            sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None
            sys.argv = [str(program), *map(str, words)]
            runpy.run_path(str(program), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_console_that_was_closed_stops_no_training(monkeypatch):
    console = io.StringIO()
    console.close()
    for stream in (console, None):
        monkeypatch.setattr(sys, "stdout", stream)
        RunContext().say("line")
        monkeypatch.setattr(sys, "stderr", stream)
        assert not on_terminal()


def test_warnings_of_libraries_stay_off_the_terminal_and_ours_and_numerical_ones_are_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_rest: shown.append(str(message)))
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    levels = {}

    def main():
        levels.update({name: os.environ.get(name) for name in program.VERBOSITY})
        for category in program.TO_PROGRAMMERS:
            warnings.warn_explicit(f"theirs {category.__name__}", category, "/lib/sklearn/base.py", 7)
        warnings.warn_explicit("overflow", RuntimeWarning, "/lib/numpy/core.py", 7)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_recipe(main)
        assert shown == ["overflow"]
        assert levels["TRANSFORMERS_VERBOSITY"] == "error"
        assert levels["DATASETS_VERBOSITY"] == "info"
        assert "TRANSFORMERS_VERBOSITY" not in os.environ
        own = str(program.PACKAGE / "cli.py")
        run_recipe(lambda: warnings.warn_explicit("ours", FutureWarning, own, 7, module="tests"))
        monkeypatch.setattr(sys, "warnoptions", ["default"])
        run_recipe(lambda: warnings.warn_explicit("asked for", FutureWarning, "/lib/sklearn/base.py", 7))
    assert shown == ["overflow", "ours", "asked for"]
