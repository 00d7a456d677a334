"""Silence while we load or save, and the user's own choice before and after."""

import pytest
from transformers.utils import logging

from ulmfit_pipe.models.quiet_transformers import quiet_transformers


@pytest.fixture(autouse=True)
def own_choice():
    """Put the choice of the test process back."""
    bars, verbosity = logging._tqdm_active, logging.get_verbosity()
    yield
    logging._tqdm_active = bars
    logging.set_verbosity(verbosity)


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("verbosity", [logging.INFO, logging.WARNING, logging.CRITICAL])
def test_bars_and_verbosity_are_off_inside_and_as_before_behind(bars, verbosity):
    logging._tqdm_active = bars
    logging.set_verbosity(verbosity)
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() >= logging.ERROR
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (bars, verbosity)


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_an_error_inside_ends_the_silence_too():
    logging._tqdm_active = True
    logging.set_verbosity(logging.WARNING)
    with pytest.raises(OSError, match="gone"), quiet_transformers():
        raise OSError("gone")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (True, logging.WARNING)
