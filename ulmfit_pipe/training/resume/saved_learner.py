"""The folder a Learner saves: complete, atomic, free of pickles.

``model.safetensors`` and, for a transformers model, ``config.json`` come from ``save_pretrained``; ``learner.json``
holds the layer groups, what was frozen, and the schedule's position. A model whose own save keeps only a part of its
weights (adapters), or keeps them by other names than the model has, gets ``learner.safetensors`` beside it.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ulmfit_pipe.storage.atomic import CheckpointError, atomic_folder, contents_of, recover_folder
from ulmfit_pipe.storage.digests import digest_of_file
from ulmfit_pipe.storage.json_files import read_sealed, write_sealed
from ulmfit_pipe.storage.pickles import PICKLE_SUFFIXES
from ulmfit_pipe.storage.tensor_files import load_tensors, save_tensors
from ulmfit_pipe.training.layer_groups import LayerGroup

STATE_FILE = "learner.json"
WEIGHTS_FILE = "model.safetensors"
OWN_NAMES_FILE = "learner.safetensors"  # all weights by the model's own names, where the file above has not
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
    path = Path(os.path.expanduser(path))
    if path.exists() and (not path.is_dir() or (contents_of(path) and not (path / STATE_FILE).exists())):
        raise CheckpointError(
            f"{path} exists and is not a saved learner (no {STATE_FILE} in it); choose another folder or empty it"
        )
    with atomic_folder(path) as folder:
        save_pretrained = getattr(model, "save_pretrained", None)
        if save_pretrained is not None:
            save_pretrained(folder)
        else:
            save_tensors(folder / WEIGHTS_FILE, untied_state(model))
        if not _holds_all(folder / WEIGHTS_FILE, model):
            save_tensors(folder / OWN_NAMES_FILE, untied_state(model))
        if add_files is not None:
            add_files(folder)
        described = [{"name": group.name, "prefixes": list(group.prefixes), "frozen": group.frozen} for group in groups]
        weights = [folder / name for name in (WEIGHTS_FILE, OWN_NAMES_FILE)]
        digests = {file.name: digest_of_file(file) for file in weights if file.is_file()}
        facts = {"format": FORMAT, "model_class": type(model).__name__, "groups": described, "weights": digests}
        record = {**facts, **state}
        write_sealed(folder / STATE_FILE, record)


def untied_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with each tied tensor once, under its first name."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        first.setdefault(id(value), name)
    return {name: state[name].detach() for name in first.values() if isinstance(state[name], Tensor)}


def _misfits(names: Iterable[str], model: nn.Module) -> tuple[list[str], list[str]]:
    """Return which of a model's tensors have none of these names, and which of the names it does not know."""
    state = model.state_dict(keep_vars=True)
    unknown = sorted(set(names) - set(state))
    given = {id(state[name]) for name in names if name in state}  # a tied tensor has several names
    return [name for name, value in state.items() if id(value) not in given], unknown


def _holds_all(path: Path, model: nn.Module) -> bool:
    """Return whether a file has every tensor of a model, by the model's own names."""
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        return _misfits(file.keys(), model) == ([], [])


def read_state(path: Path | str) -> dict[str, Any]:
    """Read ``learner.json`` of a saved folder.

    Raises:
        CheckpointError: The path is not a folder of that kind, or a pickle.
    """
    path = Path(os.path.expanduser(path))
    recover_folder(path)
    if path.suffix in PICKLE_SUFFIXES:
        load_tensors(path)  # refuses it in its own words
    if not (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path} is not a saved learner (it has no {STATE_FILE}); give the folder Learner.save wrote"
        )
    state = read_sealed(path / STATE_FILE)
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
    path = Path(os.path.expanduser(path))
    state = read_state(path)
    saved = [group["name"] for group in state["groups"]]
    mine = [group.name for group in groups]
    if saved != mine:
        raise CheckpointError(
            f"{path} was saved with layer groups {saved}, this model has {mine}; they must be the same"
        )
    own = path / OWN_NAMES_FILE
    file = own if own.exists() else path / WEIGHTS_FILE
    weights = load_tensors(file, sha256=state.get("weights", {}).get(file.name))  # an older save has no digests
    mine_by_name = model.state_dict(keep_vars=True)
    missing, unknown = _misfits(weights, model)
    if missing or unknown or state["model_class"] != type(model).__name__:
        raise CheckpointError(
            f"{path} does not fit this model: it lacks {missing[:3]} and has {unknown[:3]} too many; "
            f"it was saved from a {state['model_class']}, this is a {type(model).__name__}"
        )
    for name, value in weights.items():
        shape = tuple(mine_by_name[name].shape)
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{path} holds {name} of shape {tuple(value.shape)}, this model's has {shape}; build it as it was saved"
            )
    with torch.no_grad():
        model.load_state_dict(weights, strict=False)  # strict by the checks above; tied names may be absent
    return state
