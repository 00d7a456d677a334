"""What an `Accelerator` may be for this loop: anything else is refused before the first step, with what to do instead.

A launcher's configuration can ask Accelerate to shard, compile or accumulate by itself. Each of these takes something
over that unfreezing by layer groups relies on, and none of them would stop by itself when it is used wrongly.
"""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend
from torch import nn

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.training.compute.precision import refuse_silent_float32

FSDP2_CONFIG = "fsdp2.yaml (ulmfit configs DIR writes it)"


class UnsupportedAcceleratorError(UlmfitError, ValueError):
    """An `Accelerator` is set up in a way with which this loop would train wrongly; the message gives the remedy."""


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise unless the loop trains right with an accelerator.

    Raises:
        UnsupportedAcceleratorError: It accumulates or compiles itself, or parts the model in a way not supported.
        ValueError: It was asked for fp16 and would compute in float32.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise UnsupportedAcceleratorError(
            f"the Accelerator has gradient_accumulation_steps={accelerator.gradient_accumulation_steps!r}; make it "
            "without and set accumulation_steps of TrainingOptions instead: gradients would be scaled twice"
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise UnsupportedAcceleratorError(
            f"the Accelerator compiles models itself (dynamo_backend {accelerator.state.dynamo_plugin.backend.value}); "
            "make it without (accelerate launch --dynamo_backend no) and set compile, which compiles each phase anew"
        )
    _check_parts(accelerator)
    refuse_silent_float32(accelerator)


def _check_parts(accelerator: Accelerator) -> None:
    """Refuse all kinds of distributed training but plain data parallelism and FSDP2."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        raise UnsupportedAcceleratorError(
            "DeepSpeed takes steps, clipping and loss scaling over, and keeps weights and gradients to itself, so that "
            f"layer groups could not be unfrozen as reported; start with {FSDP2_CONFIG} instead, which shards "
            "weights, gradients and optimizer as ZeRO-3 does"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UnsupportedAcceleratorError(
            "Accelerate's first FSDP puts parameters of several layer groups into one, which cannot be frozen in part; "
            f"set fsdp_version: 2, as {FSDP2_CONFIG} does"
        )
    if kind not in (DistributedType.NO, DistributedType.FSDP) and not kind.value.startswith("MULTI_"):
        raise UnsupportedAcceleratorError(
            f"training under {kind.value} is not supported; use plain data parallelism, or {FSDP2_CONFIG}"
        )
    if getattr(accelerator, "parallelism_config", None) is not None:
        raise UnsupportedAcceleratorError(
            "parallelism_config (tensor, context or sequence parallelism) is not supported; leave it out of the "
            f"Accelerate configuration and use plain data parallelism, or {FSDP2_CONFIG}"
        )


def check_parameters_kept(before: Sequence[nn.Parameter], wrapped: nn.Module) -> None:
    """Raise unless a wrapped model computes with the very parameters that the layer groups hold.

    Args:
        before: The bare model's parameters before it was wrapped.
        wrapped: The model after.

    Raises:
        UnsupportedAcceleratorError: Some were replaced, so that training would move what nothing computes with.
    """
    now = {id(parameter) for parameter in wrapped.parameters()}
    lost = sum(id(parameter) not in now for parameter in before)
    if lost:
        raise UnsupportedAcceleratorError(
            f"Accelerate replaced {lost} of {len(before)} parameters when it wrapped the model, so layer groups would "
            "train weights that the model no longer computes with; use mixed_precision 'bf16' or 'no', and plain data "
            f"parallelism or {FSDP2_CONFIG}"
        )
