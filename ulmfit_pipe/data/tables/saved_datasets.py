"""Datasets of the ``datasets`` library: folders that it saved, and names on the Hugging Face hub."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from huggingface_hub import HfApi, is_offline_mode

from ulmfit_pipe.data.tables.binary_tables import BATCH_ROWS, label_decoder, named_labels
from ulmfit_pipe.data.tables.row_sources import RowSource
from ulmfit_pipe.data.tables.text_files import TableError

HUB_TIMEOUT = 5.0  # seconds to find out whether the hub answers
SAVED_MARKS = ("state.json", "dataset_dict.json")  # files of a folder that `datasets` saved
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_OWN_READERS = {
    name.lower() for name in _PACKAGED_DATASETS_MODULES
}  # text, csv, json, ...: they read the working folder


def is_hub_name(name: str) -> bool:
    """Whether a name could be that of a dataset on the hub."""
    return _HUB_NAME.fullmatch(name) is not None


def was_saved(folder: Path) -> bool:
    """Whether ``datasets`` saved a folder."""
    return any((folder / mark).is_file() for mark in SAVED_MARKS)


def open_saved(path: Path, split: str | None, usual_splits: Sequence[str]) -> RowSource:
    """Open a folder that ``datasets`` saved.

    Raises:
        TableError: It cannot be read, or has several splits and none of them is meant.
    """
    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, KeyError, pa.ArrowException) as error:
        raise TableError(
            f"the folder {path} cannot be read as a dataset that datasets saved: {_line(error)}"
        ) from error
    return _open_split(str(path), loaded, split, usual_splits)


def open_hub(name: str, split: str | None, usual_splits: Sequence[str]) -> RowSource:
    """Open a dataset of the hub.

    Raises:
        TableError: It cannot be fetched, or has several splits and none of them is meant.
    """
    if name.lower() in _OWN_READERS:
        raise TableError(
            f"there is no file or folder {name!r}; no dataset of that name is looked up on the hub, since it is one of "
            "the readers of datasets itself; give the path of a file or folder"
        )
    advice = (
        f"there is no file or folder {name!r}, so it was tried as a dataset on the Hugging Face hub; "
        "to use your own table give the path of a .csv, .tsv, .jsonl, .json or .parquet file, "
        "or of a folder saved by datasets"
    )
    try:
        if not is_offline_mode():  # a quick question first: downloads retry for minutes
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
        loaded = datasets.load_dataset(name)
    except Exception as error:  # every layer below raises its own kind when the network is missing
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if is_offline_mode() else _line(error)
        raise TableError(f"{advice}. The hub could not give it: {reason}") from error
    return _open_split(name, loaded, split, usual_splits)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def choose_split(name: str, splits: Sequence[str], split: str | None, usual_splits: Sequence[str]) -> str:
    """Return the split that is meant: the named one, the only one, or the first of the usual ones that is there.

    Raises:
        TableError: None of them is there.
    """
    if split is None and len(splits) == 1:
        return splits[0]
    wanted = usual_splits if split is None else [split]
    found = next((each for each in wanted if each in splits), None)
    if found is None:
        got = "none" if split is None else repr(split)[:80]
        raise TableError(
            f"{name} has the splits {', '.join(splits[:20])}; name one after a colon, such as {name}:{splits[0]}, "
            f"got {got}"
        )
    return found


def _open_split(
    name: str, loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, usual_splits: Sequence[str]
) -> RowSource:
    if isinstance(loaded, datasets.DatasetDict):
        chosen = choose_split(name, [str(each) for each in loaded], split, usual_splits)
        loaded, name = loaded[chosen], f"{name}:{chosen}"
    elif split is not None:
        raise TableError(f"{name} has no splits, so there is no {split!r:.80}; leave out what follows the colon")
    return open_dataset(name, loaded)


def open_dataset(name: str, loaded: datasets.Dataset) -> RowSource:
    """Open a dataset that is loaded.

    Args:
        name: What messages call it.
        loaded: The dataset.
    """

    def read(columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        decode = [label_decoder(loaded.features[column]) for column in columns]
        for batch in loaded.select_columns(list(columns)).with_format(None).iter(BATCH_ROWS):
            for values in zip(*(batch[column] for column in columns), strict=True):
                yield tuple([turn(value) for turn, value in zip(decode, values, strict=True)])

    return RowSource(name, list(loaded.column_names), read, schema=named_labels(loaded.features.arrow_schema))
