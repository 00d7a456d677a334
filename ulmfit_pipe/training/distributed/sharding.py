"""Sharded weights: torch's ``fully_shard`` for the time of a phase, one unit per layer group.

Each process then holds one shard of every weight, gradient and optimizer state on its device; the whole of a layer
group comes together only while it runs. The bare model stays as it is, on each process's CPU: a phase shards a copy of
it, and what trained is written back after every epoch. So unfreezing works as without sharding, and weights are saved,
compared and restored as ever. Nothing is saved in the middle of an epoch.
"""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ulmfit_pipe.training.compute.accelerator_checks import FSDP2_CONFIG, UnsupportedAcceleratorError
from ulmfit_pipe.training.distributed.agreement import check_agreement
from ulmfit_pipe.training.layer_groups import LayerGroup, split_layer_groups
from ulmfit_pipe.training.records import EpochRecord, TrainingOptions

UNEVEN = "runs_unevenly"  # attribute of a model whose layers run as often as its longest text asks for

AfterEpoch = Callable[[EpochRecord], bool] | None  # hears of every epoch; True ends the phase


def wants_sharding(accelerator: Accelerator, options: TrainingOptions) -> bool:
    """Return whether a training is to shard its weights: by its options, or because Accelerate was set up for FSDP2."""
    return accelerator.num_processes > 1 and (options.shard or bool(getattr(accelerator, "is_fsdp2", False)))


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model is sharded."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # it takes a second to load: whoever sharded a model has
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


@dataclass(frozen=True)
class PhaseModel:
    """What a phase trains: the bare model itself, or a sharded copy of it.

    Attributes:
        model: The model to train.
        groups: Its layer groups.
        bare: The bare model, which has the phase's weights after `write_back`.
    """

    model: nn.Module
    groups: Sequence[LayerGroup]
    bare: nn.Module

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the weights that train, and all buffers, into the bare model; all processes make the call."""
        if self.model is self.bare:
            return
        for unit in _units_of(self.model):
            unit.reshard()
        whole = dict(self.bare.named_parameters())
        for name, piece in self.model.named_parameters():
            if piece.requires_grad:
                whole[name].copy_(piece.full_tensor())  # type: ignore[attr-defined]
        for mine, its in zip(self.bare.buffers(), self.model.buffers(), strict=True):
            mine.copy_(its)

    def after(self, on_epoch: AfterEpoch) -> AfterEpoch:
        """Return what to call after an epoch: the weights are written back before anyone looks at them."""
        if self.model is self.bare:
            return on_epoch

        def written_back(record: EpochRecord) -> bool:
            """Write the weights back, then call the observers."""
            self.write_back()
            return on_epoch is not None and on_epoch(record)

        return written_back


@contextlib.contextmanager
def phase_model(
    model: nn.Module, groups: Sequence[LayerGroup], accelerator: Accelerator, options: TrainingOptions
) -> Iterator[PhaseModel]:
    """Return what a phase trains, on the accelerator's device: the bare model, or a sharded copy where this is wanted.

    Args:
        model: The bare model, frozen as the phase has it.
        groups: Its layer groups.
        accelerator: The processes.
        options: Whether to shard it.

    Raises:
        UnsupportedAcceleratorError: Processes would hold other weights, or wait for one another for ever.
        DisagreementError: The processes do not start from the same weights.
    """
    if not wants_sharding(accelerator, options):
        model.to(accelerator.device)
        yield PhaseModel(model, groups, model)
        return
    _check_parts(model, accelerator)
    check_agreement(model.cpu(), accelerator, where="before they shard their weights")
    sharded = copy.deepcopy(model)
    _shard(sharded, groups, accelerator)
    own = split_layer_groups(sharded, [group.prefixes for group in groups], names=[group.name for group in groups])
    yield PhaseModel(sharded, own, model)


def _check_parts(model: nn.Module, accelerator: Accelerator) -> None:
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.cpu_ram_efficient_loading:
        raise UnsupportedAcceleratorError(
            "fsdp_cpu_ram_efficient_loading gives all processes but the first empty weights, which each phase would "
            f"start from; set it to false, as {FSDP2_CONFIG} does"
        )
    if any(getattr(module, UNEVEN, False) for module in model.modules()):
        raise UnsupportedAcceleratorError(
            f"{type(model).__name__} reads a text in as many windows as it is long, so processes that hold its weights "
            "that are sharded would wait for one another; train it with plain data parallelism (it is small)"
        )


def _shard(model: nn.Module, groups: Sequence[LayerGroup], accelerator: Accelerator) -> None:
    """Shard a model's weights over the processes, in place: first its layer groups, then what is in none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for group in groups:
        parts = modules_of_group(model, group)
        if parts and parts != [model]:
            fully_shard(parts, mesh=mesh)
    fully_shard(model, mesh=mesh)


def modules_of_group(model: nn.Module, group: LayerGroup) -> list[nn.Module]:
    """Return the largest modules that hold parameters of a layer group alone, and can be run.

    Args:
        model: The model that the group is of, or a copy of it.
        group: The layer group.
    """
    held = {name for name, _ in group.parameters}
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}

    def parts(module: nn.Module) -> list[nn.Module]:
        """Return a module that holds nothing else and can be run, or those of its children that do."""
        names = {first_names[id(parameter)] for parameter in module.parameters()}
        runs = type(module).forward is not nn.Module.forward  # a list of modules does not
        if names and names <= held and runs:
            return [module]
        return [part for child in module.children() for part in parts(child)] if names & held else []

    return list(dict.fromkeys(parts(model)))


def whole_norm(norm: Any) -> float:
    """Return a gradient's norm as a number, also where it is sharded; all processes must make the call."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _units_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_sharded(module)]


@contextlib.contextmanager
def brought_together(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model's full weights for the time of a block, in which processes need not synchronize."""
    units = _units_of(model) if is_sharded(model) else []
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not model, recurse=False)
            unit.reshard()


def refuse_whole(model: nn.Module, accelerator: Accelerator, options: TrainingOptions) -> None:
    """Raise where a model that should be sharded is not, or one that is would be compiled or computed in 8 bits.

    Raises:
        UnsupportedAcceleratorError: Accelerate would shard the bare model in place, or both is asked for.
    """
    if wants_sharding(accelerator, options) and not is_sharded(model):
        raise UnsupportedAcceleratorError(
            "the training is to part its weights over the processes, and was given a whole model; hand it to fit or "
            "lr_find, which part it"
        )
    if is_sharded(model) and options.compile:
        raise UnsupportedAcceleratorError(
            "a sharded model is not compiled here: leave compile out, or train with plain data parallelism"
        )
    if is_sharded(model) and accelerator.mixed_precision == "fp8":
        raise UnsupportedAcceleratorError(
            "a sharded model does not compute in fp8 here: use mixed_precision 'bf16', or plain data parallelism"
        )
