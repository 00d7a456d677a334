import pytest

from tests.support.toy_models import new_phase
from ulmfit_pipe.training.records import TrainingOptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accumulation_steps": 0}, "accumulation_steps must be 1 or more, got 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive or None, got 0.0"),
        ({"cache_memory_gib": -1.0}, "cache_memory_gib must be 0 or more, got -1.0; 0 keeps all on disk"),
        ({"cache_memory_gib": float("nan")}, "cache_memory_gib must be 0 or more, got nan"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be positive or None, got nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TrainingOptions(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "phase 'some': epochs must be 1 or more .* got epochs=0"),
        ({"epochs": -1}, "got epochs=-1"),
        ({"epochs": 1.5}, "got epochs=1.5"),
        ({"epochs": True}, "got epochs=True"),
        ({"epochs": 2, "start_epoch": 2}, r"start_epoch in 0\.\.epochs-1, got epochs=2, start_epoch=2"),
        ({"epochs": 2, "start_epoch": -1}, "start_epoch=-1"),
        ({"patience": 0}, "patience must be 1 or more or None, got 0"),
    ],
)
def test_phases_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        new_phase(3, **options)
