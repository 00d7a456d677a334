"""A table of a model: each layer's class, output shape and parameters, and whether they are trainable."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ulmfit_pipe.reports.text_tables import Report
from ulmfit_pipe.training.compute.tensor_trees import tensors_of
from ulmfit_pipe.training.distributed.processes import to_device
from ulmfit_pipe.training.layer_groups import LayerGroup, train_flags_kept
from ulmfit_pipe.training.records import Task


def summarize(
    model: nn.Module, groups: Sequence[LayerGroup], task: Task, accelerator: Accelerator, *, lrs: Sequence[float]
) -> Report:
    """Return a table with a line per group and a line per layer, and totals that equal the real ones.

    Args:
        model: The bare model.
        groups: Its layer groups.
        task: Its data; one batch is run through the model for the output shapes.
        accelerator: The device.
        lrs: Learning rate of each group, shown where it trains.

    Returns:
        The table; tied parameters are counted once, where they are first named.
    """
    shapes = output_shapes(model, groups, task, accelerator)
    rows: list[tuple[str, ...]] = [("layer", "kind", "output shape", "parameters", "state", "learning rate")]
    for group, lr in zip(groups, lrs, strict=True):
        state = "frozen" if group.frozen else "trains"
        rate = "-" if group.frozen else f"{lr:.2e}"
        rows.append((f"[{group.index}] {group.name}", "group", "", f"{group.num_parameters:,}", state, rate))
        for owner, parameters in _by_owner(group).items():
            kind = type(model.get_submodule(owner)).__name__
            moving = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
            held = sum(parameter.numel() for parameter in parameters)
            state = "trains" if moving == held else "frozen" if moving == 0 else "partly"
            rate = f"{lr:.2e}" if moving else "-"
            rows.append((f"      {owner or '(model)'}", kind, shapes.get(owner, ""), f"{held:,}", state, rate))
    total = sum(group.num_parameters for group in groups)
    moving = sum(group.num_trainable for group in groups)
    tied = _tied_names(model)
    notes = [f"total {total:,} parameters: {moving:,} trainable, {total - moving:,} frozen"]
    notes += [f"tied, counted once: {' = '.join(names)}" for names in tied]
    return Report.of(rows, *notes)


def _by_owner(group: LayerGroup) -> dict[str, list[nn.Parameter]]:
    owners: dict[str, list[nn.Parameter]] = {}
    for name, parameter in group.parameters:
        owners.setdefault(name.rpartition(".")[0], []).append(parameter)
    return owners


def _tied_names(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [sorted(same) for same in names.values() if len(same) > 1]


def output_shapes(
    model: nn.Module, groups: Sequence[LayerGroup], task: Task, accelerator: Accelerator
) -> dict[str, str]:
    """Run one batch in evaluation mode and return each parameter owner's output shape, by module name.

    Random state and training flags are left as they were.
    """
    shapes: dict[str, str] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = next(iter(tensors_of(output).values()), None)
            if tensor is not None:
                shapes.setdefault(name, str(tuple(tensor.shape)))

        return hook

    owners = {owner for group in groups for owner in _by_owner(group)}
    handles = [model.get_submodule(owner).register_forward_hook(remember(owner)) for owner in owners]
    model.to(accelerator.device)
    try:
        with train_flags_kept(model), torch.random.fork_rng(), torch.no_grad():
            model.eval()
            batch = next(iter(task.train_batches))
            task.objective(model, to_device(batch, accelerator), None)
    finally:
        for handle in handles:
            handle.remove()
    return shapes
