"""Learning-rate schedules: pure curves from a step to the factor that multiplies each group's base rate.

Every curve takes `step` and `total_steps` (both count optimizer steps), sampled **before** the batch: steps
run from 0 to `total_steps - 1`; `step == total_steps` is allowed for drawing the end of the curve.
Factors lie in (0, 1] for every step that trains, whatever `total_steps >= 1` is. `Schedule` at the bottom
names one curve with its options, for plans, tables and saved runs; a curve needs no model and no optimizer.
"""

from __future__ import annotations

import difflib
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WHOLE = 1e-9  # a product such as 100 * 0.29 = 28.999999999999996 counts as the whole number it stands for


def slanted_triangular(step: int, total_steps: int, *, cut_frac: float = 0.1, ratio: float = 32) -> float:
    """Rise fast to 1, then fall slowly to `1 / ratio`.

    The paper's formula wherever it is defined (`total_steps * cut_frac` whole and at least 1). Elsewhere the
    peak is at `cut = max(1, floor(total_steps * cut_frac))` and the fall ends at `total_steps`; a run of one
    step trains at the full rate.

    Args:
        step: Optimizer steps already made.
        total_steps: Optimizer steps of the whole run.
        cut_frac: Share of the steps that rise, in (0, 1).
        ratio: How much smaller the lowest rate is than the highest, above 1.

    Returns:
        Factor in [1 / ratio, 1].

    Raises:
        ValueError: A step outside the run, or an option outside its range.

    Source: Howard & Ruder 2018, section 3.2, equation 3.
    """
    step, total_steps = _checked_steps(step, total_steps)
    _check_open_unit("cut_frac", cut_frac, hint="0.1 is the paper's value")
    if not _is_number(ratio) or ratio <= 1:
        raise ValueError(f"ratio must be a finite number above 1, got {ratio!r}; 32 is the paper's value")
    if total_steps == 1:
        return 1.0
    cut = min(max(1, math.floor(total_steps * cut_frac + WHOLE)), total_steps - 1)
    height = step / cut if step < cut else 1 - (step - cut) / (total_steps - cut)
    return (1 + height * (ratio - 1)) / ratio


def one_cycle(
    step: int, total_steps: int, *, pct_start: float = 0.25, div: float = 25.0, div_final: float = 1e5
) -> float:
    """Rise along a cosine from `1 / div` to 1, then fall along a cosine to `1 / div_final`.

    Args:
        step: Optimizer steps already made.
        total_steps: Optimizer steps of the whole run.
        pct_start: Share of the run that rises, in (0, 1).
        div: The peak over the first rate, at least 1.
        div_final: The peak over the rate that the curve ends at, at least 1. The last step is sampled at
            `(total_steps - 1) / total_steps`, so that rate itself is never used.

    Returns:
        Factor in (0, 1].

    Raises:
        ValueError: A step outside the run, or an option outside its range.

    Source: fastai 2.8 `fit_one_cycle`, after Smith 2018, "A disciplined approach to neural network
    hyper-parameters".
    """
    step, total_steps = _checked_steps(step, total_steps)
    _check_open_unit("pct_start", pct_start, hint="0.25 is fastai's value")
    _check_divisor("div", div, hint="25 is fastai's value")
    _check_divisor("div_final", div_final, hint="1e5 is fastai's value")
    return _up_and_down(step / total_steps, pct_start, 1 / div, 1.0, 1 / div_final)


def one_cycle_momentum(
    step: int,
    total_steps: int,
    *,
    pct_start: float = 0.25,
    moms: tuple[float, float, float] = (0.8, 0.7, 0.8),
) -> float:
    """The first Adam coefficient (beta1) that goes with `one_cycle`: low where the learning rate is high.

    Args:
        step: Optimizer steps already made.
        total_steps: Optimizer steps of the whole run.
        pct_start: As in `one_cycle`.
        moms: beta1 at the start, at the learning rate's peak and at the end, each in [0, 1).

    Returns:
        beta1 for this step.

    Raises:
        ValueError: A step outside the run, or an option outside its range.

    Source: fastai 2.8 `fit_one_cycle`.
    """
    step, total_steps = _checked_steps(step, total_steps)
    _check_open_unit("pct_start", pct_start, hint="0.25 is fastai's value")
    _check_moms(moms)
    return _up_and_down(step / total_steps, pct_start, *moms)


def flat_cosine(step: int, total_steps: int, *, pct_start: float = 0.75, div_final: float = 1e5) -> float:
    """Stay at 1, then fall along a cosine to `1 / div_final`.

    Args:
        step: Optimizer steps already made.
        total_steps: Optimizer steps of the whole run.
        pct_start: Share of the run that stays flat, in [0, 1); 0 is a plain cosine.
        div_final: The flat rate over the rate that the curve ends at, at least 1.

    Returns:
        Factor in (0, 1].

    Raises:
        ValueError: A step outside the run, or an option outside its range.

    Source: fastai 2.8 `fit_flat_cos`.
    """
    step, total_steps = _checked_steps(step, total_steps)
    _check_half_open_unit("pct_start", pct_start, hint="0.75 is fastai's value, 0 is a plain cosine")
    _check_divisor("div_final", div_final, hint="1e5 is fastai's value")
    return _up_and_down(step / total_steps, pct_start, 1.0, 1.0, 1 / div_final)


def linear_warmup(step: int, total_steps: int, *, warmup_frac: float = 0.1, floor: float = 0.0) -> float:
    """Rise linearly to 1 over the first steps, then fall linearly towards `floor` at the end.

    The rise starts one notch above zero and the fall reaches `floor` only at `step == total_steps`: no
    step is spent at a rate of 0.

    Args:
        step: Optimizer steps already made.
        total_steps: Optimizer steps of the whole run.
        warmup_frac: Share of the steps that rise, in [0, 1); rounded down to whole steps.
        floor: Factor that both ends of the curve approach, in [0, 1).

    Returns:
        Factor in (0, 1] (0 only for drawing, at `step == total_steps` with `floor` 0).

    Raises:
        ValueError: A step outside the run, or an option outside its range.

    Source: Devlin et al. 2019 (BERT), appendix A.2: warm-up, then linear decay.
    """
    step, total_steps = _checked_steps(step, total_steps)
    _check_half_open_unit("warmup_frac", warmup_frac, hint="0.1 is usual, 0 is no warm-up")
    _check_half_open_unit("floor", floor, hint="0 falls to nothing at the end")
    warmup = min(math.floor(total_steps * warmup_frac + WHOLE), total_steps - 1)
    height = (step + 1) / (warmup + 1) if step < warmup else (total_steps - step) / (total_steps - warmup)
    return floor + (1 - floor) * height


def constant(step: int, total_steps: int) -> float:
    """Stay at 1 for the whole run.

    Raises:
        ValueError: A step outside the run.
    """
    _checked_steps(step, total_steps)
    return 1.0


def exponential_sweep(step: int, num_steps: int, *, start_lr: float, end_lr: float) -> float:
    """The learning rate (not a factor) at one step of a learning-rate finder's sweep.

    Args:
        step: Batches already seen.
        num_steps: Batches of the whole sweep; `end_lr` is reached at `step == num_steps`.
        start_lr: First rate, above 0.
        end_lr: Last rate, above `start_lr`.

    Returns:
        `start_lr * (end_lr / start_lr) ** (step / num_steps)`. Divided by `end_lr` it is a factor in (0, 1],
        for groups whose rates keep their proportions during the sweep.

    Raises:
        ValueError: A step outside the sweep, or rates that are not `0 < start_lr < end_lr`.

    Source: Smith 2017, "Cyclical learning rates"; the spacing is fastai 2.8's `LRFinder`.
    """
    step, num_steps = _checked_steps(step, num_steps)
    if not (_is_number(start_lr) and _is_number(end_lr) and 0 < start_lr < end_lr):
        raise ValueError(
            f"a sweep needs 0 < start_lr < end_lr, got start_lr={start_lr!r} and end_lr={end_lr!r}; "
            "1e-7 and 10 are the usual ends"
        )
    return start_lr * (end_lr / start_lr) ** (step / num_steps)


CURVES: dict[str, Callable[..., float]] = {
    "slanted_triangular": slanted_triangular,
    "one_cycle": one_cycle,
    "flat_cosine": flat_cosine,
    "linear_warmup": linear_warmup,
    "constant": constant,
}
TITLES = {"one_cycle": "one-cycle", "flat_cosine": "flat cosine", "linear_warmup": "linear with warm-up"}
ALWAYS_TOLD = ("cut_frac", "ratio", "pct_start", "div", "warmup_frac")  # others only where not the default


@dataclass(frozen=True)
class Schedule:
    """One of the curves above by name, with its options; `Schedule.one_cycle(pct_start=0.3)` builds one.

    Attributes:
        name: A key of `CURVES`.
        options: The curve's keyword options as sorted pairs, defaults filled in; a mapping is accepted. For
            `one_cycle` also `moms` (see `one_cycle_momentum`); `moms=None` leaves beta1 alone.

    Raises:
        ValueError: An unknown name or option (the nearest one is named), or an option outside its range.
    """

    name: str
    options: Any = ()

    def __post_init__(self) -> None:
        """Fill in the defaults and try the curve once, so that a wrong number fails where it was written."""
        if self.name not in CURVES:
            raise ValueError(_unknown("schedule", self.name, CURVES))
        pairs: Iterable[tuple[str, Any]]
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        merged = _default_options(self.name)
        for option, value in pairs:
            if option not in merged:
                raise ValueError(_unknown(f"option of schedule {self.name!r}", option, merged))
            merged[option] = tuple(value) if isinstance(value, list) else value
        object.__setattr__(self, "options", tuple(sorted(merged.items())))
        self.factor(0, 1)
        self.momentum(0, 1)

    def factor(self, step: int, total_steps: int) -> float:
        """What to multiply every group's base learning rate by at this step; in (0, 1]."""
        options = {name: value for name, value in self.options if name != "moms"}
        return CURVES[self.name](step, total_steps, **options)

    def momentum(self, step: int, total_steps: int) -> float | None:
        """Adam's beta1 at this step, or None where the schedule leaves it alone."""
        options = dict(self.options)
        if options.get("moms") is None:
            return None
        return one_cycle_momentum(step, total_steps, pct_start=options["pct_start"], moms=options["moms"])

    def describe(self) -> str:
        """The schedule in a few words for a table: `one-cycle, pct_start 0.25, div 25`."""
        defaults = _default_options(self.name)
        options = dict(self.options)
        told = [name for name in defaults if name in ALWAYS_TOLD or options[name] != defaults[name]]
        title = TITLES.get(self.name, self.name.replace("_", " "))
        return ", ".join([title, *(f"{name} {_in_words(options[name])}" for name in told)])

    def to_dict(self) -> dict[str, Any]:
        """The schedule as plain JSON values, `from_dict` reads it back."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options}
        return {"name": self.name, "options": options}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Schedule:
        """Rebuild a schedule from `to_dict`'s record.

        Raises:
            ValueError: The record has other keys than `name` and `options`, or they name no schedule.
        """
        if not isinstance(record, Mapping) or "name" not in record or set(record) - {"name", "options"}:
            raise ValueError(
                f"a schedule's record must look like {{'name': 'one_cycle', 'options': {{}}}}, got {record!r}"
            )
        return cls(record["name"], record.get("options", {}))

    @classmethod
    def slanted_triangular(cls, **options: Any) -> Schedule:
        """`slanted_triangular` with `cut_frac` and `ratio`."""
        return cls("slanted_triangular", options)

    @classmethod
    def one_cycle(cls, **options: Any) -> Schedule:
        """`one_cycle` with `pct_start`, `div`, `div_final` and `moms`."""
        return cls("one_cycle", options)

    @classmethod
    def flat_cosine(cls, **options: Any) -> Schedule:
        """`flat_cosine` with `pct_start` and `div_final`."""
        return cls("flat_cosine", options)

    @classmethod
    def linear_warmup(cls, **options: Any) -> Schedule:
        """`linear_warmup` with `warmup_frac` and `floor`."""
        return cls("linear_warmup", options)

    @classmethod
    def constant(cls) -> Schedule:
        """`constant`: the base rates, unchanged."""
        return cls("constant")


def _default_options(name: str) -> dict[str, Any]:
    curves = [CURVES[name], one_cycle_momentum] if name == "one_cycle" else [CURVES[name]]
    parameters = [p for curve in curves for p in inspect.signature(curve).parameters.values()]
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _unknown(what: str, given: Any, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what}: {given!r}; there {_are(allowed)}{hint}"


def _are(names: list[str]) -> str:
    return f"are {', '.join(names)}" if names else "are none"


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(_in_words(part) for part in value)
    return "none" if value is None else f"{value:g}"


def _up_and_down(position: float, peak_at: float, start: float, peak: float, end: float) -> float:
    """Two half cosines: `start` to `peak` over [0, peak_at), `peak` to `end` over [peak_at, 1]."""
    if position < peak_at:
        return _half_cosine(position / peak_at, start, peak)
    return _half_cosine((position - peak_at) / (1 - peak_at), peak, end)


def _half_cosine(position: float, start: float, end: float) -> float:
    return start + (1 + math.cos(math.pi * (1 - position))) * (end - start) / 2


def _checked_steps(step: int, total_steps: int) -> tuple[int, int]:
    try:
        step, total_steps = operator.index(step), operator.index(total_steps)
    except TypeError:
        raise TypeError(f"steps are whole numbers, got step={step!r} of total_steps={total_steps!r}") from None
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}; is the training data empty?")
    if not 0 <= step <= total_steps:
        raise ValueError(f"step must lie in [0, {total_steps}], the length of the schedule, got {step}")
    return step, total_steps


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_open_unit(name: str, value: float, *, hint: str) -> None:
    if not (_is_number(value) and 0 < value < 1):
        raise ValueError(f"{name} must lie in (0, 1), got {value!r}; {hint}")


def _check_half_open_unit(name: str, value: float, *, hint: str) -> None:
    if not (_is_number(value) and 0 <= value < 1):
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}; {hint}")


def _check_divisor(name: str, value: float, *, hint: str) -> None:
    if not (_is_number(value) and value >= 1):
        raise ValueError(f"{name} must be a finite number of at least 1, got {value!r}; {hint}")


def _check_moms(moms: tuple[float, float, float]) -> None:
    if not (isinstance(moms, tuple | list) and len(moms) == 3 and all(_is_number(m) and 0 <= m < 1 for m in moms)):
        raise ValueError(f"moms must be three numbers in [0, 1), got {moms!r}; (0.8, 0.7, 0.8) is fastai's value")
