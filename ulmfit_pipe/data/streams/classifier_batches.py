"""Rows of tokens -> right-padded batches of documents of like length, the share of each process.

Training: all rows are shuffled, taken in chunks of about 50 batches, each chunk is sorted by length and split into
batches, and the order of the batches is shuffled. Evaluation: all rows sorted by length, longest first. The
batches are planned for all processes together, the same for any number of them in training; process r then takes rows
r, r + world_size, ... of each.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from ulmfit_pipe.data.process_shares import share_of
from ulmfit_pipe.data.streams.token_arrays import TokenArrays, read_token_arrays

BATCHES_PER_CHUNK = 50  # as in fastai's SortedDL: enough to find like lengths, few enough to keep chance


class ClassifierBatches:
    """Batches for a classifier, each a dict of CPU tensors.

    - `input_ids` int64 (batch, seq_len): right-padded with `pad_token_id` to the longest row of the share.
    - `attention_mask` int64 (batch, seq_len): 1 on real tokens, 0 on padding.
    - `labels` int64 (batch,), or float32 (batch, num_labels) if the column holds lists; absent without a column.
    - `row` int64 (batch,): the row's index in the table, to put results back in order.

    Every row comes exactly once per epoch. The order is a pure function of (seed, epoch); the epoch is 0 until
    `set_epoch`. In training the batch with the longest row comes first, so that lack of memory shows at once.

    Small batches: in training no batch has fewer than two rows (batch norm needs two) where the table and `batch_size`
    allow it, in evaluation none has fewer than one row per process; a smaller last batch joins the one before it, which
    is then a little larger than `batch_size`. This also outranks `max_tokens`. In training a batch may have fewer rows
    than there are processes; those that get none are given a `FillerBatch`.
    """

    fixed_rows = True  # a row is the same in every epoch but for its padding

    def __init__(
        self,
        dataset: Dataset | Sequence[Sequence[int]],
        *,
        batch_size: int,
        max_tokens: int | None = None,
        pad_token_id: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        num_labels: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_length: int | None = None,
        keep_end: int = 0,
        pad_to_multiple_of: int | None = None,
        backward: bool = False,
    ) -> None:
        """Read tokens and labels and plan epoch 0.

        Args:
            dataset: A table with `input_ids` and perhaps `label`, or (for prediction) a sequence of integer lists.
            batch_size: Most rows of a global batch, over all processes.
            max_tokens: Most tokens of a global batch, padding included: rows x longest. A longer document comes
                alone (in training with as many others as batch norm needs).
            pad_token_id: The id at padded positions.
            shuffle: True for training, False for evaluation and prediction.
            seed: With the epoch it fixes the order.
            num_labels: Number of labels; the width of multi-label targets. None: from the label column's names.
            rank: This process, from 0.
            world_size: Number of processes.
            max_length: Keep only this many tokens of a document, the first ones; None keeps all.
            keep_end: Number of those that are a truncated document's last ones, such as its closing special tokens.
            pad_to_multiple_of: Round seq_len up to a multiple of this; None does not.
            backward: Give each document's tokens in reverse (those kept by `max_length`), for a backward model.

        Raises:
            ValueError: For sizes below 1, a document without tokens, a label that is missing or out of range, or
                fewer rows than processes.
        """
        sizes = {"batch_size": batch_size, "max_tokens": max_tokens, "max_length": max_length}
        _check_sizes(sizes | {"pad_to_multiple_of": pad_to_multiple_of}, seed=seed, rank=rank, world_size=world_size)
        self.batch_size, self.max_tokens, self.seed, self.shuffle = batch_size, max_tokens, seed, shuffle
        self.pad_token_id, self.pad_to_multiple_of, self.backward = pad_token_id, pad_to_multiple_of, backward
        self.rank, self.world_size, self.keep_end = rank, world_size, keep_end
        if not 0 <= keep_end < (max_length or np.inf):
            raise ValueError(f"keep_end must be 0 or more and below max_length {max_length}, got {keep_end}")
        self._documents = read_token_arrays(dataset)
        self._lengths = np.minimum(self._documents.lengths, max_length or np.iinfo(np.int64).max)
        _check_rows(self._documents, world_size=world_size)
        if isinstance(dataset, Dataset):
            self._labels, self._num_labels = _read_labels(dataset, num_labels)
        else:
            self._labels, self._num_labels = None, num_labels
        self.set_epoch(0)

    @property
    def documents(self) -> int:
        """Number of documents of an epoch, over all processes."""
        return len(self._lengths)

    def longer_than(self, length: int) -> int:
        """Return how many of them have more tokens than `length`, uncut."""
        return int((self._documents.lengths > length).sum())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which seeds its order."""
        self._plan = self._plan_epoch(epoch)

    def batches_in_epoch(self, epoch: int) -> int:
        """Number of batches of any epoch, the same on every rank (it varies only with `max_tokens` in training)."""
        return len(self._plan_epoch(epoch))

    def __len__(self) -> int:
        """Number of batches of the current epoch, the same on every rank."""
        return len(self._plan)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this rank's share of each batch of the current epoch."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the same from a certain batch on; those before it are not made."""
        for rows in self._plan[first:]:
            own, kind = share_of(rows, rank=self.rank, world_size=self.world_size)
            yield kind(self._collate(own))

    def _collate(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        lengths = self._lengths[rows][:, None]  # (batch, 1)
        multiple = self.pad_to_multiple_of or 1
        width = -(-int(lengths.max()) // multiple) * multiple
        steps = np.arange(width)[None, :]  # (1, seq_len)
        is_real = steps < lengths  # (batch, seq_len)
        steps = lengths - 1 - steps if self.backward else steps
        left_out = self._documents.lengths[rows][:, None] - lengths  # (batch, 1)
        steps = np.where(steps < lengths - self.keep_end, steps, steps + left_out)
        places = np.where(is_real, self._documents.starts[rows][:, None] + steps, 0)
        input_ids = np.where(is_real, self._documents.flat[places], self.pad_token_id)
        batch = {
            "input_ids": torch.from_numpy(input_ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(is_real.astype(np.int64)),
            "row": torch.from_numpy(rows.astype(np.int64)),
        }
        if self._labels is not None:
            batch["labels"] = _take_labels(self._labels, rows, width=self._num_labels or 0)
        return batch

    def _plan_epoch(self, epoch: int) -> list[np.ndarray]:
        """Row indices of each global batch of an epoch, longest row first within a batch."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        if not self.shuffle:
            return self._cut(np.argsort(-self._lengths, kind="stable"))
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self._lengths))
        chunk_size = BATCHES_PER_CHUNK * self.batch_size
        chunks = max(1, round(len(order) / chunk_size))  # rounded: no last chunk of a few rows
        borders = np.arange(1, chunks) * chunk_size
        batches: list[np.ndarray] = []
        for chunk in np.split(order, borders):
            batches += self._cut(chunk[np.argsort(-self._lengths[chunk], kind="stable")])
        batches = [batches[i] for i in random.permutation(len(batches))]
        first = max(range(len(batches)), key=lambda i: self._lengths[batches[i][0]])
        batches[0], batches[first] = batches[first], batches[0]
        return batches

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Split rows, sorted by falling length, into batches within `batch_size` and `max_tokens`."""
        lengths = self._lengths[rows]
        least = min(self.batch_size, 2 if self.shuffle else self.world_size)
        starts = [0]
        while True:
            fitting = self.batch_size if self.max_tokens is None else self.max_tokens // int(lengths[starts[-1]])
            stop = starts[-1] + max(least, min(fitting, self.batch_size))
            if stop >= len(rows):
                break
            starts.append(stop)
        last = len(rows) - starts[-1]
        if len(starts) > 1 and (last < least or (last == 1 and self._takes_one_more(lengths, starts))):
            starts.pop()
        return np.split(rows, starts[1:])

    def _takes_one_more(self, lengths: np.ndarray, starts: list[int]) -> bool:
        """Whether the last row may join the batch before it: not with batches of one by wish, nor over budget."""
        rows = len(lengths) - starts[-2]
        within_budget = self.max_tokens is None or rows * int(lengths[starts[-2]]) <= self.max_tokens
        return self.batch_size > 1 and within_budget


def _take_labels(labels: np.ndarray | TokenArrays, rows: np.ndarray, *, width: int) -> torch.Tensor:
    """Targets of some rows: class ids int64 (batch,), or lists of them as multi-hot float32 (batch, width)."""
    if isinstance(labels, np.ndarray):
        return torch.from_numpy(labels[rows])
    targets = torch.zeros(len(rows), width)
    for target, row in zip(targets, rows, strict=True):
        target[torch.from_numpy(labels.row(row).astype(np.int64))] = 1.0
    return targets


def _read_labels(dataset: Dataset, num_labels: int | None) -> tuple[np.ndarray | TokenArrays | None, int | None]:
    """Return a table's checked labels and their number; None and the given number if there is no column `label`."""
    if "label" not in dataset.column_names:
        return None, num_labels
    feature = dataset.features["label"]
    inner = getattr(feature, "feature", None)  # the class labels inside a list
    named = feature if inner is None else inner
    if num_labels is None and isinstance(named, ClassLabel):
        num_labels = named.num_classes
    if inner is None:
        ids = _read_class_ids(dataset)
        _check_range(ids, rows=np.arange(len(ids)), num_labels=num_labels)
        return ids, num_labels
    if num_labels is None:
        raise ValueError("multi-label targets need num_labels: the label column carries no label names")
    lists = read_token_arrays(dataset, column="label")
    _check_range(lists.flat, rows=np.repeat(np.arange(len(lists)), lists.lengths), num_labels=num_labels)
    return lists, num_labels


def _read_class_ids(dataset: Dataset) -> np.ndarray:
    column = dataset.select_columns(["label"]).with_format("arrow")[:].column("label")
    if column.null_count:
        row = column.to_pylist().index(None)
        raise ValueError(f"row {row} (counted from 0) has no label; drop the column `label` to predict")
    ids = column.to_numpy()
    if ids.dtype.kind not in "iu":
        raise ValueError(f"labels must be class ids (integers) or lists of them, the column holds {column.type}")
    return ids.astype(np.int64)


def _check_range(ids: np.ndarray, *, rows: np.ndarray, num_labels: int | None) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= (num_labels or np.iinfo(np.int64).max)))
    allowed = "be 0 or more" if num_labels is None else f"lie in 0..{num_labels - 1}"
    if wrong.size:
        raise ValueError(
            f"row {rows[wrong[0]]} (counted from 0) has label {ids[wrong[0]]}, "
            f"labels must {allowed}; "
            "the table must be read with the label names that the model knows"
        )


def _check_rows(documents: TokenArrays, *, world_size: int) -> None:
    empty = np.flatnonzero(documents.lengths == 0)
    if empty.size:
        raise ValueError(
            f"row {empty[0]} (counted from 0) has no tokens ({empty.size} such rows): drop empty texts, "
            "or use a tokenizer that begins every text with a token of its own"
        )
    if len(documents) == 0:
        raise ValueError("the table has no rows; there is nothing to make batches of")
    if len(documents) < world_size:
        raise ValueError(
            f"{len(documents)} rows cannot be shared by {world_size} processes: each needs one row per batch; "
            f"start {len(documents)} processes or fewer"
        )


def _check_sizes(sizes: dict[str, int | None], *, seed: int, rank: int, world_size: int) -> None:
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size-1, got rank={rank} with world_size={world_size}")
    if world_size > (sizes["batch_size"] or 0):
        raise ValueError(
            f"{world_size} processes cannot share batch_size={sizes['batch_size']}: each needs one row per batch; "
            f"set batch_size to {world_size} or more, or start fewer processes"
        )
