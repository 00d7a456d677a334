"""Whether a training may resume from a checkpoint: the same settings and data, as many processes, what else differs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.storage.record_differences import differences

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def can_keep(accelerator: Accelerator, *, resume: bool, say: Callable[[str], None]) -> bool:
    """Return whether checkpoints can be kept at all, and log it if not.

    Args:
        accelerator: The processes.
        resume: Whether the training is to resume from one.
        say: Receives a log line with the reason.

    Raises:
        CheckpointError: They cannot, and the training is to resume from one.
    """
    if accelerator.distributed_type not in SHARDED:
        return True
    kind = accelerator.distributed_type.value
    if resume:
        raise CheckpointError(
            f"a training under {kind} cannot be resumed: its weights are sharded over the processes; run without "
            "--resume, or with plain data parallelism"
        )
    say(f"no checkpoints are kept under {kind}, whose weights are sharded over the processes")
    return False


def refuse_impossible(state: Mapping[str, Any], plan: Mapping[str, Any], path: Path) -> None:
    """Raise unless a checkpoint's state is one that a training of a plan can have been in.

    Args:
        state: Of the checkpoint, which may have been changed by hand and sealed again.
        plan: Phases and options, as JSON gives them back.
        path: The checkpoint.

    Raises:
        CheckpointError: An entry is missing or of another type, or the position is outside of the plan.
    """
    try:
        wrong = _first_wrong(state, plan)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        wrong = f"an entry is missing or of another type ({type(error).__name__}: {error})"
    if wrong:
        raise CheckpointError(
            f"{path} cannot be continued from: {wrong}; it was altered: delete that checkpoint to take the one before, "
            "or its folder to start over"
        )


def _first_wrong(state: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Return the first entry of a state that is impossible in this plan, in words; "" if all are possible."""
    position, sums, phases = state["position"], state["sums"], plan["phases"]
    number, epoch, step = position["phase"], position["epoch"], position["step"]
    for name, value in {"phase": number, "step": step, "steps_of_phase": position["steps_of_phase"]}.items():
        if not _is_count(value):
            return f"its {name} is {value!r}"
    last = len(phases) - (epoch is not None)
    if number > last:
        return f"it is in phase {number + 1}, the plan has {len(phases)}"
    if epoch is not None:
        first, behind = phases[number]["start_epoch"], phases[number]["epochs"]
        if not _is_count(epoch) or not first <= epoch < behind:
            return f"it is in epoch {epoch!r} (counted from 0) of a phase of {behind} epochs"
    if wrong := _wrong_history(state["history"], phases, number, epoch):
        return wrong
    if epoch is not None:
        per_step, steps = plan["options"]["accumulation_steps"], [int(count) for count in position["steps"]]
        most = sum(steps[:epoch]) + -(-sums["batch"] // per_step)
        if not _is_count(sums["batch"]) or sums["batch"] > steps[epoch] * per_step or step > most:
            return f"it has taken {step} steps and {sums['batch']!r} batches of epoch {epoch}, more than there are"
    return _wrong_entries(state, inside=epoch is not None)


def _wrong_history(history: list[Any], phases: list[Any], number: int, epoch: int | None) -> str:
    """Return in words where the records of epochs are not those of the phases before a position."""
    for index, phase in enumerate(phases):
        found = [record["epoch"] for record in history if record["phase"] == phase["name"]]
        most = phase["epochs"] - phase["start_epoch"] if index < number else 0
        least = min(most, 1)
        if index == number and epoch is not None:
            least = most = epoch - phase["start_epoch"]
        expected = list(range(phase["start_epoch"], phase["start_epoch"] + len(found)))
        if found != expected or not least <= len(found) <= most:
            return f"it has the records of {len(found)} epochs of phase {index + 1}, which cannot be at its position"
    known = [phase["name"] for phase in phases]
    begun = (
        history[1:] if history and history[0]["total_steps"] == 0 else history
    )  # the first may be of no phase: the start
    strange = [record["phase"] for record in begun if record["phase"] not in known]
    return f"it has a record of a phase {strange[0]!r}, which the plan has not" if strange else ""


def _wrong_entries(state: Mapping[str, Any], *, inside: bool) -> str:
    """Return in words which of the other entries are not of their kinds."""
    kinds: dict[str, Any] = {"ties": dict, "values": list, "optimizer": list, "surroundings": dict, "identity": dict}
    kinds |= {"carries": bool, "random_used": bool, "scaler": dict | None, "seconds": int | float, "world_size": int}
    for name, kind in kinds.items():
        if not isinstance(state[name], kind):
            return f"its {name} is {state[name]!r:.60}"
    best, history = state["best"], state["history"]
    if best is not None and not (_is_count(best) and best < len(history)):
        return f"its best epoch is number {best!r} of {len(history)}"
    needed = ["model", "steps", *["optimizer"] * inside, *["best"] * (best is not None), "rank-0"]
    if state["world_size"] > 1:
        needed.append(f"rank-{state['world_size'] - 1}")
    missing = [name for name in needed if f"{name}.safetensors" not in state["files"]]
    return f"it lists no file {missing[0]}.safetensors" if missing else ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def refuse_other_training(state: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    """Raise unless a checkpoint is of the training that is asked for.

    Args:
        state: Of the checkpoint.
        asked: ``identity`` (the fingerprint) and ``plan`` of this run, as read back from JSON.
        folder: Folder of the checkpoints.

    Raises:
        CheckpointError: They differ; every difference is named.
    """
    changed = differences({name: state.get(name) for name in asked}, dict(asked))
    if changed:
        raise CheckpointError(
            f"the checkpoints in {folder} are of another training; it differs in {', '.join(changed)}. Give the same "
            "settings and data, or delete that folder to start over"
        )


def refuse_other_processes(state: Mapping[str, Any], now: int, folder: Path) -> str | None:
    """Raise where another number of processes would train differently; otherwise return a log line on it, if any.

    Args:
        state: Of the checkpoint.
        now: Processes that there are.
        folder: Folder of the checkpoints.

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
            f"and {reason}: resume with {before}, or delete that folder to start over"
        )
    return f"{_processes(before)} wrote the checkpoint and {now} resume from it: the same up to rounding"


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def other_environment(state: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a log line if versions, device or threads differ from the checkpoint's, or None."""
    changed = differences(dict(state["surroundings"]), dict(now))
    if not changed:
        return None
    return (
        f"the checkpoint was made with other versions or another machine: {', '.join(changed)}; the training "
        "continues, but may not end bit for bit as it would have"
    )
