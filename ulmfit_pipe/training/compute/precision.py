"""Number formats that a training may compute in: which of them this machine has, and TF32.

Mixed precision is Accelerate's: weights, gradients and optimizer stay float32, matrix products and LSTMs run in half
precision, and norms, softmax, losses and penalties are computed in float32. A format that Accelerate would replace by
another one without stopping is refused here.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

PRECISIONS = ("no", "fp16", "bf16", "fp8")
FP8_CAPABILITY = (8, 9)  # CUDA compute capability of Ada GPUs, the first with 8-bit floating point; Hopper's is 9.0
TF32_CAPABILITY = (8, 0)  # of Ampere GPUs, the first with TF32


def check_precision(mixed_precision: str) -> None:
    """Raise unless this machine can compute in a format; call it before an `Accelerator` is made.

    Args:
        mixed_precision: One of `PRECISIONS`.

    Raises:
        ValueError: There is no such format, or the machine lacks what it needs.
    """
    if mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {', '.join(PRECISIONS)}, got {mixed_precision!r}")
    if mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError(_fp16_on_a_cpu())
    if mixed_precision == "fp8":
        _check_fp8()


def _fp16_on_a_cpu() -> str:
    return "mixed_precision 'fp16' needs a GPU (on a CPU it would silently compute in float32); use 'bf16' or 'no'"


def _check_fp8() -> None:
    needs = "mixed_precision 'fp8' needs a GPU of compute capability 8.9 or higher (Ada, Hopper, ...)"
    if not torch.cuda.is_available():
        raise ValueError(f"{needs}; this machine has none: use 'bf16' or 'no'")
    capability = torch.cuda.get_device_capability()
    if capability < FP8_CAPABILITY:
        found = ".".join(map(str, capability))
        raise ValueError(f"{needs}; this one's is {found}, on which fp16 would silently be used: use 'bf16' or 'no'")
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            "mixed_precision 'fp8' needs the package torchao, which computes in 8 bits and leaves the weights where "
            "layer groups know them; install it (pip install torchao), or use 'bf16'"
        )


def cpu_precision(mixed_precision: str) -> tuple[str, str]:
    """Return the precision that a run on this processor computes in, and a log line on it where it matters.

    Without AVX-512 (or bf16 instructions on ARM) torch has no LSTM in bf16, and its bf16 matrix products took 15 times
    as long as float32's where that was measured; such a run computes in float32.

    Args:
        mixed_precision: What was asked for.
    """
    if mixed_precision != "bf16" or not torch.backends.mkldnn.is_available():
        return mixed_precision, ""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "no", (
            "mixed_precision 'bf16' needs a processor with AVX-512 (x86) or bf16 instructions (ARM), which this one "
            "lacks: the run computes in float32"
        )
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if has.get("architecture") == "x86_64" and not (has.get("avx512_bf16") or has.get("amx_bf16")):
        return "bf16", (
            "note: this processor has AVX-512 but no bf16 instructions, so mixed_precision 'bf16' may be slower than "
            "'no'; it saves memory alone"
        )
    return "bf16", ""


def refuse_silent_float32(accelerator: Accelerator) -> None:
    """Raise where an `Accelerator` was asked for fp16 and would compute in float32, as it does on a CPU.

    Raises:
        ValueError: It has no loss scaling, so no fp16.
    """
    scales_itself = accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None and not scales_itself:
        raise ValueError(_fp16_on_a_cpu())


def tf32_note(tf32: bool | None, device: torch.device) -> str:
    """Return a log line if a TF32 setting has no effect on a device; else an empty one."""
    if tf32 is None:
        return ""
    asked = f"tf32 {str(tf32).lower()} changes nothing here"
    if device.type != "cuda":
        return f"{asked}: TF32 is a format of NVIDIA GPUs, and this run computes on a {device.type.upper()} in float32"
    if torch.cuda.get_device_capability(device) < TF32_CAPABILITY:
        return f"{asked}: TF32 needs a GPU of compute capability 8.0 or higher (Ampere)"
    return ""


@contextlib.contextmanager
def tf32_allowed(tf32: bool | None, backends: Any = torch.backends) -> Iterator[None]:
    """Let float32 matrix products, convolutions and LSTMs on NVIDIA GPUs run in TF32, or not, for the time of a block.

    TF32 keeps the range of float32 and 10 of its 23 bits of precision; Ampere GPUs multiply several times faster in it.

    Args:
        tf32: True for all of them, False for none; None leaves torch's defaults as they are (on for convolutions and
            LSTMs, off for other matrix products).
        backends: ``torch.backends``.
    """
    if tf32 is None:
        yield
        return
    switches, value = _tf32_switches(backends, tf32)
    before = [getattr(owner, name) for owner, name in switches]
    try:
        for owner, name in switches:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), old in zip(switches, before, strict=True):
            setattr(owner, name, old)


def _tf32_switches(backends: Any, tf32: bool) -> tuple[list[tuple[Any, str]], Any]:
    """Return the attributes that decide, and their value; torch 2.9 gave them new names and forbids to mix the two."""
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        return [(owner, "fp32_precision") for owner in owners], "tf32" if tf32 else "ieee"
    return [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")], tf32
