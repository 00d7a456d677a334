"""Batches of documents as a transformer takes them: long ones split into windows, token types, padding on its side.

Batches are planned by `ClassifierBatches` over whole documents; here each is finished.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches
from ulmfit_pipe.data.text.pretrained_tokenizers import SpecialTokens


@dataclass(frozen=True)
class Windows:
    """How a long document is split into windows.

    Attributes:
        length: Tokens of a window, special tokens included.
        overlap: Tokens that neighbouring windows share (what tokenizers call stride).
    """

    length: int
    overlap: int = 0


class BackboneBatches:
    """Batches of `ClassifierBatches`, finished for a backbone.

    With windows `input_ids` and `attention_mask` have a row per window, and `document` int64 (windows,) is the index
    of each window's document in the batch; `labels` and `row` keep one row per document.

    Args:
        documents: Batches of whole documents, with their special tokens.
        special: The special tokens around each document; windows get them too.
        windows: Split documents into windows; None leaves them whole.
        pad_left: Put padding before the text, for a backbone that reads its summary at the last position.

    Raises:
        ValueError: The windows have no room for text, or no step forward.
    """

    fixed_rows = True  # a document is the same in every epoch but for its padding

    def __init__(
        self,
        documents: ClassifierBatches,
        special: SpecialTokens,
        *,
        windows: Windows | None = None,
        pad_left: bool = False,
    ) -> None:
        if windows is not None and not 0 <= windows.overlap < windows.length - special.count:
            raise ValueError(
                f"windows of {windows.length} tokens hold {max(windows.length - special.count, 0)} of the text beside "
                f"{special.count} special tokens; the overlap must be 0 or more and smaller, got {windows.overlap}"
            )
        self.documents, self.special, self.windows, self.pad_left = documents, special, windows, pad_left

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which seeds its order, on this object only."""
        self.documents = copy.copy(self.documents)
        self.documents.set_epoch(epoch)

    @property
    def batch_size(self) -> int:
        """Most documents of a global batch."""
        return self.documents.batch_size

    def batches_in_epoch(self, epoch: int) -> int:
        """Return the number of batches of every epoch, the same on every rank."""
        return self.documents.batches_in_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches of the current epoch, the same on every rank."""
        return len(self.documents)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's share of each batch of the current epoch."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Yield an epoch's batches from a given one on, to resume inside it; earlier ones are not built."""
        for batch in self.documents.from_batch(first):
            yield type(batch)(self._finished(batch))

    def _finished(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.windows is not None:
            batch = {**batch, **self._cut(batch)}
        if self.special.typed:
            batch["token_type_ids"] = token_types(batch["attention_mask"], self.special)
        if self.pad_left:
            lengths = batch["attention_mask"].sum(1)
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                if name in batch:
                    batch[name] = _padding_first(batch[name], lengths)
        return batch

    def _cut(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        lengths = batch["attention_mask"].sum(1).tolist()
        pieces: list[Tensor] = []
        owners: list[int] = []
        for index, (ids, length) in enumerate(zip(batch["input_ids"], lengths, strict=True)):
            found = document_windows(ids[:length], self.special, self.windows or Windows(length))
            pieces += found
            owners += [index] * len(found)
        sizes = torch.tensor([len(piece) for piece in pieces])
        input_ids = torch.full((len(pieces), int(sizes.max())), self.documents.pad_token_id)
        for row, piece in zip(input_ids, pieces, strict=True):
            row[: len(piece)] = piece
        mask = (torch.arange(input_ids.shape[1]) < sizes[:, None]).long()  # (windows, width)
        return {"input_ids": input_ids, "attention_mask": mask, "document": torch.tensor(owners)}


def document_windows(ids: Tensor, special: SpecialTokens, windows: Windows) -> list[Tensor]:
    """Split one document, int64 (length,), into windows that each have the special tokens; short ones stay whole."""
    if len(ids) <= windows.length:
        return [ids]
    before, behind = len(special.prefix), len(special.suffix)
    content = ids[before : len(ids) - behind]
    room = windows.length - special.count
    starts = range(0, len(content) - windows.overlap, room - windows.overlap)
    prefix, suffix = ids[:before], ids[len(ids) - behind :]
    return [torch.cat([prefix, content[start : start + room], suffix]) for start in starts]


def token_types(mask: Tensor, special: SpecialTokens) -> Tensor:
    """Return the token types of right-padded rows, int64 (batch, seq_len); padding has 0.

    Args:
        mask: int64 (batch, seq_len), 1 at real tokens.
        special: The special tokens and their types.
    """
    lengths = mask.sum(1)
    types = mask * special.content_type
    types[:, : len(special.prefix)] = torch.tensor(special.prefix_types, dtype=types.dtype)
    for place, kind in enumerate(special.suffix_types):
        types[torch.arange(len(types)), lengths - len(special.suffix) + place] = kind
    return types


def _padding_first(rows: Tensor, lengths: Tensor) -> Tensor:
    """Roll right-padded rows (batch, seq_len) so that their padding comes first."""
    width = rows.shape[1]
    places = torch.arange(width) - (width - lengths[:, None])  # (batch, seq_len), negative at padding
    return rows.gather(1, places % width)
