"""Weights that fastai 2.8.12 made (tests/reference), vocabularies of their eleven rows, and a pickle that attacks."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS

REFERENCE = Path(__file__).parents[1] / "reference"
TOKENS = [*SPECIAL_TOKENS, "film", "good"]
OLD_TOKENS = ["_unk_", "_pad_", "the", "film", "tk_rep", "xbos", "t_up", "good", "xxfake", "xfld", "xxfake"]


def stored(name: str) -> dict[str, torch.Tensor]:
    """Return the stored arrays of numbers."""
    with np.load(REFERENCE / name, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind in "fiu"}


def weights_of(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict among them."""
    return {key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")}


class Attack:
    """Leaves a folder behind when it is unpickled in the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)
