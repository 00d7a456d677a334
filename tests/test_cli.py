"""The command `ulmfit`: every command is a recipe's, help is quick, a mistake ends in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ulmfit_pipe
from ulmfit_pipe import cli

ROOT = Path(__file__).parents[1]


def called(monkeypatch, capsys, *words):
    """Run `ulmfit WORDS` in this process; return exit code, what was printed, and what on the other stream."""
    monkeypatch.setattr(sys, "argv", ["ulmfit", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_every_recipe_but_the_benchmarks_is_a_command():
    texts = [path.read_text() for path in (ROOT / "recipes").glob("*.py") if not path.stem.startswith("benchmark_")]
    names = {name for text in texts for name in re.findall(r'run_command\("([a-z-]+)"\)', text)}
    assert len(names) == len(texts)
    assert names | {"configs", "explain", "check-data", "update"} == set(cli.COMMANDS)  # those need no recipe


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_in_lines_that_a_terminal_shows(monkeypatch, capsys, words):
    code, out, err = called(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(cli.COMMANDS)
    assert max(map(len, out.splitlines())) <= 110


def test_the_version_is_the_package_s(monkeypatch, capsys):
    assert called(monkeypatch, capsys, "--version") == (0, f"ulmfit_pipe {ulmfit_pipe.__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_the_help_of_its_settings(monkeypatch, capsys, name):
    code, out, err = called(monkeypatch, capsys, name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: ulmfit {name} [--config FILE ...] [--name VALUE ...]\n")
    assert "--output" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predit"], "ulmfit: error: unknown command 'predit'; did you mean predict? (ulmfit --help lists all)"),
        (["--seed"], "ulmfit: error: unknown command '--seed'; see ulmfit --help"),
        (["x\x1b[2J"], r"ulmfit: error: unknown command 'x\x1b[2J'; see ulmfit --help"),
        (["run", "--epoch", "1"], "ulmfit run: error: unknown setting --epoch; "),
        (["run", "table.csv"], "ulmfit run: error: 'table.csv' follows no setting's name; "),
        (["configs"], "ulmfit configs: error: required and not given: --output_dir; "),
        (["run", "--train_file", "none.csv", "--output_dir", "out"], "ulmfit run: error: there is no file none.csv; "),
        (
            ["finetune-lm", "--train_file", "t", "--output_dir", "o"],
            "ulmfit finetune-lm: error: --model is missing",
        ),
    ],
)
def test_a_mistake_ends_in_one_line_with_code_two(monkeypatch, capsys, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    code, out, err = called(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_accelerates_files_are_written_and_one_that_was_changed_is_kept(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "configs"
    names = ["fsdp2.yaml", "multi_gpu.yaml", "multi_node.yaml"]
    for _ in ("new", "again"):
        assert called(monkeypatch, capsys, "configs", folder) == (
            0,
            "".join(f"{folder / name}\n" for name in names),
            "",
        )
    (folder / "fsdp2.yaml").write_text("mine")
    code, _, err = called(monkeypatch, capsys, "configs", folder)
    assert (code, (folder / "fsdp2.yaml").read_text()) == (2, "mine")
    assert "fsdp2.yaml is there with another content; move it, or choose another folder" in err


def test_help_loads_no_torch_and_the_module_is_the_command():
    code = (
        "import sys; sys.argv = ['ulmfit', 'run', '--help']\n"
        "from ulmfit_pipe import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'loaded for help'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "ulmfit_pipe", "--version"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == f"ulmfit_pipe {ulmfit_pipe.__version__}\n"


def test_a_table_that_does_not_exist_is_refused_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from ulmfit_pipe.cli import main\n"
        "sys.argv[1:] = ['run', '--train_file', 'nowhere.csv', '--output_dir', 'out']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "False\n"
    assert "error: there is no file nowhere.csv; the folder . holds no table" in done.stderr
