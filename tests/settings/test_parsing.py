import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ulmfit_pipe.settings import parsing
from ulmfit_pipe.settings.parsing import (
    SettingsError,
    list_settings,
    load_settings,
    parse_settings,
    settings_to_yaml,
)
from ulmfit_pipe.settings.prediction import PredictFileSettings


@dataclass(frozen=True)
class HeadSettings:
    """Head.

    Attributes:
        dropout: Share of inputs that are dropped, at most 50% here.
    """

    dropout: float = 0.1

    def __post_init__(self):
        if self.dropout > 0.5:
            raise ValueError(f"dropout must be at most 0.5, got {self.dropout}")


@dataclass(frozen=True)
class ClassifierSettings:
    """Classifier stage.

    Attributes:
        learning_rate: Rate of the last
            layer group.
        epochs: Passes over the data.
        betas: Lower and upper momentum.
        head: The head.
    """

    learning_rate: float = 0.002
    epochs: int = 3
    betas: tuple[float, float] = (0.85, 0.95)
    head: HeadSettings = HeadSettings()


@dataclass(frozen=True)
class PipelineSettings:
    """The whole pipeline."""

    train_file: str
    """Table with texts and labels."""
    test_file: str | None = None
    """Table to test on."""
    text_column: tuple[str, ...] = ("text",)
    """Columns that hold text."""
    label_names: list[str] | None = None
    """Names in their order."""
    label_column: str | list[str] = "label"
    """Column or columns of labels."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Precision."""
    preset: Literal["paper", "scripts-2018", "fastai"] = "fastai"
    """Recipe."""
    seed: int = 0
    """Seed."""
    max_seconds: float | None = None
    """Time limit."""
    backward: bool = False
    """Read from the end."""
    cache: Path = Path("cache")
    """Where caches lie."""
    classifier: ClassifierSettings = field(default_factory=lambda: ClassifierSettings(epochs=5))
    """Classifier."""


def parse(*words: str) -> PipelineSettings:
    return parse_settings(PipelineSettings, ["--train_file", "train.csv", *words], description="A test.")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# Values that are accepted


def test_defaults_come_from_the_class_and_from_the_default_object_of_a_group():
    settings = parse()
    assert settings == PipelineSettings("train.csv")
    assert settings.classifier.epochs == 5


def test_dotted_names_reach_groups_of_any_depth():
    settings = parse("--classifier.epochs", "7", "--classifier.head.dropout=0.25")
    assert settings.classifier == ClassifierSettings(epochs=7, head=HeadSettings(0.25))


@pytest.mark.parametrize(
    ("words", "name", "expected"),
    [
        (["--text_column", "title", "--text_column", "body"], "text_column", ("title", "body")),
        (["--text_column", "[title, body]"], "text_column", ("title", "body")),
        (["--text_column", "body"], "text_column", ("body",)),
        (["--label_names", "1", "--label_names", "2"], "label_names", ["1", "2"]),
        (["--label_names", "null"], "label_names", None),
        (["--test_file", "null"], "test_file", None),
        (["--test_file", "#"], "test_file", "#"),
        (["--test_file", "~"], "test_file", "~"),
        (["--test_file", "2020"], "test_file", "2020"),
        (["--test_file=--odd"], "test_file", "--odd"),
        (["--max_seconds", "1e2"], "max_seconds", 100.0),
        (["--seed", "-1"], "seed", -1),
        (["--backward", "yes"], "backward", True),
        (["--label_column", "toxic"], "label_column", "toxic"),
        (["--label_column", "toxic", "--label_column", "obscene"], "label_column", ["toxic", "obscene"]),
        (["--label_column", "[toxic, obscene]"], "label_column", ["toxic", "obscene"]),
        (["--label_names", "[no, 010, 2024-05-01]"], "label_names", ["no", "010", "2024-05-01"]),
        (["--backward", "true"], "backward", True),
        (["--preset", "scripts-2018"], "preset", "scripts-2018"),
        (["--cache", "other"], "cache", Path("other")),
    ],
)
def test_text_becomes_a_value_of_the_annotated_type(words, name, expected):
    value = getattr(parse(*words), name)
    assert value == expected
    assert type(value) is type(expected)


def test_a_later_file_wins_over_an_earlier_one_and_the_command_line_over_both(tmp_path):
    first = write(tmp_path / "a.yaml", "seed: 1\nmax_seconds: 10\nclassifier:\n  epochs: 8\n  learning_rate: 1e-3\n")
    second = write(tmp_path / "b.yaml", "max_seconds: 20\nclassifier:\n  learning_rate: 0.5\n")
    settings = parse("--seed", "9", "--config", first, "--config", second)
    assert (settings.seed, settings.max_seconds) == (9, 20.0)
    assert (settings.classifier.epochs, settings.classifier.learning_rate) == (8, 0.5)


@pytest.mark.parametrize(
    "text", ["", "# only a comment\n", "classifier:\n", "classifier: {head: }\n", "\ufeffseed: 0\n"]
)
def test_an_empty_file_or_group_changes_nothing(tmp_path, text):
    assert parse("--config", write(tmp_path / "a.yaml", text)) == PipelineSettings("train.csv")


def test_in_a_file_one_text_will_do_for_a_list(tmp_path):
    assert parse("--config", write(tmp_path / "a.yaml", "text_column: body\n")).text_column == ("body",)


@pytest.mark.parametrize("test_file", [None, "null", "1e-3", "a: b", "é", "yes", "12", "", "#"])
def test_saved_settings_load_as_an_equal_object(tmp_path, test_file):
    head = HeadSettings(1e-05)
    settings = PipelineSettings(
        "t.csv",
        test_file,
        ("a", "b"),
        ["x", "1"],
        ["c", "010"],
        "no",
        "paper",
        4,
        2.5,
        True,
        Path("c"),
        ClassifierSettings(head=head),
    )
    (tmp_path / "settings.yaml").write_text(settings_to_yaml(settings), encoding="utf-8")
    assert load_settings(PipelineSettings, tmp_path / "settings.yaml") == settings


def test_yaml_keeps_the_order_of_the_fields():
    written = yaml.safe_load(settings_to_yaml(PipelineSettings("t.csv")))
    assert list(written) == [item.name for item in dataclasses.fields(PipelineSettings)]
    assert written["classifier"] == {
        "learning_rate": 0.002,
        "epochs": 5,
        "betas": [0.85, 0.95],
        "head": {"dropout": 0.1},
    }


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], r"unknown setting --learning_rat; did you mean --classifier.learning_rate\?"),
        (["--classifier.epoch", "1"], r"unknown setting --classifier.epoch; did you mean --classifier.epochs\?"),
        (["--classif.epochs", "1"], r"unknown setting --classif.epochs; did you mean --classifier.epochs\?"),
        (["--clasifier_epochs", "1"], r"did you mean --classifier.epochs\?"),
        (["--pres", "paper"], r"unknown setting --pres; did you mean --preset\?"),
        (["--conf", "a.yaml"], r"unknown setting --conf; did you mean --config\?"),
        (["--zzz", "1"], r"unknown setting --zzz; --help all lists all there are$"),
        (["--skip_blank", "true"], "unknown setting --skip_blank; --help all lists all there are$"),
        (["--per_device_train_epochs", "3"], r"did you mean --classifier.epochs\?"),
        (["--\x1b[31m" + "x" * 5000, "1"], r"unknown setting --\\x1b\[31mxx.*xx; --help all lists all"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice: '1' and '2'; write it once"),
        (["--preset", "paper", "--preset=paper"], "--preset is given twice: 'paper' and 'paper'; write it once"),
        (["--text_column", "a", "--text_column", "null"], "--text_column is given twice: 'a' and 'null'; write it on"),
        (["--seed", "010"], "--seed must be a whole number, got '010'"),
        (["--seed", "1:30"], "--seed must be a whole number, got '1:30'"),
        (["--seed", "9" * 5000], r"--seed must be a whole number, got '9+\.\.\.9+'$"),
        (["--max_seconds", "1:30"], "--max_seconds must be a number or null, got '1:30'"),
        (["--classifier", "1"], "--classifier is a group of settings; .* for example --classifier.learning_rate"),
        (["body"], "'body' follows no setting's name; write --name VALUE, again for each item of a list"),
        (["--backward"], "--backward needs a value; write --backward VALUE"),
        (["--seed", "--backward", "true"], "--seed needs a value"),
        (["--seed", "3.5"], "--seed must be a whole number, got '3.5'"),
        (["--seed", "null"], "--seed must be a whole number, got 'null'"),
        (["--classifier.learning_rate", "fast"], "--classifier.learning_rate must be a number, got 'fast'"),
        (["--max_seconds", "soon"], "--max_seconds must be a number or null, got 'soon'"),
        (["--backward", "maybe"], "--backward must be true or false, got 'maybe'"),
        (["--preset", "papper"], "one of paper, scripts-2018, fastai, got 'papper'; did you mean paper?"),
        (["--classifier.betas", "1"], r"--classifier.betas must be a list of 2: a number, a number, got \['1'\]"),
        (["--label_names", "[a, 3]"], r"--label_names must be a list, each item text or null, got \['a', 3\]"),
        (["--label_names", "[a: [b"], r"each item text or null, got '\[a: \[b'"),
        (["--classifier.head.dropout", "0.7"], "classifier.head: dropout must be at most 0.5, got 0.7"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_setting_and_what_is_allowed(words, message):
    with pytest.raises(SettingsError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", r"a\.yaml: unknown setting sed; did you mean seed\?"),
        ("classifier:\n  epoch: 1", r"unknown setting classifier\.epoch; did you mean classifier\.epochs\?"),
        ("classifier: 3", r"classifier is a group of settings; .* for example classifier\.learning_rate"),
        ("seed: 1\nseed: 2", r"a\.yaml: seed is given twice, the first time on line 1; keep one"),
        ("seed: true", r"a\.yaml: seed must be a whole number, got True"),
        ("seed:", "seed must be a whole number, got None"),
        ("test_file: 3", "test_file must be text or null, got 3; put it in quotes"),
        ("text_column: [a, 1]", r"text_column must be a list, each item text, got \['a', 1\]"),
        ("- seed", r"expected lines of the form 'name: value', got \['seed'\]"),
        ("seed: [1", r"a\.yaml: not valid YAML \(line 1, column 9\): expected ',' or '\]'"),
        ("seed: 010", r"a\.yaml: seed must be a whole number, got '010'"),
        ("seed: 0x1F", "seed must be a whole number, got '0x1F'"),
        ("seed: " + "9" * 5000, r"seed must be a whole number, got '9+\.\.\.9+'$"),
        ("seed: no", "seed must be a whole number, got 'no'"),
        ("max_seconds: 1:30", "max_seconds must be a number or null, got '1:30'"),
        ("backward: nope", "backward must be true or false, got 'nope'"),
        ("test_file: 1.10", r"test_file must be text or null, got 1\.1; put it in quotes"),
        ("test_file: true", "test_file must be text or null, got True; put it in quotes"),
        ("preset: no", "preset must be one of paper, scripts-2018, fastai, got 'no'"),
        ("mixed_precision: true", "mixed_precision must be one of no, bf16, got True"),
        ("seed: " + "[" * 3000, "a.yaml: lists or groups are nested too deeply"),
        ("seed: &s [*s]", "it stands for more than 200,000 values; write out what its aliases"),
        ("? [a, b]\n: 1", "not valid YAML .*found unhashable key"),
        ("x" * (2**18 + 1), "a.yaml: more than 262,144 bytes, so it is not a file of settings"),
        ("\x85x: 1\n" * 2, "a.yaml: .*x is given twice, the first time on line 2"),
        ("seed: \x00", "not valid YAML: special characters are not allowed"),
        ("test_file: !!python/object/apply:os.getcwd []", "not valid YAML .*could not determine a constructor"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_setting(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        parse("--config", write(tmp_path / "a.yaml", text))


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("mixed_precision: no", "mixed_precision", "no"),
        ("mixed_precision: false", "mixed_precision", "no"),
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("backward: yes", "backward", True),
        ("backward: Off", "backward", False),
        ("test_file: yes", "test_file", "yes"),
        ("test_file: 010", "test_file", "010"),
        ("test_file: 2024-05-01", "test_file", "2024-05-01"),
        ("test_file: ~", "test_file", None),
        ("test_file: null", "test_file", None),
        ("test_file: 'null'", "test_file", "null"),
        ("label_names: [no, yes, on]", "label_names", ["no", "yes", "on"]),
        ("max_seconds: 1e3", "max_seconds", 1000.0),
        ("max_seconds: 2.5E-1", "max_seconds", 0.25),
        ("seed: 1_000", "seed", 1000),
        ("label_column: toxic", "label_column", "toxic"),
        ("label_column: [toxic, obscene]", "label_column", ["toxic", "obscene"]),
        ("text_column: &names [a, b]\nlabel_names: *names", "label_names", ["a", "b"]),
        ("a: &a {seed: 3}\n<<: *a", None, None),
    ],
)
def test_plain_words_and_numbers_in_a_file_are_what_they_look_like(tmp_path, text, name, expected):
    path = write(tmp_path / "a.yaml", text)
    if name is None:
        with pytest.raises(SettingsError, match="unknown setting a;"):
            parse("--config", path)
        return
    value = getattr(parse("--config", path), name)
    assert value == expected and type(value) is type(expected)


def test_aliases_that_stand_for_millions_of_values_are_refused_before_they_are_written_out(tmp_path):
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
    text = "\n".join(["l0: &l0 [x]", *levels])
    with pytest.raises(SettingsError, match="stands for more than 200,000 values"):
        parse("--config", write(tmp_path / "a.yaml", text))


def test_unknown_names_are_compared_once_however_many_there_are(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(parsing, "_ratio", lambda typed, real: compared.append(typed) or len(typed) / 1000)
    numbers = []
    for count in (10, 1000):
        compared.clear()
        with pytest.raises(SettingsError, match=r"unknown setting n0; --help all lists all") as refused:
            parse("--config", write(tmp_path / "a.yaml", "".join(f"n{n}: 1\n" for n in range(count))))
        numbers.append(len(compared))
        assert len(str(refused.value)) < 200
    assert numbers[0] == numbers[1] > 0


def test_a_file_that_is_missing_or_not_text_is_a_clear_error(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml: the settings file cannot be read: No such file"):
        parse("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(SettingsError, match="the settings file cannot be read: Is a directory"):
        parse("--config", str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes("test_file: café".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"latin\.yaml: not UTF-8 text \(byte 14\); save the file as UTF-8"):
        load_settings(PipelineSettings, tmp_path / "latin.yaml")


def test_a_required_setting_that_is_missing_is_named():
    with pytest.raises(SettingsError, match="required and not given: --train_file.*; give it, or name it in a file"):
        parse_settings(PipelineSettings, [], description="A test.")


def test_every_message_is_one_line_however_long_the_value():
    with pytest.raises(SettingsError) as caught:
        parse("--seed", "x" * 500)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 120


def test_every_message_is_bounded_and_without_control_characters(tmp_path):
    (tmp_path / ("a" * 200)).mkdir()
    path = tmp_path / ("a" * 200) / ("b" * 200) / ("\x1b[31m" + "c" * 200)
    with pytest.raises(SettingsError) as caught:
        parse("--config", str(path))
    message = str(caught.value)
    assert len(message) == 500 and message.startswith(str(tmp_path)) and message.endswith("--config takes a YAML file")
    assert str(SettingsError("a\n b \x1b[31m\u202e c")) == "a b \\x1b[31m\\u202e c"


def test_a_settings_class_raising_settings_error_itself_is_passed_on():
    @dataclass(frozen=True)
    class Refusing:
        """Refuses."""

        seed: int = 0

        def __post_init__(self):
            raise SettingsError("its own words")

    with pytest.raises(SettingsError, match="^its own words$"):
        parse_settings(Refusing, [], description="A test.")


# The program


def test_on_the_real_command_line_a_mistake_ends_the_program_with_code_two(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipes/run.py", "--train_file", "t.csv", "--sede", "1"])
    with pytest.raises(SystemExit) as caught:
        parse_settings(PipelineSettings, description="A test.")
    assert caught.value.code == 2
    error = "run.py: error: unknown setting --sede; did you mean --seed? (--help all lists all)\n"
    assert capsys.readouterr().err == error


def test_help_shows_every_setting_with_its_text_type_and_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(PipelineSettings, ["--help"], description="Trains it.", prog="run.py")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: run.py [--config FILE ...] [--name VALUE ...] Trains it.")
    assert "The whole pipeline: --train_file VALUE Table with texts and labels. (text; required)" in shown
    listed = '(a list, each item text; repeat the name for each; default: ["text"])'
    assert f"--text_column VALUE Columns that hold text. {listed}" in shown
    assert "--preset VALUE Recipe. (one of paper, scripts-2018, fastai; default: fastai)" in shown
    assert "--max_seconds VALUE Time limit. (a number or null; default: null)" in shown
    assert "Classifier stage: --classifier.learning_rate VALUE Rate of the last layer group. (a number;" in shown
    assert "--classifier.epochs VALUE Passes over the data. (a whole number; default: 5)" in shown
    assert "at most 50% here. (a number; default: 0.1)" in shown


def test_settings_are_listed_with_dotted_names_in_order():
    listed = list_settings(PipelineSettings)
    assert [item.name for item in listed][-4:] == [
        "classifier.learning_rate",
        "classifier.epochs",
        "classifier.betas",
        "classifier.head.dropout",
    ]
    assert [item.name for item in listed if item.required] == ["train_file"]
    assert all(item.doc for item in listed)


@pytest.mark.parametrize("word", ["No", "off", "False", "NO"])
def test_words_for_no_are_the_option_no(word, tmp_path):
    given = {"mixed_precision": word, "model": "m", "input_file": "in.csv"}
    words = [part for name, value in given.items() for part in (f"--{name}", value)]
    assert parse_settings(PredictFileSettings, words, description="").mixed_precision == "no"
    (tmp_path / "s.yaml").write_text("".join(f"{name}: '{value}'\n" for name, value in given.items()))
    assert load_settings(PredictFileSettings, tmp_path / "s.yaml").mixed_precision == "no"
