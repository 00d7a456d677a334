"""The folder a Learner saves: complete, atomic, free of pickles.

``model.safetensors`` and, for a transformers model, ``config.json`` come from ``save_pretrained``; ``learner.json``
holds the layer groups, what was frozen, and where the schedule stood.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.training.checkpoint import (
    PICKLE_SUFFIXES,
    CheckpointError,
    atomic_folder,
    load_tensors,
    read_json,
    recover_folder,
    save_tensors,
    write_json,
)
from ulmfit_pipe.training.layer_groups import LayerGroup

STATE_FILE = "learner.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 1
KEYS = ("model_class", "groups", "trainable", "position", "epochs_done")  # what a load needs beside the weights


def save(
    path: Path | str,
    model: nn.Module,
    groups: Sequence[LayerGroup],
    state: dict[str, Any],
    *,
    add_files: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder.

    Args:
        path: Where; an existing folder must be empty or hold a saved learner.
        model: The bare model.
        groups: Its layer groups.
        state: JSON-able rest of the learner.
        add_files: Writes further files into the folder.

    Raises:
        CheckpointError: The folder holds something else, or the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / STATE_FILE).exists())):
        raise CheckpointError(
            f"{path} exists and is no saved learner (it has no {STATE_FILE}); choose another folder, or empty it first"
        )
    with atomic_folder(path) as folder:
        save_pretrained = getattr(model, "save_pretrained", None)
        if save_pretrained is not None:
            save_pretrained(folder)
        else:
            save_tensors(folder / WEIGHTS_FILE, untied_state(model))
        if add_files is not None:
            add_files(folder)
        described = [{"name": group.name, "prefixes": list(group.prefixes), "frozen": group.frozen} for group in groups]
        record = {"format": FORMAT, "model_class": type(model).__name__, "groups": described, **state}
        write_json(folder / STATE_FILE, record)


def untied_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each tied tensor once, under its first name."""
    first = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name: value for name, value in model.state_dict().items() if name in first}


def read_state(path: Path | str) -> dict[str, Any]:
    """Read ``learner.json`` of a saved folder.

    Raises:
        CheckpointError: The path is no folder of that kind, or a pickle.
    """
    path = Path(path)
    recover_folder(path)
    if path.suffix in PICKLE_SUFFIXES:
        load_tensors(path)  # refuses it in its own words
    if not (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path} is no saved learner (it has no {STATE_FILE}); give the folder Learner.save wrote"
        )
    state = read_json(path / STATE_FILE)
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r}, this version reads {FORMAT}; save it again")
    lacking = [key for key in KEYS if key not in state]
    if lacking:
        raise CheckpointError(f"{path / STATE_FILE} lacks {lacking}; it was altered: take an earlier save")
    return state


def load(path: Path | str, model: nn.Module, groups: Sequence[LayerGroup]) -> dict[str, Any]:
    """Load the weights into a model, by name, and return the rest of the state.

    Raises:
        CheckpointError: Groups, names or shapes differ, or a file was cut short.
    """
    state = read_state(path)
    saved = [group["name"] for group in state["groups"]]
    mine = [group.name for group in groups]
    if saved != mine:
        raise CheckpointError(
            f"{path} was saved with layer groups {saved}, this model has {mine}; they must be the same"
        )
    weights = load_tensors(Path(path) / WEIGHTS_FILE)
    mine_by_name = model.state_dict(keep_vars=True)
    given = {id(mine_by_name[name]) for name in weights if name in mine_by_name}  # a tied tensor has several names
    missing = [name for name, value in mine_by_name.items() if id(value) not in given]
    unknown = sorted(set(weights) - set(mine_by_name))
    if missing or unknown or state["model_class"] != type(model).__name__:
        raise CheckpointError(
            f"{path} does not fit this model: it lacks {missing[:3]} and has {unknown[:3]} too many; "
            f"it was saved from a {state['model_class']}, this is a {type(model).__name__}"
        )
    for name, value in weights.items():
        shape = tuple(mine_by_name[name].shape)
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{path} holds {name} of shape {tuple(value.shape)}, this model's has {shape}")
    with torch.no_grad():
        model.load_state_dict(weights, strict=False)  # strict by the checks above; tied names may be absent
    return state
