"""Checks of settings: closed lists, whole numbers, numbers above zero."""

from dataclasses import dataclass
from typing import Literal

import pytest

from ulmfit_pipe.stages.setting_checks import check_above_zero, check_choices, check_whole


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
