"""Learning rates by layer group, and the one optimizer that serves a whole phase.

Every layer group is in the optimizer from step 0, frozen or not: a group without gradients is left alone by torch,
and nothing has to be added later. Inside each group the parameters are split into decayed and undecayed ones.

Source: Howard & Ruder 2018, section 3.2; fastai's spreading of ``slice``; torch's AdamW with a cycled beta1
reproduces fastai's Adam to 3e-8.
"""

import difflib
import math
import numbers
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ulmfit_pipe.training.layer_groups import LayerGroup, is_norm

LR_DECAY = 2.6  # ratio between neighbouring groups, ULMFiT section 3.2
SLICE_RATIO = 10.0  # slice(hi) gives every group but the last hi / 10, fastai 2.8 optimizer.py

LearningRates = float | slice | Sequence[float] | Mapping[str, float]


def discriminative_lrs(lr: float, num_groups: int, *, decay: float = LR_DECAY) -> list[float]:
    """Return the paper's ladder: the last group gets ``lr``, each group below it ``decay`` times less.

    Args:
        lr: Learning rate of the last group.
        num_groups: Number of layer groups.
        decay: Ratio between neighbours.

    Raises:
        ValueError: ``lr`` or ``decay`` is not positive and finite, or there is no group.
    """
    _check_rate(lr)
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups!r}")
    if not (math.isfinite(decay) and decay > 0):
        raise ValueError(f"decay must be positive, got {decay!r}; {LR_DECAY} is the paper's value")
    return [lr / decay ** (num_groups - 1 - index) for index in range(num_groups)]


def _check_rate(lr: object, where: str = "") -> None:
    if isinstance(lr, bool) or not isinstance(lr, numbers.Real) or not math.isfinite(lr) or lr <= 0:
        raise ValueError(f"a learning rate must be a positive number, got {lr!r}{where}; 1e-3 is a common start")


def spread_lrs(lr: LearningRates, names: Sequence[str]) -> list[float]:
    """Spread what a user gives as a learning rate over the layer groups.

    Args:
        lr: One number (all groups alike), ``slice(lo, hi)`` (geometric, lo at the input), ``slice(hi)`` (hi for the
            last group, hi / 10 for the others), a sequence (one number per group), or a mapping from group name to
            number (every group named).
        names: Names of the layer groups, input side first.

    Returns:
        One learning rate per group.

    Raises:
        ValueError: A rate is not positive, or their number or names do not fit the groups.
    """
    count = len(names)
    if isinstance(lr, slice):
        return _spread_slice(lr, count)
    if isinstance(lr, Mapping):
        return _spread_mapping(lr, names)
    if isinstance(lr, Sequence) and not isinstance(lr, str):
        if len(lr) != count:
            raise ValueError(
                f"got {len(lr)} learning rates for {count} layer groups ({', '.join(names)}); give one per group"
            )
        for index, rate in enumerate(lr):
            _check_rate(rate, f" for layer group {names[index]}")
        return [float(rate) for rate in lr]
    _check_rate(lr)
    return [float(lr)] * count  # type: ignore[arg-type]


def _spread_slice(lr: slice, count: int) -> list[float]:
    if lr.step is not None:
        raise ValueError(f"a slice of learning rates has a start and a stop only, got {lr!r}")
    _check_rate(lr.stop, " as the end of the slice")
    high = float(lr.stop)
    if not lr.start:
        return [high / SLICE_RATIO] * (count - 1) + [high]
    _check_rate(lr.start, " as the start of the slice")
    low = float(lr.start)
    if count == 1:
        return [high]
    return [low * (high / low) ** (index / (count - 1)) for index in range(count)]


def _spread_mapping(lr: Mapping[str, float], names: Sequence[str]) -> list[float]:
    for name in lr:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
            raise ValueError(f"no layer group is called {name!r}; did you mean {near[0]!r}? There are {list(names)}")
    missing = [name for name in names if name not in lr]
    if missing:
        raise ValueError(f"no learning rate given for layer groups {missing}; name every group: {list(names)}")
    for name, rate in lr.items():
        _check_rate(rate, f" for layer group {name}")
    return [float(lr[name]) for name in names]


def decay_split(group: LayerGroup) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a group's parameters into decayed and undecayed ones.

    Undecayed: everything a norm layer owns, and every bias, those of LSTMs (``bias_ih_l0``) included.
    """
    owners = dict(group.modules)
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in group.parameters:
        owner_name, _, leaf = name.rpartition(".")
        owner = owners.get(owner_name)
        plain = (owner is not None and is_norm(owner)) or "bias" in leaf
        (undecayed if plain else decayed).append(parameter)
    return decayed, undecayed


def build_optimizer(
    groups: Sequence[LayerGroup],
    lrs: Sequence[float],
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-5,
    decoupled: bool = True,
) -> torch.optim.Optimizer:
    """Build Adam over all layer groups, each with its own base learning rate.

    Each torch parameter group has ``layer_group`` (index) and ``base_lr``; a schedule multiplies the latter.

    Args:
        groups: Layer groups, input side first.
        lrs: One base learning rate per group.
        weight_decay: Decay of the decayed half of each group.
        betas: Adam's running-average coefficients.
        eps: Added to the root of the second moment; 1e-5 is fastai's value.
        decoupled: True for AdamW, False for Adam with L2 in the gradient (the paper's 2018 code).

    Raises:
        ValueError: A rate is not positive or their number does not fit, or another number is out of range.
    """
    if len(lrs) != len(groups):
        raise ValueError(f"got {len(lrs)} learning rates for {len(groups)} layer groups; give one for each group")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be 0 or more, got {weight_decay!r}; 0.01 is the default")
    parameter_groups = []
    for group, lr in zip(groups, lrs, strict=True):
        _check_rate(lr, f" for layer group {group.name}")
        for parameters, decay in zip(decay_split(group), (weight_decay, 0.0), strict=True):
            if parameters:
                parameter_groups.append(
                    {
                        "params": parameters,
                        "lr": lr,
                        "base_lr": lr,
                        "layer_group": group.index,
                        "weight_decay": decay,
                    }
                )
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    # torch's default on a CPU goes over the weights tensor by tensor, six times slower; elsewhere its default is fast,
    # and a fused step would hide from accelerate that an overflow skipped it
    on_cpu = all(parameter.device.type == "cpu" for group in groups for _, parameter in group.parameters)
    return kind(parameter_groups, betas=betas, eps=eps, fused=True if on_cpu else None)


def set_schedule_point(optimizer: torch.optim.Optimizer, factor: float, momentum: float | None) -> None:
    """Set every learning rate to ``base_lr * factor``, and beta1 where the schedule cycles it."""
    for parameter_group in optimizer.param_groups:
        parameter_group["lr"] = parameter_group["base_lr"] * factor
        if momentum is not None:
            parameter_group["betas"] = (momentum, parameter_group["betas"][1])
