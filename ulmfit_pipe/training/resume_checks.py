"""Whether a training may go on from a checkpoint: is it the same one, with as many processes, and what else differs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ulmfit_pipe.training.checkpoint import CheckpointError
from ulmfit_pipe.training.record_differences import differences

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def can_keep(accelerator: Accelerator, *, resume: bool, say: Callable[[str], None]) -> bool:
    """Return whether checkpoints can be kept at all, and say so if not.

    Args:
        accelerator: The processes.
        resume: Whether the training is to go on from one.
        say: Told why not.

    Raises:
        CheckpointError: They cannot, and the training is to go on from one.
    """
    if accelerator.distributed_type not in SHARDED:
        return True
    kind = accelerator.distributed_type.value
    if resume:
        raise CheckpointError(
            f"a training under {kind} cannot be gone on with: its weights lie in pieces on the processes; run without "
            "--resume, or with plain data parallelism"
        )
    say(f"no checkpoints are kept under {kind}, whose weights lie in pieces on the processes")
    return False


def refuse_other_training(state: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Raise unless a checkpoint is of the training that is asked for.

    Args:
        state: Of the checkpoint.
        asked: ``identity`` and ``plan`` as they are now, as JSON gives them back.
        folder: Where the checkpoints lie.

    Raises:
        CheckpointError: They differ; every difference is named.
    """
    changed = differences({name: state[name] for name in asked}, dict(asked))
    if changed:
        raise CheckpointError(
            f"the checkpoints in {folder} are of another training; it differs in {', '.join(changed)}. Give the same "
            "settings and data, or delete that folder to begin anew"
        )


def refuse_other_processes(state: Mapping[str, Any], now: int, folder: Path) -> str | None:
    """Raise where another number of processes would train differently; otherwise return what to say of it, if anything.

    Args:
        state: Of the checkpoint.
        now: Processes that there are.
        folder: Where the checkpoints lie.

    Raises:
        CheckpointError: What each process holds for itself would matter.
    """
    before = state["world_size"]
    if before == now:
        return None
    reason = None
    if state["carries"]:
        reason = "the state that is carried from batch to batch is split among them"
    elif state["random_used"]:
        reason = "each draws random numbers of its own (dropout), so that other values would be dropped"
    if reason is not None:
        raise CheckpointError(
            f"the checkpoints in {folder} are of {_processes(before)}, now there {'is' if now == 1 else 'are'} {now}, "
            f"and {reason}: go on with {before}, or delete that folder to begin anew"
        )
    return f"{_processes(before)} wrote the checkpoint and {now} go on from it: the same up to rounding"


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def other_surroundings(state: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return what to say where versions, device or threads are other than they were, or None."""
    changed = differences(dict(state["surroundings"]), dict(now))
    if not changed:
        return None
    return (
        f"the checkpoint was made with other versions or another machine: {', '.join(changed)}; the training goes on, "
        "but may not end bit for bit as it would have"
    )
