"""Our curves, spreading and suggestions against stored outputs of fastai 2.8.12 (make_fastai_reference.py)."""

import json
from pathlib import Path

import pytest

from ulmfit_pipe.training.lr_suggestions import minimum, slide, steep, valley
from ulmfit_pipe.training.optim import spread_lrs
from ulmfit_pipe.training.schedules import flat_cosine, one_cycle, one_cycle_momentum

STORED = json.loads((Path(__file__).parents[1] / "reference" / "schedules.json").read_text(encoding="utf-8"))
PLACES = 3e-7  # of the peak: fastai keeps positions in float32


@pytest.mark.parametrize(
    ("stored", "curve", "peak"),
    [
        ("one_cycle_lr_max_1e-2", lambda step: one_cycle(step, 10), 1e-2),
        ("one_cycle_momentum_.8_.7_.8", lambda step: one_cycle_momentum(step, 10, moms=(0.8, 0.7, 0.8)), 1.0),
        ("fine_tune_frozen_base_2e-3", lambda step: one_cycle(step, 10, pct_start=0.99), 2e-3),
        ("flat_cosine_lr_1e-3_pct_.75", lambda step: flat_cosine(step, 10, pct_start=0.75), 1e-3),
    ],
)
def test_curves_are_fastais(stored, curve, peak):
    assert STORED["positions"] == [step / 10 for step in range(10)]
    assert [peak * curve(step) for step in range(10)] == pytest.approx(STORED[stored], abs=PLACES * peak)


@pytest.mark.parametrize(
    ("stored", "given"), [("1e-4..1e-2", slice(1e-4, 1e-2)), ("..1e-2", slice(1e-2)), ("1e-3", 1e-3)]
)
def test_rates_are_spread_as_fastai_spreads_them(stored, given):
    spread = spread_lrs(given, ["first", "second", "third"])
    assert spread == pytest.approx(STORED["lr_spread_over_3_groups"][stored], rel=1e-6)


@pytest.mark.parametrize("rule", [valley, slide, minimum, steep], ids=lambda rule: rule.__name__)
def test_suggestions_are_fastais(rule):
    sweep = STORED["lr_find"]
    assert rule(sweep["lrs"], sweep["losses"]) == pytest.approx(sweep["suggestions"][rule.__name__], rel=1e-6)


@pytest.mark.parametrize("rule", [valley, slide], ids=lambda rule: rule.__name__)
def test_suggestions_on_a_rising_line_are_fastais(rule):
    sweep = STORED["lr_find"]
    rising = [float(index) for index in range(len(sweep["lrs"]))]
    stored = sweep["suggestions_on_a_rising_line"][rule.__name__]
    assert rule(sweep["lrs"], rising) == pytest.approx(stored, rel=1e-6)
