import math
import random

import pytest

from ulmfit_pipe.training.lr_suggestions import (
    _longest_falling,
    advise,
    minimum,
    slide,
    smooth_losses,
    steep,
    suggest,
    usable_part,
    valley,
)

LRS = [1e-7 * 1e8 ** (i / 100) for i in range(100)]


def sweep_loss(lr):
    u = math.log10(lr)
    return 2 - 1.2 / (1 + math.exp(-2.5 * (u + 3))) + 0.2 * math.exp(3 * (u + 0.6))


def fastai_longest_falling(losses):
    """fastai 2.8.12's search, word for word: length and end of the stretch it settles on."""
    n = len(losses)
    max_start, max_end = 0, 0
    lds = [1] * n
    for i in range(1, n):
        for j in range(i):
            if (losses[i] < losses[j]) and (lds[i] < lds[j] + 1):
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    return max_start + int(sections) + int(sections / 2)


# Golden values: fastai 2.8.12.


def test_suggestions_equal_the_values_fastai_gives():
    lrs, losses = usable_part(LRS, [sweep_loss(lr) for lr in LRS], num_it=100)
    assert suggest(lrs, losses) == pytest.approx(
        {"valley": 1.3182567e-4, "slide": 0.33113113e-3, "minimum": 3.9810717e-3, "steep": 8.3176378e-4}, rel=1e-6
    )


@pytest.mark.parametrize("losses", [[1.5] * 100, [1 + i * 1e-5 for i in range(100)]], ids=["constant", "rising"])
def test_constant_and_rising_curves_suggest_what_fastai_does(losses):
    suggestions = suggest(*usable_part(LRS, losses, num_it=100))
    assert suggestions["valley"] == pytest.approx(6.3095735e-7, rel=1e-6)
    assert suggestions["slide"] == pytest.approx(0.20892961, rel=1e-6)


def test_the_valley_is_the_one_fastai_finds_on_random_curves():
    generator = random.Random(3)
    for length in range(16, 60):
        losses = [generator.choice([round(generator.random(), 1), generator.random()]) for _ in range(length)]
        lrs = [1e-5 * 1.1**i for i in range(length)]
        assert valley(lrs, losses) == lrs[max(0, fastai_longest_falling(losses))]


def test_the_valley_of_a_curve_that_only_dips_at_once_is_its_first_rate():
    losses = [2.0, 1.0, *[3.0 + i for i in range(20)]]
    lrs = LRS[: len(losses)]
    assert fastai_longest_falling(losses) == -1  # fastai would return the largest rate of all
    assert valley(lrs, losses) == lrs[0]


def test_equal_losses_do_not_count_as_falling():
    assert _longest_falling([3, 3, 3]) == (1, 0)
    assert _longest_falling([3, 2, 2, 1, 5]) == (3, 3)
    assert _longest_falling([5, 9, 4, 8, 3, 7]) == (3, 4)


def test_slide_stops_where_slopes_agree():
    losses = [1.0] * 30 + [1.0 + 0.1 * i for i in range(1, 6)]  # flat, then a slope of 0.1 a point
    # right points 34..29 are on or next to the slope; the sixth pair (29, 14) is the last that differs
    assert slide(LRS[:35], losses) == LRS[14]


def test_slide_stops_at_the_start_of_the_curve():
    losses = [float(i * i) for i in range(20)]  # slopes always differ
    assert slide(LRS[:20], losses) == LRS[0]


def test_minimum_is_a_tenth_and_steep_the_left_end():
    losses = [5.0, 4.9, 2.0, 1.5, 6.0]
    lrs = [0.001, 0.01, 0.1, 1.0, 10.0]
    assert minimum(lrs, losses) == pytest.approx(0.1)
    assert steep(lrs, losses) == 0.01


def test_the_usable_part_drops_the_first_tenth_and_the_last_five():
    lrs, losses = usable_part(LRS, list(range(100)), num_it=100)
    assert (losses[0], losses[-1]) == (10, 94)
    assert lrs == LRS[10:95]
    assert usable_part(LRS[:12], list(range(12)), num_it=100) == ([], [])
    assert usable_part(LRS[:3], [1.0, 2.0, 3.0], num_it=6) == ([], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_usable_part_ends_before_the_first_loss_that_is_not_finite(bad):
    losses = [float(i) for i in range(100)]
    losses[40] = losses[60] = bad
    assert usable_part(LRS, losses, num_it=100) == (LRS[10:40], losses[10:40])


def test_smoothing_is_a_running_mean_corrected_for_its_start():
    assert smooth_losses([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth_losses([1.0, 4.0], beta=0.5) == pytest.approx([1.0, 3.0])  # (0.25 * 1 + 0.5 * 4) / 0.75
    assert smooth_losses([1.0, 4.0]) == pytest.approx([1.0, (0.98 * 0.02 + 0.02 * 4) / (1 - 0.98**2)])
    assert smooth_losses([3.0, 1.0, 7.0], beta=0) == [3.0, 1.0, 7.0]
    assert smooth_losses([]) == []


def test_a_short_curve_says_how_short_and_what_to_do():
    with pytest.raises(ValueError, match=r"has 15 usable points, suggestions need at least 16: .* larger num_steps"):
        suggest(LRS[:15], [1.0] * 15)
    with pytest.raises(ValueError, match=r"has 0 usable points.* smaller start_lr if it diverged at once"):
        suggest([], [])
    assert suggest(LRS[:16], [1.0] * 16)["slide"] == LRS[0]


def test_curves_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match=r"got 20 rates and 19 losses"):
        suggest(LRS[:20], [1.0] * 19)
    with pytest.raises(ValueError, match=r"got 3 rates and 2 losses"):
        usable_part(LRS[:3], [1.0, 1.0], num_it=6)
    with pytest.raises(ValueError, match=r"hold NaN or infinity; trim them with usable_part first"):
        suggest(LRS[:20], [1.0] * 19 + [math.nan])
    with pytest.raises(ValueError, match=r"learning rates must rise and be above 0, got 0.0 to "):
        suggest([0.0, *LRS[:19]], [1.0] * 20)
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\), got 1; 0.98 is fastai's value"):
        smooth_losses([1.0], beta=1)


def advice_on(losses):
    lrs = LRS[: len(losses)]
    return advise(lrs, losses, suggest(lrs, losses))


FALLING = [2.0 - i / 50 for i in range(50)] + [1.0 + i / 5 for i in range(10)]  # down by half, then it diverges


def test_a_good_curve_gives_the_valley_and_no_doubt():
    advice = advice_on(FALLING)
    assert (advice.name, advice.doubts) == ("valley", ())
    assert advice.why == "it is in the middle of the longest fall of the loss"


def test_the_minimum_is_taken_where_the_valley_is_nearer_to_the_divergence():
    advice = advise(LRS[:60], FALLING, {"valley": 1e-2, "minimum": 1e-3})
    assert advice.name == "minimum"
    assert advice.why == "it is a tenth of the rate with the lowest loss, and valley is nearer to the divergence"


def test_a_flat_curve_is_not_believed():
    (doubt,) = advice_on([2.0 - i / 10_000 for i in range(60)]).doubts
    assert doubt == (
        "the curve is flat, the loss falls from 2 to 1.994 only; take more steps, a larger end_lr, or the preset's "
        "rate (leave lr out)"
    )
    (rising,) = advice_on([2.0 + i / 10 for i in range(60)]).doubts
    assert rising.startswith("the curve is flat, the loss falls from 2 to 2 only; ")


def test_a_short_curve_is_not_believed():
    (doubt,) = advice_on(FALLING[:31]).doubts
    assert doubt == ("the curve is short, 31 usable points of 32 or more; take more steps or a smaller start_lr")
    assert not advice_on(FALLING[:32]).doubts


def test_a_noisy_curve_is_not_believed():
    chance = random.Random(0)
    (doubt,) = advice_on([loss + chance.uniform(-0.1, 0.1) for loss in FALLING]).doubts
    assert doubt.startswith("the curve is noisy, the smoothed loss climbs ")
    assert doubt.endswith("; take larger batches, or the preset's rate (leave lr out)")
    assert not advice_on([loss + chance.uniform(-0.005, 0.005) for loss in FALLING]).doubts
