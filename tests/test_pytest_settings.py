"""The settings in pyproject.toml do what they say."""

import os
import warnings

import pytest


def warn_in(module: str) -> None:
    exec(compile("import warnings; warnings.warn('careless')", f"{module}.py", "exec"), {"__name__": module})


@pytest.mark.parametrize("module", ["ulmfit_pipe", "ulmfit_pipe.training.loop"])
def test_a_warning_raised_from_ulmfit_pipe_is_an_error(module):
    with pytest.raises(UserWarning, match="careless"):
        warn_in(module)


@pytest.mark.parametrize("module", ["ulmfit_pipe_plugin", "torch.nn", "tests.test_ulmfit_pipe"])
def test_a_warning_raised_elsewhere_is_only_a_warning(module):
    with pytest.warns(UserWarning, match="careless"):
        warn_in(module)


def test_a_warning_that_points_into_ulmfit_pipe_is_an_error_too():
    code = "def call(function):\n    function()\n"
    caller: dict = {"__name__": "ulmfit_pipe.text.predict.predictor"}
    exec(code, caller)
    with pytest.raises(DeprecationWarning, match="old name"):
        caller["call"](lambda: warnings.warn("old name", DeprecationWarning, stacklevel=2))


def test_tests_use_no_network_and_no_screen():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["MPLBACKEND"] == "Agg"
