"""Checks of settings: closed lists, whole numbers, numbers above zero."""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import yaml

from ulmfit_pipe import (
    ClassifierJob,
    DemoSettings,
    ImageSettings,
    LanguageModelJob,
    LearningRateJob,
    PackageSettings,
    PipelineSettings,
    PredictFileSettings,
    RunContext,
    ShowFiltersSettings,
    TextPipeline,
    load_table,
    parse_settings,
)
from ulmfit_pipe.settings.checks import (
    PATH_SETTINGS,
    check_above_zero,
    check_choices,
    check_seed,
    check_types,
    check_whole,
    home_path,
    with_absolute_paths,
)
from ulmfit_pipe.settings.parsing import load_settings, settings_to_yaml
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.model_names import resolve_model
from ulmfit_pipe.stages.report import report_line


@dataclass(frozen=True)
class Numbers:
    plan: Literal["full", "head"] = "full"
    monitor: Literal["loss", "accuracy"] | None = None
    epochs: int | None = None
    rows: int = 5
    seed: int = 0
    lr: float | None = None
    decay: float = 2.6


def test_defaults_pass():
    numbers = Numbers()
    check_choices(numbers)
    check_whole(numbers, {"epochs": 1, "rows": 2})
    check_above_zero(numbers, "lr", "decay")


def test_a_value_off_its_list_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="^plan must be one of full, head, got 'heads'; did you mean 'head'\\?$"):
        check_choices(Numbers(plan="heads"))
    with pytest.raises(ValueError, match="^monitor must be one of loss, accuracy, None, got 7$"):
        check_choices(Numbers(monitor=7))


@pytest.mark.parametrize("epochs", [0, -2, True, 1.0])
def test_what_is_no_whole_number_from_its_bound_on_is_refused(epochs):
    words = f"epochs must be a whole number of 1 or more, got {epochs}; leave it out for the default"
    with pytest.raises(ValueError, match=words):
        check_whole(Numbers(epochs=epochs), {"epochs": 1})
    with pytest.raises(ValueError, match="rows must be a whole number of 6 or more, got 5; the default is 5"):
        check_whole(Numbers(), {"rows": 6})


@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), True])
def test_what_is_no_number_above_zero_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be a number above 0, got .*; leave it out for the default"):
        check_above_zero(Numbers(lr=lr), "lr")


@dataclass(frozen=True)
class Typed:
    """Every kind of annotation that settings have."""

    name: str = "x"
    place: Path = Path("p")
    seed: int = 0
    rate: float = 0.5
    limit: float | None = None
    flag: bool = False
    columns: list[str] = field(default_factory=lambda: ["text"])
    labels: str | list[str] = "label"
    betas: tuple[float, float] = (0.8, 0.9)
    plan: Literal["full", "head"] | None = None
    group: Numbers = field(default_factory=Numbers)

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("name", Path("a/b"), "a/b"),
        ("name", np.str_("a"), "a"),
        ("place", "a/b", Path("a/b")),
        ("seed", np.int64(3), 3),
        ("rate", 1, 1),
        ("rate", np.float64(0.25), 0.25),
        ("limit", np.int32(2), 2),
        ("limit", None, None),
        ("flag", np.bool_(True), True),
        ("columns", "body", ["body"]),
        ("columns", ("a", "b"), ["a", "b"]),
        ("labels", "toxic", "toxic"),
        ("labels", ["toxic", "obscene"], ["toxic", "obscene"]),
        ("betas", [np.float32(0.5), 0.75], (0.5, 0.75)),
        ("plan", "head", "head"),
        ("group", {"epochs": np.int64(4), "plan": "head"}, Numbers(epochs=4, plan="head")),
        ("group", Numbers(rows=2), Numbers(rows=2)),
    ],
)
def test_pythons_other_ways_to_write_a_value_are_taken(name, given, expected):
    value = getattr(Typed(**{name: given}), name)
    assert value == expected and type(value) is type(expected)
    if isinstance(value, tuple | list):
        assert [type(item) for item in value] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("name", 3, "name must be text, got 3"),
        ("name", None, "name must be text, got None"),
        ("name", ["a"], "name must be text, got ['a']"),
        ("name", pd.DataFrame({"a": [1]}), "name must be text, got <DataFrame>"),
        ("seed", "1", "seed must be a whole number, got '1'"),
        ("seed", 1.0, "seed must be a whole number, got 1.0"),
        ("seed", True, "seed must be a whole number, got True"),
        ("rate", "0.5", "rate must be a number, got '0.5'"),
        ("rate", True, "rate must be a number, got True"),
        ("rate", 1j, "rate must be a number, got 1j"),
        ("flag", 1, "flag must be true or false, got 1"),
        ("flag", "yes", "flag must be true or false, got 'yes'"),
        ("columns", [1], "columns must be a list, each item text, got [1]"),
        ("columns", {"a"}, "columns must be a list, each item text, got {'a'}"),
        ("labels", 3, "labels must be text or a list, each item text, got 3"),
        ("betas", [0.5], "betas must be a list of 2: a number, a number, got [0.5]"),
        ("plan", pd.Series(["full"]), "plan must be one of full, head or null, got <Series>"),
        ("plan", "heads", "plan must be one of full, head, None, got 'heads'; did you mean 'head'?"),
        ("group", 3, "group must be Numbers(...) or a dict of its settings, got 3"),
        ("group", {"epoch": 3}, "group has no setting 'epoch'; did you mean 'epochs'? There are plan, monitor, epochs"),
        ("group", {"zzz": 3}, "group has no setting 'zzz'. There are plan, monitor, epochs, rows, seed, lr, decay"),
        ("group", {3: 3}, "group has no setting 3. There are"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(name, given, words):
    with pytest.raises(ValueError, match="^" + re.escape(words)) as refused:
        Typed(**{name: given})
    assert "\n" not in str(refused.value)


def test_a_mistake_inside_a_group_names_the_group():
    @dataclass(frozen=True)
    class Outer:
        group: Typed = field(default_factory=Typed)

    with pytest.raises(ValueError, match="^group: seed must be a whole number, got '1'$"):
        check_types(Outer(group={"seed": "1"}))


RUNS = {
    PipelineSettings: {"train_file": "t.csv", "output_dir": "o"},
    ImageSettings: {"output_dir": "o"},
    LanguageModelJob: {"train_file": "t.csv", "output_dir": "o"},
    ClassifierJob: {"train_file": "t.csv", "output_dir": "o", "model": "m"},
    LearningRateJob: {"train_file": "t.csv", "output_dir": "o"},
    DemoSettings: {},
    PackageSettings: {"model": "m", "output_dir": "o"},
    RunContext: {},
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "seed",
    [-1, 2**32, 2**70, 10**5000, 1.5, "1", True],
    ids=["-1", "2**32", "2**70", "10**5000", "1.5", "text", "True"],
)
def test_a_seed_that_no_generator_takes_is_refused_by_every_run(run, seed):
    with pytest.raises(ValueError, match=r"^seed must be (0\.\.2\*\*32-1|a whole number), got "):
        run(**RUNS[run], seed=seed)


@pytest.mark.parametrize("run", RUNS)
def test_the_least_and_the_largest_seed_are_taken_by_every_run(run):
    for seed in (0, 2**32 - 1):
        assert run(**RUNS[run], seed=seed).seed == seed


def test_a_seed_out_of_range_is_told_with_the_default():
    with pytest.raises(ValueError, match=r"^seed must be 0\.\.2\*\*32-1, got -1; 0 is the default$"):
        check_seed(Numbers(seed=-1))


@pytest.mark.parametrize("job", [LanguageModelJob, ClassifierJob, LearningRateJob, PipelineSettings, ImageSettings])
def test_jobs_check_the_types_of_their_settings(job):
    with pytest.raises(ValueError, match="^tf32 must be true or false or null, got 'yes'$"):
        job(**RUNS[job], tf32="yes")
    with pytest.raises(ValueError, match=r"^mixed_precision must be one of no, fp16, bf16, fp8, got False$"):
        job(**RUNS[job], mixed_precision=False)


HOME_SETTINGS = [
    (
        PipelineSettings,
        {"train_file": ["~/a.csv", "owner/name"], "output_dir": "~", "model": "~/m", "label_column": "~/x"},
    ),
    (LanguageModelJob, {"train_file": ["~/a.csv"], "output_dir": "~/o", "validation_file": "~/v.csv"}),
    (ImageSettings, {"train_images": "~/ants", "output_dir": "~/o"}),
    (PredictFileSettings, {"model": "awd-lstm-en", "input_file": ["~/a.csv"], "output_file": "~/p.csv"}),
    (ShowFiltersSettings, {"before": "~/b", "after": "~/a", "output_dir": "./~", "images": ["~/1.png"]}),
]


@pytest.mark.parametrize(("settings_class", "given"), HOME_SETTINGS)
@pytest.mark.parametrize("way", ["python", "yaml", "command line"])
def test_a_tilde_is_the_home_folder_in_every_path_and_nowhere_else(settings_class, given, way, monkeypatch, tmp_path):
    home = {"~": "/home/me", "~/x": "~/x", "owner/name": "owner/name", "awd-lstm-en": "awd-lstm-en", "./~": "./~"}
    monkeypatch.setenv("HOME", "/home/me")
    if way == "python":
        settings = settings_class(**given)
    elif way == "yaml":
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(given))
        settings = load_settings(settings_class, tmp_path / "s.yaml")
    else:
        words = [
            (f"--{name}", text)
            for name, value in given.items()
            for text in ([value] if isinstance(value, str) else value)
        ]
        settings = parse_settings(settings_class, [part for pair in words for part in pair], description="")
    for name, value in given.items():
        texts = [value] if isinstance(value, str) else value
        expected = [home.get(text, text.replace("~", "/home/me")) for text in texts]
        found = getattr(settings, name)
        assert ([found] if isinstance(found, str) else found) == expected, name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_an_output_that_is_a_pipe_or_a_device_is_refused_before_any_work(tmp_path):
    os.mkfifo(tmp_path / "out.csv")
    os.symlink(tmp_path / "out.csv", tmp_path / "link.csv")
    known = {"model": "awd-lstm-en", "input_file": "in.csv"}
    for name, kind in ((tmp_path / "out.csv", "a pipe"), (tmp_path / "link.csv", "a pipe"), ("/dev/null", "a device")):
        with pytest.raises(ValueError, match=f"output_file {name} is {kind}; what is written is complete or absent"):
            PredictFileSettings(**known, output_file=str(name))
        with pytest.raises(ValueError, match=f"output_dir {name} is {kind}; .*: give a name for one"):
            PipelineSettings(train_file=["t.csv"], output_dir=str(name))
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        with pytest.raises(ValueError, match=f"output_file {name} is a stream of this process; what is written is com"):
            PredictFileSettings(**known, output_file=name)
    for name in ("/dev/stdout.csv", "/dev/fdx", str(tmp_path)):
        assert PredictFileSettings(**known, output_file=name).output_file == name


NO_PATHS = {"skip_bad_images", "max_train_images"}


def test_every_path_setting_is_known_as_one():
    """A new setting that reads like a path has to be on the list, or ~ would make a folder of that name."""
    import ulmfit_pipe

    for name in ulmfit_pipe.__all__:
        made = getattr(ulmfit_pipe, name)
        if dataclasses.is_dataclass(made) and (name.endswith(("Settings", "Job"))):
            names = {field.name for field in dataclasses.fields(made)}
            paths = {each for each in names if each.endswith(("_file", "_dir", "_images"))} - NO_PATHS
            assert paths <= PATH_SETTINGS, name
            checks = [
                vars(each)["__post_init__"].__qualname__ for each in made.__mro__ if "__post_init__" in vars(each)
            ]
            assert not paths or any("with_home_paths" in check for check in checks), name


def test_a_tilde_without_a_home_folder_is_refused(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a number without a name
    with pytest.raises(ValueError, match="~/o has no meaning here: this user has no home folder .set HOME, or write"):
        LanguageModelJob(train_file=["a.csv"], output_dir="~/o")
    assert home_path("~nobody/x") == "~nobody/x"


def test_a_tilde_is_the_home_folder_for_functions_too(monkeypatch, tmp_path, tiny_classifier_folder):
    monkeypatch.setenv("HOME", str(tiny_classifier_folder.parent))
    name = tiny_classifier_folder.name
    assert resolve_model(f"~/{name}") == str(tiny_classifier_folder)
    assert TextPipeline(f"~/{name}").model == str(tiny_classifier_folder)
    assert TextPipeline.load(Path(f"~/{name}")).predict(["a"])
    (tmp_path / "t.csv").write_text("text,label\na,x\nb,y\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_table("~/t.csv")) == len(load_table([Path("~/t.csv")])) == 2


def test_settings_as_they_are_kept_hold_in_any_folder_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/config.json").write_text("{}")
    (tmp_path / "awd-lstm-en").mkdir()  # a run's folder of that name: not what the built-in name means
    given = {"train_file": ["train.csv", "owner/name", "/abs.csv"], "output_dir": "runs/a", "label_column": "train.csv"}
    kept = with_absolute_paths(PipelineSettings(**given, model="lm", model_backward="awd-lstm-en"))
    assert kept.train_file == [f"{tmp_path}/train.csv", "owner/name", "/abs.csv"]
    assert (kept.output_dir, kept.label_column) == (f"{tmp_path}/runs/a", ["train.csv"])
    assert (kept.model, kept.model_backward) == (f"{tmp_path}/lm", "awd-lstm-en")
    assert kept.label_names is None
    (tmp_path / "names.json").write_text('{"0": "neg"}')
    (tmp_path / "imdb").mkdir()
    for names, as_kept in (("names.json", f"{tmp_path}/names.json"), ('{"0": "a"}', '{"0": "a"}'), ("x.csv", "x.csv")):
        assert with_absolute_paths(PipelineSettings(**given, label_names=names)).label_names == as_kept
    parts = {"train_file": ["imdb:train", "a/b:train"], "test_file": "imdb:test", "output_dir": "runs/a"}
    kept = with_absolute_paths(PipelineSettings(**parts))
    assert kept.train_file == [f"{tmp_path}/imdb:train", "a/b:train"]
    assert kept.test_file == f"{tmp_path}/imdb:test"
    assert report_line(Path("a/r.html")) == f"report: a/r.html (it and the paths below are seen from {tmp_path})"
    assert report_line(tmp_path / "r.html") == f"report: {tmp_path}/r.html"


@pytest.mark.parametrize("path", ["a\0b", Path("a\0b")])
def test_a_path_with_a_nul_character_is_refused(path):
    with pytest.raises(ValueError, match=re.escape(r"a path cannot hold a NUL character, got 'a\x00b'; write it with")):
        home_path(path)
    with pytest.raises(ValueError, match="a path cannot hold a NUL character"):
        PredictFileSettings(model="m", input_file=["in.csv"], output_file=path)


@pytest.mark.parametrize(("settings_class", "given"), HOME_SETTINGS)
@pytest.mark.parametrize("way", ["python", "yaml", "command line"])
def test_an_empty_path_or_model_is_refused_by_its_setting(settings_class, given, way, tmp_path):
    fields = {each.name for each in dataclasses.fields(settings_class)}
    for name in sorted(fields & PATH_SETTINGS):
        for blank in ("", " "):
            settings = {**given, name: [blank] if isinstance(given.get(name), list) else blank}
            with pytest.raises(ValueError, match=rf"{name} is empty, got '{blank}'; give a name, or leave {name} out$"):
                if way == "python":
                    settings_class(**settings)
                elif way == "yaml":
                    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
                    load_settings(settings_class, tmp_path / "s.yaml")
                else:
                    texts = {name: [value] if isinstance(value, str) else value for name, value in settings.items()}
                    words = [part for name, each in texts.items() for text in each for part in (f"--{name}", text)]
                    parse_settings(settings_class, words, description="")


def test_an_empty_path_or_model_is_refused_by_functions_too():
    words = "the name of a file, folder or model is empty, got '.*'; give one, or leave it out"
    for use in (home_path, resolve_model, TextPipeline, TextPipeline.load):
        for blank in ("", "\n"):
            with pytest.raises(ValueError, match=words):
                use(blank)


# Weights of classes


def test_weights_of_classes_are_read_from_a_file_the_command_line_and_python(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("classifier:\n  class_weights: {spam: 3, 1: 0.5}\n")
    needed = ["--train_file", "t.csv", "--output_dir", "runs/x"]
    from_file = parse_settings(PipelineSettings, [*needed, "--config", str(file)], description="")
    given = parse_settings(
        PipelineSettings, [*needed, "--classifier.class_weights", '{"spam": 3, "1": 0.5}'], description=""
    )
    in_python = ClassifierSettings(class_weights={"spam": 3, 1: 0.5})
    wanted = {"spam": 3.0, "1": 0.5}
    assert from_file.classifier.class_weights == given.classifier.class_weights == in_python.class_weights == wanted
    file.write_text(settings_to_yaml(given))
    assert load_settings(PipelineSettings, file) == given


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"spam": 0}, "class_weights of 'spam' must be a number above 0, got 0; 1 is what a class that is not named"),
        ({"spam": float("inf")}, "class_weights of 'spam' must be a number above 0, got inf"),
        ({}, "class_weights is an empty mapping; name a class, {spam: 3}, or leave it out"),
        (
            {"spam": "3"},
            "class_weights must be one of none, balanced or a mapping of names, each a number, got {'spam'",
        ),
        ("balance", "class_weights must be one of none, balanced, got 'balance'; did you mean 'balanced'?"),
    ],
)
def test_weights_that_no_training_can_use_are_refused(weights, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ClassifierSettings(class_weights=weights)
