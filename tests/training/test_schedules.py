import json
import math

import numpy as np
import pytest

from ulmfit_pipe.training.schedules import (
    CURVES,
    Schedule,
    constant,
    exponential_sweep,
    flat_cosine,
    linear_warmup,
    one_cycle,
    one_cycle_momentum,
    slanted_triangular,
)

ALL_SCHEDULES = [
    Schedule.slanted_triangular(),
    Schedule.slanted_triangular(cut_frac=1 / 3, ratio=8),
    Schedule.slanted_triangular(cut_frac=0.95),
    Schedule.one_cycle(),
    Schedule.one_cycle(pct_start=0.99, div=5),
    Schedule.flat_cosine(),
    Schedule.flat_cosine(pct_start=0),
    Schedule.linear_warmup(),
    Schedule.linear_warmup(warmup_frac=0.99, floor=0.25),
    Schedule.linear_warmup(warmup_frac=0),
    Schedule.constant(),
]


# Golden values: fastai 2.8.12 at positions 0, .1, ..., .9 of a ten-batch run. It keeps positions in
# float32, so its rates are good to about 3e-7 of the peak.


def test_one_cycle_equals_the_values_fastai_gives():
    golden = [4.000000e-4, 3.716719e-3, 9.083282e-3, 9.890739e-3, 9.045094e-3]
    golden += [7.500025e-3, 5.522687e-3, 3.454981e-3, 1.654430e-3, 4.323687e-4]
    assert [1e-2 * one_cycle(t, 10) for t in range(10)] == pytest.approx(golden, abs=3e-9)


def test_one_cycle_momentum_equals_the_values_fastai_gives():
    golden = [
        0.800000,
        0.765451,
        0.709549,
        0.701093,
        0.709549,
        0.725000,
        0.744774,
        0.765451,
        0.783457,
        0.795677,
    ]
    assert [one_cycle_momentum(t, 10) for t in range(10)] == pytest.approx(golden, abs=6e-7)


def test_a_run_that_starts_half_way_takes_the_factor_fastai_gives():
    assert one_cycle(7, 14) == pytest.approx(0.7500025, rel=1e-7)


def test_the_first_stage_of_fine_tune_equals_the_values_fastai_gives():
    golden = [8.000000e-5, 1.279317e-4, 2.669405e-4, 4.831454e-4, 7.549564e-4]
    golden += [1.055231e-3, 1.353985e-3, 1.621385e-3, 1.830729e-3, 1.961113e-3]
    assert [2e-3 * one_cycle(t, 10, pct_start=0.99) for t in range(10)] == pytest.approx(golden, abs=6e-10)


def test_flat_cosine_equals_the_values_fastai_gives():
    golden = [1e-3] * 8 + [9.045094e-4, 3.454982e-4]
    assert [1e-3 * flat_cosine(t, 10) for t in range(10)] == pytest.approx(golden, abs=3e-10)


def test_the_sweep_spaces_the_rates_as_fastai_does():
    assert exponential_sweep(0, 100, start_lr=1e-7, end_lr=10) == pytest.approx(1e-7)
    assert exponential_sweep(10, 100, start_lr=1e-7, end_lr=10) == pytest.approx(6.3095735e-7, rel=1e-7)
    assert exponential_sweep(79, 100, start_lr=1e-7, end_lr=10) == pytest.approx(0.20892961, rel=1e-7)
    assert exponential_sweep(100, 100, start_lr=1e-7, end_lr=10) == pytest.approx(10)


def test_the_slanted_triangle_equals_the_paper_where_the_paper_is_defined():
    golden = {0: 3.125e-4, 5: 5.15625e-3, 10: 1e-2, 55: 5.15625e-3, 100: 3.125e-4}
    assert {t: 1e-2 * slanted_triangular(t, 100) for t in golden} == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize(("total", "cut_frac"), [(10, 0.1), (30, 0.1), (70, 0.3), (100, 0.29), (8, 0.125), (9, 1 / 3)])
def test_the_slanted_triangle_equals_the_papers_formula_where_the_cut_is_whole(total, cut_frac):
    cut = round(total * cut_frac)
    for t in range(total + 1):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert slanted_triangular(t, total, cut_frac=cut_frac) == pytest.approx((1 + p * 31) / 32, rel=1e-9)


def test_the_slanted_triangle_is_repaired_where_the_paper_divides_by_zero():
    assert slanted_triangular(0, 1) == 1.0
    assert [slanted_triangular(t, 2) for t in range(3)] == pytest.approx([1 / 32, 1, 1 / 32])
    heights = [0, 1, 3 / 4, 2 / 4, 1 / 4, 0]  # cut 1, then a fall over the four steps that are left
    assert [slanted_triangular(t, 5) for t in range(6)] == pytest.approx([(1 + 31 * h) / 32 for h in heights])


def test_the_slanted_triangle_falls_to_the_end_where_the_cut_is_not_whole():
    heights = [0, 1, *(1 - (t - 1) / 18 for t in range(2, 20))]  # 19 * 0.1 = 1.9: cut 1, fall over 18 steps
    assert [slanted_triangular(t, 19) for t in range(20)] == pytest.approx([(1 + 31 * h) / 32 for h in heights])


def test_linear_warmup_rises_in_equal_notches_and_falls_to_its_floor():
    assert [linear_warmup(t, 10, warmup_frac=0.3) for t in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert [linear_warmup(t, 10, warmup_frac=0.3) for t in (4, 9, 10)] == pytest.approx([6 / 7, 1 / 7, 0])
    assert linear_warmup(10, 10, floor=0.2) == pytest.approx(0.2)
    assert linear_warmup(0, 10, warmup_frac=0) == 1.0


def test_constant_stays_at_one():
    assert [constant(t, 3) for t in range(4)] == [1.0, 1.0, 1.0, 1.0]


LENGTHS = range(1, 51)


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=lambda s: s.describe())
def test_factors_lie_above_zero_and_at_most_at_one_for_every_length(schedule):
    factors = {(t, total): schedule.factor(t, total) for total in LENGTHS for t in range(total)}
    wrong = {f"step {t} of {total}": f for (t, total), f in factors.items() if not (math.isfinite(f) and 0 < f <= 1)}
    assert wrong == {}
    assert [total for total in LENGTHS if not math.isfinite(schedule.factor(total, total))] == []


def test_curves_peak_where_their_options_say():
    def peak(curve, total):
        return int(np.argmax([curve(t, total) for t in range(total)]))

    for total in range(2, 51):
        assert peak(slanted_triangular, total) == max(1, total // 10), f"{total} steps"
        assert peak(linear_warmup, total) == total // 10, f"{total} steps"
        assert abs(peak(one_cycle, total) - total / 4) <= 0.5 or total == 2, f"{total} steps"
        assert peak(flat_cosine, total) == 0, f"{total} steps"


@pytest.mark.parametrize("curve", [slanted_triangular, one_cycle, linear_warmup])
def test_curves_rise_to_their_peak_and_fall_after_it(curve):
    for total in LENGTHS:
        factors = [curve(t, total) for t in range(total)]
        top = int(np.argmax(factors))
        assert factors[: top + 1] == sorted(factors[: top + 1]), f"{total} steps"
        assert factors[top:] == sorted(factors[top:], reverse=True), f"{total} steps"


def test_momentum_is_cycled_by_one_cycle_only():
    assert Schedule.one_cycle().momentum(5, 10) == pytest.approx(0.725)
    assert Schedule.one_cycle(moms=(0.95, 0.85, 0.9)).momentum(0, 10) == pytest.approx(0.95)
    assert Schedule.one_cycle(moms=None).momentum(5, 10) is None
    assert Schedule.slanted_triangular().momentum(5, 10) is None
    assert Schedule.constant().momentum(0, 1) is None


def test_a_schedule_follows_its_curve_and_its_options():
    assert Schedule.one_cycle(pct_start=0.3, div=5).factor(4, 11) == one_cycle(4, 11, pct_start=0.3, div=5)
    assert Schedule.slanted_triangular(ratio=8).factor(4, 11) == slanted_triangular(4, 11, ratio=8)
    assert Schedule("flat_cosine", {"pct_start": 0.5}).factor(9, 11) == flat_cosine(9, 11, pct_start=0.5)


def test_a_schedule_describes_itself_in_a_few_words():
    assert Schedule.one_cycle().describe() == "one-cycle, pct_start 0.25, div 25"
    assert Schedule.one_cycle(moms=None, div_final=100).describe() == (
        "one-cycle, pct_start 0.25, div 25, div_final 100, moms none"
    )
    assert Schedule.slanted_triangular(ratio=8).describe() == "slanted triangular, cut_frac 0.1, ratio 8"
    assert Schedule.linear_warmup(floor=0.5).describe() == "linear with warm-up, warmup_frac 0.1, floor 0.5"
    assert Schedule.flat_cosine().describe() == "flat cosine, pct_start 0.75"
    assert Schedule.constant().describe() == "constant"


@pytest.mark.parametrize("schedule", ALL_SCHEDULES, ids=lambda s: s.describe())
def test_a_schedule_survives_json(schedule):
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_schedules_with_the_same_options_are_equal_and_hash_alike():
    written_out = Schedule("one_cycle", {"div": 25.0, "pct_start": 0.25, "moms": [0.8, 0.7, 0.8]})
    assert written_out == Schedule.one_cycle()
    assert hash(written_out) == hash(Schedule.one_cycle())


def test_an_unknown_schedule_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown schedule: 'onecycle'; .*did you mean 'one_cycle'\?"):
        Schedule("onecycle")
    with pytest.raises(ValueError, match=r"unknown schedule: 'zzz'; there are slanted_triangular, one_cycle, "):
        Schedule("zzz")


def test_an_unknown_option_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"option of schedule 'one_cycle': 'pct_strat'.* mean 'pct_start'\?"):
        Schedule.one_cycle(pct_strat=0.3)
    with pytest.raises(ValueError, match=r"option of schedule 'constant': 'div'; there are none"):
        Schedule("constant", {"div": 3})


def test_a_record_that_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match=r"record must look like .* got \{'nme': 'one_cycle'\}"):
        Schedule.from_dict({"nme": "one_cycle"})
    with pytest.raises(ValueError, match=r"got \{'name': 'constant', 'lr': 0.1\}"):
        Schedule.from_dict({"name": "constant", "lr": 0.1})


@pytest.mark.parametrize("curve", CURVES.values())
def test_steps_outside_the_run_are_refused(curve):
    with pytest.raises(ValueError, match=r"step must lie in \[0, 7\], the length of the schedule, got 8"):
        curve(8, 7)
    with pytest.raises(ValueError, match=r"step must lie in \[0, 7\].* got -1"):
        curve(-1, 7)
    with pytest.raises(ValueError, match=r"total_steps must be at least 1, got 0; is the training data empty\?"):
        curve(0, 0)
    with pytest.raises(TypeError, match=r"steps are whole numbers, got step=0.5 of total_steps=7"):
        curve(0.5, 7)


@pytest.mark.parametrize("bad", [0, 1, 1.5, -0.1, math.nan, "0.1", None, True])
def test_shares_outside_the_open_unit_interval_are_refused(bad):
    with pytest.raises(ValueError, match=r"cut_frac must lie in \(0, 1\), got .*; 0.1 is the paper's value"):
        Schedule.slanted_triangular(cut_frac=bad)
    with pytest.raises(ValueError, match=r"pct_start must lie in \(0, 1\), got .*; 0.25 is fastai's value"):
        Schedule.one_cycle(pct_start=bad)
    with pytest.raises(ValueError, match=r"pct_start must lie in \(0, 1\)"):
        one_cycle_momentum(0, 3, pct_start=bad)


@pytest.mark.parametrize("bad", [1, -0.1, math.nan, math.inf, "0.1"])
def test_shares_outside_the_half_open_unit_interval_are_refused(bad):
    with pytest.raises(ValueError, match=r"pct_start must lie in \[0, 1\), got .* plain cosine"):
        Schedule.flat_cosine(pct_start=bad)
    with pytest.raises(ValueError, match=r"warmup_frac must lie in \[0, 1\), got .* 0 is no warm-up"):
        Schedule.linear_warmup(warmup_frac=bad)
    with pytest.raises(ValueError, match=r"floor must lie in \[0, 1\), got .* at the end"):
        Schedule.linear_warmup(floor=bad)


@pytest.mark.parametrize("bad", [0, 0.99, -3, math.nan, math.inf])
def test_divisors_and_ratios_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"ratio must be a finite number above 1, got .*; 32 is the paper's value"):
        Schedule.slanted_triangular(ratio=bad)
    with pytest.raises(ValueError, match=r"div must be a finite number of at least 1, got .*; 25 is"):
        Schedule.one_cycle(div=bad)
    with pytest.raises(ValueError, match=r"div_final must be a finite number of at least 1, got .*; 1e5 is"):
        Schedule.one_cycle(div_final=bad)
    with pytest.raises(ValueError, match=r"div_final must be a finite number of at least 1"):
        Schedule.flat_cosine(div_final=bad)


@pytest.mark.parametrize("bad", [(0.8, 0.7), (0.8, 0.7, 1.0), (0.8, -0.1, 0.8), 0.8, "abc"])
def test_momenta_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"moms must be three numbers in \[0, 1\), got .* is fastai's value"):
        Schedule.one_cycle(moms=bad)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (-1e-3, 1), (1e-2, 1e-3), (1e-3, 1e-3), (1e-7, math.inf)])
def test_a_sweep_that_does_not_rise_is_refused(start, end):
    with pytest.raises(ValueError, match=r"a sweep needs 0 < start_lr < end_lr, got start_lr=.*1e-7 and 10"):
        exponential_sweep(0, 9, start_lr=start, end_lr=end)
