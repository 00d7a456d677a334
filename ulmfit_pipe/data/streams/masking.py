"""Which tokens of a block a masked language model has to guess, and what it sees in their places.

BERT's scheme: a fixed share of a block's tokens is drawn; of these, eight in ten are replaced by the mask token, one in
ten by a random token, and one in ten is left as it is. Nothing is stored: a block is masked when it is read, from the
random stream it is given, so that the same (seed, epoch, block) always gives the same masks.

Source: Devlin et al. 2019, section 3.1 and appendix A.1, and their `create_pretraining_data.py` (the number of tokens
is fixed, and whole words that would exceed it are passed over).
"""

import json
from dataclasses import dataclass, field, replace

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

IGNORED = -100  # a target that counts for nothing; torch's own mark
MASK_PROBABILITY = 0.15  # Devlin et al. 2019
SPACE_MARKS = ("▁", "Ġ")  # what sentencepiece and byte-level BPE write for a space before a word
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the drawn tokens; the rest stays as it is (Devlin et al. 2019)


@dataclass(frozen=True)
class TokenMasking:
    """How blocks of one vocabulary are masked.

    Attributes:
        mask_token_id: What most of the drawn tokens are replaced by.
        vocab_size: Ids are in 0..vocab_size-1.
        special_ids: Ids that are never drawn, and never replace a token.
        probability: Share of a block's tokens that is drawn, in (0, 1); at least one token is.
        mask_share: Share of the drawn tokens that the mask token replaces.
        random_share: Share of the drawn tokens that a random token replaces; what is left stays as it is.
        word_starts: bool (vocab_size,), whether a token begins a word, to draw whole words; None draws single tokens.

    Raises:
        ValueError: A share is out of range, or every id is special.
    """

    mask_token_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    probability: float = MASK_PROBABILITY
    mask_share: float = MASK_SHARE
    random_share: float = RANDOM_SHARE
    word_starts: np.ndarray | None = field(default=None, repr=False, compare=False)
    _ordinary: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the shares, and find the ids that a token can be replaced by."""
        if not 0 < self.probability < 1:
            raise ValueError(
                f"mask_probability must lie in (0, 1), got {self.probability!r}; {MASK_PROBABILITY} is BERT's value"
            )
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share and random_share must be 0 or more and at most 1 together, got {self.mask_share!r} and "
                f"{self.random_share!r}; {MASK_SHARE} and {RANDOM_SHARE} are BERT's values"
            )
        ordinary = np.setdiff1d(np.arange(self.vocab_size), self.special_ids)
        if not ordinary.size:
            raise ValueError(f"all {self.vocab_size} ids of the vocabulary are special, so nothing can be masked")
        object.__setattr__(self, "_ordinary", ordinary)

    def without_chance(self) -> "TokenMasking":
        """Return the same with every drawn token behind the mask, as an evaluation needs it.

        A token that is left as it is could be read off; a pseudo-perplexity is of tokens that are not seen.
        """
        return replace(self, mask_share=1.0, random_share=0.0)

    def mask(self, tokens: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Mask one block.

        Args:
            tokens: int64 (length,).
            random: The block's own random stream.

        Returns:
            What the model sees and what it has to guess, both int64 (length,); the targets are -100 but at the drawn
            tokens.
        """
        inputs, targets = tokens.copy(), np.full_like(tokens, IGNORED)
        candidates = np.flatnonzero(~np.isin(tokens, self.special_ids))
        if not candidates.size:
            return inputs, targets
        number = max(1, round(len(candidates) * self.probability))
        if self.word_starts is None:
            drawn = random.permutation(candidates)[:number]
        else:
            words = np.cumsum(self.word_starts[tokens])
            drawn = _draw_words(candidates, words[candidates], number, random)
        fate = random.random(len(drawn))
        masked = drawn[fate < self.mask_share]
        changed = drawn[(fate >= self.mask_share) & (fate < self.mask_share + self.random_share)]
        targets[drawn] = tokens[drawn]
        inputs[masked] = self.mask_token_id
        inputs[changed] = random.choice(self._ordinary, len(changed))
        return inputs, targets


def _draw_words(candidates: np.ndarray, words: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Draw whole words until they have this many tokens; a word that would exceed it is skipped.

    Where every word is longer than that, the shortest is drawn.

    Args:
        candidates: int64 (candidates,), positions in the block, increasing.
        words: int64 (candidates,), the word of each position, increasing.
        number: Tokens to draw.
        random: The block's own random stream.
    """
    pieces = np.split(candidates, np.flatnonzero(np.diff(words)) + 1)
    drawn: list[np.ndarray] = []
    left = number
    for index in random.permutation(len(pieces)):
        if len(pieces[index]) <= left:
            drawn.append(pieces[index])
            left -= len(pieces[index])
        if not left:
            break
    return np.concatenate(drawn or [min(pieces, key=len)])


def masking_of(
    tokenizer: PreTrainedTokenizerBase, *, probability: float = MASK_PROBABILITY, whole_words: bool = False
) -> TokenMasking:
    """Return BERT's masking for a tokenizer's vocabulary.

    Args:
        tokenizer: Has a mask token.
        probability: Share of a block's tokens that is drawn.
        whole_words: Draw whole words instead of single tokens.

    Raises:
        ValueError: The tokenizer has no mask token or, for whole words, no sign of where they begin; or the probability
            is out of range.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"the {type(tokenizer).__name__} has no mask token, which a masked language model needs; set its "
            "mask_token to the one the model was trained with, and save the tokenizer again"
        )
    return TokenMasking(
        tokenizer.mask_token_id,
        max(tokenizer.get_vocab().values()) + 1,  # some vocabularies have gaps
        tuple(tokenizer.all_special_ids),
        probability,
        word_starts=word_starts_of(tokenizer) if whole_words else None,
    )


def word_starts_of(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return for each id of a vocabulary whether its token begins a word, bool (largest id + 1,).

    Subwords of WordPiece that continue a word are marked with ``##``. Of the other kinds those are marked that follow
    a space; what is neither marked nor begins with a letter or digit is punctuation, a word of its own.

    Raises:
        ValueError: The vocabulary marks where words end, or nothing.
    """
    kind = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.get_vocab()
    starts = np.ones(max(tokens.values()) + 1, dtype=bool)
    if kind["type"] == "WordLevel":
        return starts
    if kind["type"] == "WordPiece":
        inside = [number for token, number in tokens.items() if token.startswith(kind["continuing_subword_prefix"])]
    else:
        mark = max(SPACE_MARKS, key=lambda mark: sum(token.startswith(mark) for token in tokens))
        if kind.get("end_of_word_suffix") or not any(token.startswith(mark) for token in tokens):
            raise ValueError(
                f"the vocabulary of the {type(tokenizer).__name__} does not mark where words begin, so they cannot be "
                "masked whole; leave whole_word_masking out"
            )
        inside = [number for token, number in tokens.items() if token[0].isalnum() and not token.startswith(mark)]
    starts[inside] = False
    starts[list(tokenizer.all_special_ids)] = True
    return starts
