"""One stream of tokens -> blocks of equal length without padding, for language models that carry no state.

All documents, in an order drawn anew each epoch, form one stream, split into as few blocks of at most `block_size`
tokens as hold all of it, equally long, so that nothing is padded and nothing is left out; the blocks are shuffled and
dealt into batches of nearly equal size. A masked model's block is between its tokenizer's special tokens and has
targets where a token is masked; a causal model's has the next token as the target of each. `BlockLayout` defines where
special tokens go.

Source: packing over document borders as in Liu et al. 2019 (RoBERTa), FULL-SENTENCES.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ulmfit_pipe.data.process_shares import share_of
from ulmfit_pipe.data.streams.masking import IGNORED, TokenMasking
from ulmfit_pipe.data.streams.token_arrays import TokenArrays, read_token_arrays
from ulmfit_pipe.data.streams.token_stream import TokenStream, order_documents
from ulmfit_pipe.data.text.pretrained_tokenizers import SpecialTokens, special_tokens_of

BLOCK_STREAM, MASK_STREAM = 2, 3  # random streams of one (seed, epoch), beside that of the documents' order


@dataclass(frozen=True)
class BlockLayout:
    """Where special tokens go, in the stream and around a block.

    Attributes:
        frame: Tokens around every block, never asked for.
        skipped: Number of tokens at each document's start that are left out of the stream.
        border: Ids put behind each document in the stream.
    """

    frame: SpecialTokens = SpecialTokens()
    skipped: int = 0
    border: tuple[int, ...] = ()


def block_layout(tokenizer: PreTrainedTokenizerBase, *, masked: bool) -> BlockLayout:
    """Return how documents that a tokenizer has put between its special tokens become blocks.

    A masked model gets the special tokens around each block, as it does around a text, and what is behind a text
    between documents (``[CLS] one [SEP] two [SEP]``). A causal model's documents stay as the tokenizer gives them, one
    after the other. Where nothing is behind a document, the end-of-text token is put there, if there is one.

    Args:
        tokenizer: Of the model.
        masked: Whether the model is a masked one.
    """
    special = special_tokens_of(tokenizer)
    ends = [number for number in (tokenizer.sep_token_id, tokenizer.eos_token_id) if number is not None]
    border = tuple(ends[:1] if masked else ends[-1:]) if not special.suffix else ()
    if masked:
        return BlockLayout(special, skipped=len(special.prefix), border=border)
    return BlockLayout(border=border)


class TokenBlockBatches:
    """Batches for masked or next-token training: `input_ids` and `targets`, int64 (rows of this rank, block).

    `token_type_ids` are there if a type of the frame is not 0. Targets are -100 where nothing is asked. All blocks of
    an epoch are equally long; if the stream is not a multiple of their length, neighbouring blocks share one token, so
    that every token is read. A batch has at most `batch_size` rows; where it has fewer than there are processes, those
    that get none are given a `FillerBatch`.

    The order and the masks are a pure function of (seed, epoch); the epoch is 0 until `set_epoch`. With `shuffle` off
    they are the same in every epoch.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Sequence[int]],
        *,
        block_size: int,
        batch_size: int,
        masking: TokenMasking | None = None,
        layout: BlockLayout = BlockLayout(),
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Read the tokens and lay out epoch 0.

        Args:
            dataset: A table with a column `input_ids`, or a sequence of integer lists; a row is a document.
            block_size: Most tokens of a block, its frame included.
            batch_size: Rows of the global batch, over all processes.
            masking: How tokens are masked; None gives each token the next one as its target.
            layout: Where special tokens go.
            seed: With the epoch it fixes the order of documents and blocks, and the masks.
            shuffle: Draw order and masks anew each epoch; False keeps the table's order and epoch 0's masks.
            rank: This process, from 0.
            world_size: Number of processes; rank r takes rows r, r + world_size, ... of each batch.

        Raises:
            ValueError: For a size out of range, too little text, or a block that its special tokens fill.
        """
        _check_sizes(batch_size=batch_size, block_size=block_size, seed=seed, rank=rank, world_size=world_size)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self._masking, self._frame = masking, layout.frame
        self._documents = _laid_out(read_token_arrays(dataset), layout)
        room = block_size - layout.frame.count
        if room < 2:
            raise ValueError(
                f"block_size={block_size} leaves {room} tokens for text beside {layout.frame.count} special ones, and "
                "2 at least are needed; raise block_size"
            )
        total = int(self._documents.lengths.sum())
        self.tokens_per_epoch = total - (masking is None)  # the very first token is not a next token
        if self.tokens_per_epoch < 2:
            raise ValueError(
                f"too little text for a language model: {total} tokens in {len(self._documents)} documents; add text"
            )
        blocks = -(-self.tokens_per_epoch // room)
        if blocks < world_size:
            raise ValueError(
                f"{world_size} processes cannot share {blocks} blocks of {room} tokens: each needs one; lower "
                "block_size, add text, or start fewer processes"
            )
        self._length = -(-self.tokens_per_epoch // blocks)
        self._starts = np.arange(blocks) * (self.tokens_per_epoch - self._length) // max(1, blocks - 1)
        self._num_batches = -(-blocks // batch_size)
        self.set_epoch(0)

    @property
    def block_length(self) -> int:
        """Tokens of a block, its frame included: `block_size`, or a little less."""
        return self._length + self._frame.count

    @property
    def num_blocks(self) -> int:
        """Blocks of an epoch over all processes."""
        return len(self._starts)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which seeds its order and masks."""
        self._stream = order_documents(self._documents, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        self._epoch = epoch if self.shuffle else 0
        order = np.arange(self.num_blocks)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch, BLOCK_STREAM]).permutation(self.num_blocks)
        self._batches = np.array_split(order, self._num_batches)

    def batches_in_epoch(self, epoch: int) -> int:
        """Number of batches of any epoch, the same on every rank."""
        del epoch
        return self._num_batches

    def __len__(self) -> int:
        """Number of batches of an epoch, the same on every rank."""
        return self._num_batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield this rank's blocks of each batch of the current epoch."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the same from a certain batch on; those before it are not made."""
        stream, epoch = self._stream, self._epoch  # the epoch that this iteration began with
        for batch in self._batches[first:]:
            blocks, kind = share_of(batch, rank=self.rank, world_size=self.world_size)
            if self._masking is None:
                inputs, targets = self._next_tokens(blocks, stream)
            else:
                inputs, targets = self._masked(blocks, stream, epoch, self._masking)
            yield kind(self._framed(inputs, targets))

    def _next_tokens(self, blocks: np.ndarray, stream: TokenStream) -> tuple[np.ndarray, np.ndarray]:
        positions = self._starts[blocks][:, None] + np.arange(self._length + 1)  # (rows, length + 1)
        tokens = stream.tokens_at(positions)
        return tokens[:, :-1], tokens[:, 1:]

    def _masked(
        self, blocks: np.ndarray, stream: TokenStream, epoch: int, masking: TokenMasking
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens = stream.tokens_at(self._starts[blocks][:, None] + np.arange(self._length))  # (rows, length)
        inputs, targets = np.empty_like(tokens), np.empty_like(tokens)
        for row, block in enumerate(blocks):
            random = np.random.default_rng([self.seed, epoch, MASK_STREAM, int(block)])
            inputs[row], targets[row] = masking.mask(tokens[row], random)
        return inputs, targets

    def _framed(self, inputs: np.ndarray, targets: np.ndarray) -> dict[str, torch.Tensor]:
        frame = self._frame
        nothing = [IGNORED] * len(frame.prefix), [IGNORED] * len(frame.suffix)
        batch = {
            "input_ids": _between(frame.prefix, inputs, frame.suffix),
            "targets": _between(nothing[0], targets, nothing[1]),
        }
        if frame.typed:
            types = np.full_like(inputs, frame.content_type)
            batch["token_type_ids"] = _between(frame.prefix_types, types, frame.suffix_types)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def _between(prefix: Sequence[int], rows: np.ndarray, suffix: Sequence[int]) -> np.ndarray:
    """Put the same columns before and behind every row: int64 (rows, block)."""
    before, behind = (np.tile(np.array(ids, dtype=np.int64), (len(rows), 1)) for ids in (prefix, suffix))
    return np.concatenate([before, rows, behind], axis=1)


def _laid_out(documents: TokenArrays, layout: BlockLayout) -> TokenArrays:
    """Documents as they are in the stream: without the tokens that are skipped, with a border behind each."""
    skipped = np.minimum(layout.skipped, documents.lengths)
    if layout.border:
        places = np.repeat(documents.starts + documents.lengths, len(layout.border))
        flat = np.insert(documents.flat, places, np.tile(layout.border, len(documents)))
        lengths = documents.lengths + len(layout.border)
        documents = TokenArrays(flat, np.cumsum(lengths) - lengths, lengths)
    return TokenArrays(documents.flat, documents.starts + skipped, documents.lengths - skipped)


def _check_sizes(*, batch_size: int, block_size: int, seed: int, rank: int, world_size: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("block_size", block_size, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size-1, got rank={rank} with world_size={world_size}")
    if world_size > batch_size:
        raise ValueError(
            f"{world_size} processes cannot share batch_size={batch_size}: each needs one row at least; set batch_size "
            f"to {world_size} or more, or start fewer processes"
        )
