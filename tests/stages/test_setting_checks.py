"""Checks of settings: closed lists, whole numbers, numbers above zero."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ulmfit_pipe import (
    ImageSettings,
    LanguageModelJob,
    PipelineSettings,
    PredictFileSettings,
    ShowFiltersSettings,
    TextPipeline,
    load_table,
    parse_settings,
)
from ulmfit_pipe.stages.model_names import resolve_model
from ulmfit_pipe.stages.report import report_line
from ulmfit_pipe.stages.setting_checks import (
    PATH_SETTINGS,
    check_above_zero,
    check_choices,
    check_whole,
    home_path,
    with_absolute_paths,
)
from ulmfit_pipe.stages.settings import load_settings


@dataclass(frozen=True)
class Numbers:
    plan: Literal["full", "head"] = "full"
    monitor: Literal["loss", "accuracy"] | None = None
    epochs: int | None = None
    rows: int = 5
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
            assert not paths or "with_home_paths" in made.__post_init__.__qualname__, name


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
    assert (kept.output_dir, kept.label_column) == (f"{tmp_path}/runs/a", "train.csv")
    assert (kept.model, kept.model_backward) == (f"{tmp_path}/lm", "awd-lstm-en")
    assert report_line(Path("a/r.html")) == f"report: a/r.html (it and the paths below are seen from {tmp_path})"
    assert report_line(tmp_path / "r.html") == f"report: {tmp_path}/r.html"
