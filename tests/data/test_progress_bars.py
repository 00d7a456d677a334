import sys

import datasets
import pytest

from ulmfit_pipe.data.progress_bars import bars_on_a_terminal_only


@pytest.fixture
def bars_on():
    """Switch the bars on for a test, whatever they were."""
    off = datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    yield
    if off:
        datasets.disable_progress_bars()


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_shown_on_a_terminal_only_and_afterwards_as_before(terminal, bars_on, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(ZeroDivisionError), bars_on_a_terminal_only():
        assert datasets.are_progress_bars_disabled() is not terminal
        raise ZeroDivisionError
    assert not datasets.are_progress_bars_disabled()


def test_bars_that_were_off_stay_off(bars_on, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    datasets.disable_progress_bars()
    with bars_on_a_terminal_only():
        pass
    assert datasets.are_progress_bars_disabled()
