"""Checks of settings: closed lists, whole numbers, numbers above zero."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from ulmfit_pipe import (
    ClassifierJob,
    DemoSettings,
    ImageSettings,
    LanguageModelJob,
    LearningRateJob,
    PackageSettings,
    PipelineSettings,
    RunContext,
)
from ulmfit_pipe.stages.setting_checks import (
    check_above_zero,
    check_choices,
    check_seed,
    check_types,
    check_whole,
)


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
