"""Learning rates suggested by the curve of a learning-rate finder: pure functions of (lrs, losses).

`usable_part` trims the recorded curve as fastai does, `suggest` reads all suggestions off what is left, `advise` (ours)
takes one of them and says where the curve is not to be believed:

- valley: a third and a half into the longest stretch of falling losses; a safe choice, and the default elsewhere.
- slide: walks back from the divergence until the slope settles; the boldest.
- minimum: a tenth of the rate with the lowest loss.
- steep: where the loss falls fastest.

Source: fastai 2.8, `fastai/callback/schedule.py`, whose values these functions reproduce.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SMOOTHING = 0.98  # weight of the past in the running mean of the loss; fastai's Recorder
SKIPPED_AT_START = 10  # the first num_it // 10 records are still settling
SKIPPED_AT_END = 5  # the last records are past the divergence
SLIDE_INTERVAL = 15  # points between the two slopes that `slide` compares
SLIDE_TOLERANCE = 0.005  # slopes nearer than this count as equal, in loss per point
MIN_POINTS = SLIDE_INTERVAL + 1
# When a curve is not to be believed; all three are ours, from curves of the tests and of the built-in model.
FEW_POINTS = 2 * MIN_POINTS
FLAT = 0.02  # of the first loss: a fall below this is not a sign of learning
NOISY = 0.5  # of the fall: what the smoothed loss climbs on its way down


def smooth_losses(losses: Sequence[float], *, beta: float = SMOOTHING) -> list[float]:
    """Return the running mean of the losses, corrected for its start at 0.

    Args:
        losses: One loss per batch.
        beta: Weight of the past, in [0, 1).

    Returns:
        As many smoothed losses.

    Raises:
        ValueError: `beta` is out of range.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta!r}; 0.98 is fastai's value, 0 smooths nothing")
    smoothed, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = beta * mean + (1 - beta) * loss
        smoothed.append(mean / (1 - beta**count))
    return smoothed


def usable_part(lrs: Sequence[float], losses: Sequence[float], *, num_it: int) -> tuple[list[float], list[float]]:
    """Trim a recorded curve to the part that suggestions are read from.

    Leaves out the first `num_it // 10` and the last 5 records, and everything from the first loss that is not finite.

    Args:
        lrs: Learning rate of each recorded batch.
        losses: Smoothed loss of each recorded batch.
        num_it: Batches the sweep was planned for (it may have stopped earlier).

    Returns:
        Learning rates and losses, perhaps empty.

    Raises:
        ValueError: There are not as many rates as losses.
    """
    _check_pairs(lrs, losses)
    window = slice(num_it // SKIPPED_AT_START, max(0, len(losses) - SKIPPED_AT_END))
    kept_lrs, kept = list(lrs)[window], list(losses)[window]
    end = next((index for index, loss in enumerate(kept) if not math.isfinite(loss)), len(kept))
    return kept_lrs[:end], kept[:end]


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Read every suggestion off a curve that `usable_part` has trimmed.

    Args:
        lrs: Rising learning rates, all above 0.
        losses: Smoothed, finite losses.

    Returns:
        `{"valley", "slide", "minimum", "steep"}` to learning rates.

    Raises:
        ValueError: The curve is shorter than 16 points, or its numbers cannot be read.
    """
    _check_pairs(lrs, losses)
    if len(losses) < MIN_POINTS:
        raise ValueError(
            f"the loss curve has {len(losses)} usable points, suggestions need at least {MIN_POINTS}: the first "
            f"tenth of the sweep and its last {SKIPPED_AT_END} batches are left out, and it stops where the loss "
            "diverges. Run lr_find with a larger num_steps, or with a smaller start_lr if it diverged at once"
        )
    if not all(map(math.isfinite, losses)):
        raise ValueError("the losses hold NaN or infinity; trim them with usable_part first")
    if not (lrs[0] > 0 and all(low < high for low, high in zip(lrs, lrs[1:], strict=False))):
        raise ValueError(f"learning rates must rise and be above 0, got {lrs[0]!r} to {lrs[-1]!r}")
    return {name: find(lrs, losses) for name, find in SUGGESTIONS.items()}


def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Suggest the rate half-way through the second third of the longest falling stretch.

    The stretch is the longest strictly falling subsequence that ends first, taken to begin as many records before
    its end as it is long. Where that would begin before the first record, the first record's rate is returned
    (fastai wraps round to the last and largest rate).
    """
    length, end = _longest_falling(losses)
    start = end - length if end else 0
    third = (end - start) / 3
    return float(lrs[max(0, start + int(third) + int(third / 2))])


def slide(
    lrs: Sequence[float],
    losses: Sequence[float],
    *,
    interval: int = SLIDE_INTERVAL,
    tolerance: float = SLIDE_TOLERANCE,
) -> float:
    """Suggest the rate where the slope, seen from the end, comes to rest.

    Two points `interval` apart move together from the end towards the start while their slopes (by index, not by
    learning rate) differ by more than `tolerance`; the rate is that of the last left point that still differed.
    """
    slopes = np.gradient(np.asarray(losses, dtype=np.float64))
    right, left = len(losses) - 1, len(losses) - 1 - interval
    suggestion = left
    while left >= 0 and abs(slopes[right] - slopes[left]) > tolerance:
        suggestion = left
        right, left = right - 1, left - 1
    return float(lrs[suggestion])


def minimum(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Suggest a tenth of the rate with the lowest loss."""
    return float(lrs[int(np.argmin(losses))]) / 10


def steep(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Suggest the rate at which the loss falls fastest per factor of the learning rate."""
    slopes = np.diff(np.asarray(losses, dtype=np.float64)) / np.diff(np.log(np.asarray(lrs, dtype=np.float64)))
    return float(lrs[int(np.argmin(slopes))])


@dataclass(frozen=True)
class Advice:
    """Which suggestion to take.

    Attributes:
        name: Of the suggestion.
        why: The reason, as a part of a line.
        doubts: Reasons not to believe the curve at all, with what to do; empty where it is good.
    """

    name: str
    why: str
    doubts: tuple[str, ...] = ()


def advise(lrs: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float]) -> Advice:
    """Choose one of a curve's suggestions, and say where the curve is too short, too flat or too noisy for any.

    Args:
        lrs: Rising learning rates, of the part that `usable_part` has left.
        losses: Smoothed, finite losses.
        suggestions: What `suggest` found there.
    """
    name, why = "valley", "it is in the middle of the longest fall of the loss"
    if suggestions["minimum"] < suggestions["valley"]:
        name, why = "minimum", "it is a tenth of the rate with the lowest loss, and valley is nearer to the divergence"
    values = np.asarray(losses, dtype=np.float64)
    way_down = values[: int(values.argmin()) + 1]
    fall, climbed = float(way_down.max() - way_down[-1]), float(np.diff(way_down).clip(min=0).sum())
    doubts = []
    if len(values) < FEW_POINTS:
        doubts.append(
            f"the curve is short, {len(values)} usable points of {FEW_POINTS} or more; take more steps or a smaller "
            "start_lr"
        )
    if fall < FLAT * abs(float(values[0])):
        doubts.append(
            f"the curve is flat, the loss falls from {values[0]:.4g} to {values.min():.4g} only; take more steps, a "
            "larger end_lr, or the preset's rate (leave lr out)"
        )
    elif climbed > NOISY * fall:
        doubts.append(
            f"the curve is noisy, the smoothed loss climbs {climbed:.2g} on its way down by {fall:.2g}; take larger "
            "batches, or the preset's rate (leave lr out)"
        )
    return Advice(name, why, tuple(doubts))


SUGGESTIONS = {"valley": valley, "slide": slide, "minimum": minimum, "steep": steep}


def _longest_falling(losses: Sequence[float]) -> tuple[int, int]:
    """Return length and last index of the longest strictly falling subsequence that ends first.

    Patience sorting, n log n: `tails[k]` is the negated largest last loss of a falling subsequence of length k + 1.
    """
    tails: list[float] = []
    longest, end = 0, 0
    for index, loss in enumerate(losses):
        length = bisect.bisect_left(tails, -loss) + 1
        tails[length - 1 : length] = [-loss]
        if length > longest:
            longest, end = length, index
    return longest, end


def _check_pairs(lrs: Sequence[float], losses: Sequence[float]) -> None:
    if len(lrs) != len(losses):
        raise ValueError(f"every loss needs its learning rate, got {len(lrs)} rates and {len(losses)} losses")
