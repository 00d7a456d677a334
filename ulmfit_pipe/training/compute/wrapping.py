"""One phase is one prepare: a bare model is wrapped for the time of a phase, and every wrapper is taken off again.

The only file that hands anything to ``accelerator.prepare``. Data-parallel wrappers do not see parameters that are
unfrozen after wrapping, compiled code is made for what is frozen when it is made, and what need not be run again in the
backward pass depends on it too: so each phase wraps the bare model afresh.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.checkpoint import checkpoint

from ulmfit_pipe.training.compute.accelerator_checks import check_accelerator, check_parameters_kept
from ulmfit_pipe.training.compute.precision import tf32_allowed
from ulmfit_pipe.training.compute.process_memory import keep_freed_memory
from ulmfit_pipe.training.compute.tensor_trees import tensors_of
from ulmfit_pipe.training.distributed.global_norms import global_batch_norms
from ulmfit_pipe.training.distributed.processes import settle_at_exit
from ulmfit_pipe.training.distributed.sharding import is_sharded, refuse_whole
from ulmfit_pipe.training.layer_groups import is_norm
from ulmfit_pipe.training.records import TrainingOptions

EAGER = "runs_eagerly"  # attribute by which a module asks not to be compiled
SWITCH, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"  # transformers' names


@contextlib.contextmanager
def prepared(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    options: TrainingOptions | None = None,
) -> Iterator[tuple[nn.Module, Any]]:
    """Wrap a bare model and its optimizer for one phase, and take every wrapper off again.

    The bare model's own ``forward`` is put back by hand: accelerate's unwrapping also strips decorators that belong
    to the model, and leaves an attribute by which the next phase would run without mixed precision.

    Args:
        model: The bare model, or the sharded copy that `sharding.phase_model` made of it.
        optimizer: Over its parameters.
        accelerator: Device, precision and processes.
        options: TF32, gradient checkpointing and compilation are taken from it; none of them by default.

    Raises:
        UnsupportedAcceleratorError: The accelerator is set up in a way that this loop would train wrongly with.
        ValueError: The model's layers cannot be run again, or it is to be compiled and is sharded.
    """
    options = options or TrainingOptions()
    check_accelerator(accelerator)
    settle_at_exit(accelerator)
    refuse_whole(model, accelerator, options)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    own_forward = model.__dict__.get("forward")
    try:
        with (
            tf32_allowed(options.tf32),
            global_batch_norms(model, accelerator),
            _layers_put_back(model),
            checkpointed(model, enabled=options.gradient_checkpointing),
        ):
            parameters = list(model.parameters())
            wrapped, wrapped_optimizer = _wrapped(model, optimizer, accelerator)
            check_parameters_kept(parameters, wrapped)
            with compiled(model, enabled=options.compile):
                yield wrapped, wrapped_optimizer
    finally:
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)
        if own_forward is not None:
            model.forward = own_forward
        accelerator.free_memory()


@contextlib.contextmanager
def _layers_put_back(model: nn.Module) -> Iterator[None]:
    """Undo what a wrapper exchanges inside the model: for fp8 torchao exchanges the linear layers."""
    before = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    try:
        yield
    finally:
        for parent, name, child in before:
            if getattr(parent, name) is not child:
                setattr(parent, name, child)


def _wrapped(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> tuple[nn.Module, Any]:
    """Hand both to Accelerate; of a sharded model it takes care of the precision only."""
    if not is_sharded(model):
        return accelerator.prepare(model, optimizer)
    wrapped = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
    return wrapped, accelerator.prepare_optimizer(optimizer, device_placement=False)


@contextlib.contextmanager
def compiled(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Compile a model for the time of a block.

    Compiled code is right for the parameters that trained when it was made; each phase starts without any. What a
    compiler would make worse runs eagerly: modules that ask for it (an LSTM with dropped weights, which it would unroll
    over time) and modules whose ``forward`` was replaced for the phase. torch itself leaves functions alone that run
    its own LSTMs.

    Args:
        model: The bare model, frozen for the phase, its ``forward`` as the phase runs it.
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    eager = [module for module in model.modules() if module is not model and _runs_eagerly(module)]
    before = [module.__dict__.get("forward") for module in eager]
    for module in eager:
        module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    try:
        model.compile()
        yield
    finally:
        model._compiled_call_impl = None
        for module, own in zip(eager, before, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own
        torch.compiler.reset()


def _runs_eagerly(module: nn.Module) -> bool:
    return bool(getattr(module, EAGER, False)) or "forward" in module.__dict__


@contextlib.contextmanager
def checkpointed(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Let a model's layers run again in the backward pass, for the time of a block.

    Memory for time: a third more of it where everything trains, none where nothing is unfrozen, since a layer that no
    gradient flows through is not run again. The layers are those that transformers (and the AWD-LSTM) mark by an
    attribute ``gradient_checkpointing``; gradients are the same, dropout masks included.

    Source: Chen et al. 2016; torch's non-reentrant ``checkpoint``. The reentrant one gives an unfrozen layer above a
    frozen prefix no gradient.

    Args:
        model: The bare model, frozen for the phase.
        enabled: False changes nothing.

    Raises:
        ValueError: The model has no layer that can.
    """
    layers = [module for module in model.modules() if enabled and hasattr(module, SWITCH)]
    if enabled and not layers:
        raise ValueError(
            f"gradient_checkpointing: no layer of {type(model).__name__} can be run again in the backward pass "
            f"(transformers marks those that can by an attribute {SWITCH!r}); leave it out"
        )
    before = [{name: layer.__dict__[name] for name in (SWITCH, FUNCTION) if name in layer.__dict__} for layer in layers]
    for layer in layers:
        setattr(layer, FUNCTION, partial(run_again_if_needed, layer))
        setattr(layer, SWITCH, True)
    try:
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            for name in (SWITCH, FUNCTION):
                layer.__dict__.pop(name, None)
            layer.__dict__.update(values)


def run_again_if_needed(layer: nn.Module, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Run a layer's function on arguments, checkpointed if a gradient will flow through it.

    A batch norm that takes running statistics would take those of a batch twice; what holds one is run as ever.

    Args:
        layer: Who runs; where the function is another module's method, that module counts.
        function: Its forward function, with further arguments bound by ``functools.partial`` perhaps.
        *args: Arguments.
        **named: Named arguments.
    """
    owner = getattr(function, "__self__", layer)
    owner = owner if isinstance(owner, nn.Module) else layer
    if not torch.is_grad_enabled() or _moves_statistics(owner):
        return function(*args, **named)
    trains = any(parameter.requires_grad for parameter in owner.parameters())
    given = (args, named, getattr(function, "args", ()), getattr(function, "keywords", {}))
    if not trains and not any(tensor.requires_grad for tensor in tensors_of(given).values()):
        return function(*args, **named)
    return checkpoint(function, *args, use_reentrant=False, **named)


def _moves_statistics(module: nn.Module) -> bool:
    return any(
        part.training and is_norm(part) and any(True for _ in part.buffers(recurse=False)) for part in module.modules()
    )
