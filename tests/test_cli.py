"""The command `ulmfit`: every command is a recipe's, help is quick, a mistake ends in one line."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ulmfit_pipe
from ulmfit_pipe import cli
from ulmfit_pipe.console import print_line, send
from ulmfit_pipe.settings.guides import GUIDES
from ulmfit_pipe.settings.parsing import list_settings

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
    without = {"configs", "explain", "check-data", "evaluate", "label-next", "push", "report", "serve", "update"}
    assert names | without == set(cli.COMMANDS)


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
    assert "--output" in out or name in ("push", "serve")


@pytest.mark.parametrize("name", GUIDES)
def test_help_shows_ten_settings_an_example_and_files_and_help_all_every_setting(monkeypatch, capsys, name):
    names = [field.name for field in list_settings(getattr(ulmfit_pipe, cli.COMMANDS[name].settings))]
    shown = []
    for words in (["--help"], ["--help", "all"]):
        code, out, err = called(monkeypatch, capsys, name, *words)
        assert (code, err) == (0, "")
        shown.append([line.split()[0][2:] for line in out.splitlines() if line.startswith("  --")])
        assert f"example:\n  ulmfit {name} --" in out
        assert "writes:\n  OUTPUT_" in out
        assert (f"--help all lists the other {len(names) - 10} settings too" in out) is (words == ["--help"])
    assert shown[0] == ["config", *GUIDES[name].first]
    assert len(GUIDES[name].first) == 10
    assert sorted(shown[1]) == sorted(["config", *names])


def test_help_has_the_presets_numbers_where_null_leaves_them_to_it(monkeypatch, capsys):
    shown = " ".join(called(monkeypatch, capsys, "run", "--help")[1].split())
    assert (
        "Base learning rate. (a number or null; default: null, which is fastai 0.02, transformer 5e-05, paper" in shown
    )
    assert "scripts-2018 50; more where there is less data)" in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predit"], "ulmfit: error: unknown command 'predit'; did you mean predict? (ulmfit --help lists all)"),
        (["--seed"], "ulmfit: error: unknown command '--seed'; see ulmfit --help"),
        (["x\x1b[2J"], r"ulmfit: error: unknown command 'x\x1b[2J'; see ulmfit --help"),
        (["report"], "ulmfit report: error: required and not given: --run_dir; "),
        (["report", "one", "two"], "ulmfit report: error: one is not the folder of a finished run: "),
        (["report", "one", "--output_file", "p.pdf"], "ulmfit report: error: settings: output_file must end in .html"),
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


@pytest.fixture
def training(monkeypatch, tmp_path):
    """Put a short one in place of a run; it gives the words of the command."""

    def run_pipeline(settings):
        print_line("tables read")
        logging.getLogger("ulmfit_pipe.data").warning("note: a column is odd")
        send("epoch", {"epoch": 1, "train_loss": 0.5}) or print_line("epoch 1")
        print("a library's own line")
        return {
            "test": {"accuracy": math.nan, "n": 3},
            "classifier": str(tmp_path / "classifier"),
            "seed": settings.seed,
            "report": tmp_path,
        }

    monkeypatch.setattr(ulmfit_pipe, "run_pipeline", run_pipeline)
    monkeypatch.setattr(ulmfit_pipe, "metrics_table", lambda metrics: f"n {metrics['test']['n']}")
    table = tmp_path / "train.csv"
    table.write_text("text,label\n")
    return ["run", "--train_file", table, "--output_dir", tmp_path / "out"]


def test_json_is_one_strict_object_in_a_line_and_nothing_else(training, monkeypatch, capsys, tmp_path):
    code, out, err = called(monkeypatch, capsys, *training, "--json")
    assert (code, err) == (0, "")
    refuse = pytest.fail  # NaN and Infinity are no JSON
    assert [json.loads(line, parse_constant=refuse) for line in out.splitlines()] == [
        {"log": "tables read"},
        {"log": "note: a column is odd"},
        {"epoch": {"epoch": 1, "train_loss": 0.5}},
        {
            "result": {
                "test": {"accuracy": None, "n": 3},
                "classifier": str(tmp_path / "classifier"),
                "seed": 0,
                "report": str(tmp_path),
            }
        },
    ]


def test_quiet_prints_the_result_and_no_log(training, monkeypatch, capsys):
    code, out, err = called(monkeypatch, capsys, *training, "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["a library's own line", "n 3"]
    assert "tables read" not in out
    assert "epoch 1" not in out
    assert "odd" not in out


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_an_error_is_a_line_on_the_other_stream_whatever_the_output(monkeypatch, capsys, tmp_path, flag):
    words = ["run", "--train_file", tmp_path / "no.csv", "--output_dir", tmp_path / "out", flag]
    code, out, err = called(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no.csv" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["explain", "--json"],
            "ulmfit explain: error: --json is for run, predict, demo, finetune-lm, train-classifier, lr-find, images, "
            "pretrain-lm, low-shot, ablation, transferability; explain prints its result as it is: leave it out",
        ),
        (
            ["run", "--json", "--quiet"],
            "ulmfit run: error: --quiet and --json are both given; give one: --json has the log and the result as "
            "JSON, --quiet the result",
        ),
    ],
)
def test_output_flags_that_do_not_fit_are_refused_in_one_line(monkeypatch, capsys, words, line):
    assert called(monkeypatch, capsys, *words) == (2, "", line + "\n")


def test_the_short_word_of_one_command_is_left_alone_in_another(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_recipe", lambda work: seen.append(sys.argv[1:]))
    for words in (["label-next", "DIR", "-n", "5"], ["explain", "DIR", "--text", "-n"]):
        monkeypatch.setattr(sys, "argv", ["ulmfit", *words])
        cli.main()
    assert seen == [["--model", "DIR", "--n", "5"], ["--model", "DIR", "--text", "-n"]]
