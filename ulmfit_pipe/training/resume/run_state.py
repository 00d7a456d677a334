"""A run's state as named tensors, and back: weights, the optimizer's moments, random generators, carried states."""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training.records import StepRecord

# ---- weights

AS_BEFORE = "build the model as it was then, or delete the folder of checkpoints to start over"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, tied ones once; a state dict would leave some buffers out."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put weights and buffers back.

    Raises:
        CheckpointError: They are another model's; the first that differs is named.
    """
    own = model_tensors(model)
    for name in sorted(own.keys() ^ tensors.keys()):
        where = "the model has none" if name in tensors else "the checkpoint has none"
        raise CheckpointError(f"the checkpoint is of another model: {name}, of which {where}; {AS_BEFORE}")
    with torch.no_grad():
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is {tuple(tensors[name].shape)} there and "
                    f"{tuple(value.shape)} in the model; {AS_BEFORE}"
                )
            value.copy_(tensors[name])


def without_ties(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a state dict with each tensor once, and the other names of those that have several."""
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, value in weights.items():
        known = first.setdefault(id(value), name)
        if known != name:
            ties[name] = known
    return {name: weights[name] for name in first.values()}, ties


def with_ties(tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the state dict that `without_ties` took apart."""
    return {**tensors, **{name: tensors[known] for name, known in ties.items()}}


# ---- the optimizer


def optimizer_tensors(optimizer: Any, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state by its kind and the parameter's name, such as ``exp_avg/head.weight``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def restore_optimizer(optimizer: Any, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the optimizer's state back; torch itself decides on which device each part belongs."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split("/", 1)
        by_name.setdefault(name, {})[kind] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
    record = inner.state_dict()
    record["state"] = {
        index: by_name[names[id(parameter)]]
        for index, parameter in enumerate(parameters)
        if names[id(parameter)] in by_name
    }
    inner.load_state_dict(record)


# ---- random generators


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """Return the states of Python's, numpy's and torch's generators, and that of the device."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    if (version, kind) != (3, "MT19937"):
        raise CheckpointError(f"random generators of unknown kind (version {version}, {kind}) cannot be saved")
    states = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([float(place), float(has_gauss), cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the random generators back; the device's only where the state is of such a device."""
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    place, has_gauss, cached = states["numpy_rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), cached))
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], device)


@contextlib.contextmanager
def random_kept(device: torch.device) -> Iterator[None]:
    """Put the random generators back after the block, also when it raises."""
    states = random_tensors(device)
    try:
        yield
    finally:
        restore_random(states, device)


def same_random(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether two states of the generators are the same: nothing was drawn between them."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# ---- what an objective carries from batch to batch


def flatten_carry(carry: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of nested tuples, lists and dictionaries by number, and their shape as JSON.

    Raises:
        CheckpointError: It holds something else than tensors and None.
    """
    tensors: dict[str, Tensor] = {}

    def outline(part: Any) -> Any:
        """Collect the tensors of a part of a state, and return the part with their indices instead."""
        if part is None:
            return None
        if isinstance(part, Tensor):
            tensors[str(len(tensors))] = part
            return len(tensors) - 1
        if isinstance(part, dict):
            return {"dict": {str(key): outline(value) for key, value in part.items()}}
        if type(part) in (tuple, list):
            return {type(part).__name__: [outline(value) for value in part]}
        raise CheckpointError(
            f"an objective carries a {type(part).__name__}, which no checkpoint can hold; carry tensors in tuples, "
            "lists or dictionaries"
        )

    return tensors, json.dumps(outline(carry))


def rebuild_carry(tensors: Mapping[str, Tensor], outline: str, device: torch.device) -> Any:
    """Return what `flatten_carry` took apart, on a device."""

    def build(part: Any) -> Any:
        """Return a part of a state with its tensors put back for their indices."""
        if part is None:
            return None
        if isinstance(part, int):
            return tensors[str(part)].to(device)
        (kind, inner), *_ = part.items()
        if kind == "dict":
            return {key: build(value) for key, value in inner.items()}
        values = [build(value) for value in inner]
        return tuple(values) if kind == "tuple" else values

    return build(json.loads(outline))


# ---- records of steps: as many as a run has steps, so no JSON


def step_tensors(steps: Sequence[StepRecord]) -> dict[str, Tensor]:
    """Return the records of steps as three tensors."""
    return {
        "step": torch.tensor([record.step for record in steps], dtype=torch.int64),
        "loss": torch.tensor([record.loss for record in steps], dtype=torch.float64),
        "lrs": torch.tensor([record.lrs for record in steps], dtype=torch.float64),
    }


def steps_from(tensors: Mapping[str, Tensor]) -> list[StepRecord]:
    """Return the records that `step_tensors` was given."""
    columns = (tensors["step"].tolist(), tensors["loss"].tolist(), tensors["lrs"].tolist())
    return [StepRecord(step, loss, tuple(lrs)) for step, loss, lrs in zip(*columns, strict=True)]
