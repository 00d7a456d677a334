"""What every test of the training core gets: an accelerator of its own, on the CPU."""

from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState


def _forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def no_garbage_collection_between_phases(quick_ends_of_phases: None) -> None:
    """Spend no more time on the end of a phase than on training a toy."""


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps device and precision for the whole process; each test starts and ends without them."""
    _forget_accelerate()
    yield
    _forget_accelerate()


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)
