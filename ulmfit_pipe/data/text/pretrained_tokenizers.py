"""Tokenizers of pretrained transformers: documents in, ids with the tokenizer's own special tokens out.

Documents are encoded whole; what to do with one that is longer than the model is decided when batches are made
(``backbone_batches``), where the special tokens found here are kept.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer

PROBE = "a b c 1 2 ."  # some text: at least one of its characters is in every vocabulary
NO_LENGTH = 1_000_000  # transformers writes 1e30 where a tokenizer knows of no longest input


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts around every document.

    Attributes:
        prefix: Ids before the text, such as BERT's [CLS].
        suffix: Ids after it, such as [SEP].
        prefix_types: Token types of the prefix.
        content_type: Token type of the text.
        suffix_types: Token types of the suffix.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    prefix_types: tuple[int, ...] = ()
    content_type: int = 0
    suffix_types: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of tokens around a document."""
        return len(self.prefix) + len(self.suffix)

    @property
    def typed(self) -> bool:
        """Whether any type differs from 0, which is what models take where they are given none."""
        return any((*self.prefix_types, self.content_type, *self.suffix_types))


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Ask a tokenizer what it puts before and behind a text.

    Raises:
        ValueError: It produces no token from plain ASCII text.
    """
    encoded = tokenizer(
        PROBE, return_special_tokens_mask=True, return_token_type_ids=True, truncation=False, padding=False
    )
    ids, added, types = encoded["input_ids"], encoded["special_tokens_mask"], encoded["token_type_ids"]
    if 0 not in added:
        raise ValueError(
            f"the tokenizer gives no token for {PROBE!r}, so its vocabulary is empty or its files are not complete; "
            "copy the tokenizer files of the folder the model came from"
        )
    first, behind = added.index(0), len(added) - added[::-1].index(0)
    if "token_type_ids" not in tokenizer.model_input_names:  # the model is not meant to see any
        types = [0] * len(ids)
    return SpecialTokens(
        prefix=tuple(ids[:first]),
        suffix=tuple(ids[behind:]),
        prefix_types=tuple(types[:first]),
        content_type=types[first],
        suffix_types=tuple(types[behind:]),
    )


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many documents, whole and without padding, each with its special tokens.

    Args:
        tokenizer: Ours, or any of transformers.
        texts: Documents of any length.
    """
    if isinstance(tokenizer, UlmfitTokenizer):
        return tokenizer.encode_documents(texts)
    if not len(texts):
        return []
    encoded = tokenizer(
        list(texts),
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning on texts longer than the model; truncation is logged where it happens
    )
    return encoded["input_ids"]


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return all that the ids of a text depend on, as a string: the key under which tokenized tables are kept."""
    kind = tokenizer.kind if isinstance(tokenizer, UlmfitTokenizer) else type(tokenizer).__name__
    return json.dumps([kind, tokenizer.backend_tokenizer.to_str()])


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hexadecimal) over tokens and ids: the fingerprint of a vocabulary; gaps between ids are allowed."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def longest_text(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the most tokens that its model reads according to a tokenizer, or None if it has no limit."""
    length = tokenizer.model_max_length
    return int(length) if length is not None and 0 < length < NO_LENGTH else None
