"""Carry embedding and decoder from one vocabulary to another: known words keep their rows, new ones get the mean.

Source: Howard & Ruder 2018, section 3.1; semantics of fastai 2.8 `match_embeds` (text/learner.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM

FASTAI_FILLER = "xxfake"  # fastai repeats it until the vocabulary's size is a multiple of 8


@dataclass(frozen=True)
class VocabTransfer:
    """How many tokens of the new vocabulary kept their row, and how many are new."""

    kept: int
    new: int


def remap_embeddings(
    old_weight: torch.Tensor,
    old_bias: torch.Tensor | None,
    old_tokens: Sequence[str],
    new_tokens: Sequence[str],
) -> tuple[torch.Tensor, torch.Tensor | None, VocabTransfer]:
    """Order rows by a new vocabulary; a token the old one lacks gets the mean of all old rows (and of the bias).

    Args:
        old_weight: float (old vocab, embedding).
        old_bias: float (old vocab,), or None.
        old_tokens: The old vocabulary, position = id.
        new_tokens: The new vocabulary, position = id.

    Returns:
        weight float (new vocab, embedding), bias float (new vocab,) or None, and the counts.

    Raises:
        ValueError: The old tokens do not fit the old weight, or a vocabulary holds a token twice ("xxfake" may
            recur, fastai fills up its vocabularies with it).
    """
    if len(old_tokens) != len(old_weight):
        raise ValueError(
            f"the old vocabulary has {len(old_tokens)} tokens but the embedding has {len(old_weight)} rows; "
            "give the vocabulary this model was trained with"
        )
    old_ids = _ids_by_token(old_tokens, "old")
    _ids_by_token(new_tokens, "new")
    mean_row = len(old_tokens)  # the mean is behind the last old row
    source = torch.tensor([old_ids.get(token, mean_row) for token in new_tokens], device=old_weight.device)
    weight = torch.cat([old_weight, old_weight.mean(0, keepdim=True)])[source]
    bias = None if old_bias is None else torch.cat([old_bias, old_bias.mean(0, keepdim=True)])[source]
    kept = int((source != mean_row).sum())
    return weight, bias, VocabTransfer(kept=kept, new=len(new_tokens) - kept)


def _ids_by_token(tokens: Sequence[str], which: str) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if token in ids and token != FASTAI_FILLER:
            raise ValueError(f"the {which} vocabulary holds {token!r} twice, as id {ids[token]} and id {i}")
        ids[token] = i
    return ids


@torch.no_grad()
def transfer_vocabulary(
    model: AwdLstmForCausalLM,
    old_tokens: Sequence[str],
    new_tokens: Sequence[str],
    *,
    vocab_hash: str | None = None,
    old_vocab_hash: str | None = None,
) -> VocabTransfer:
    """Give a language model a new vocabulary, in place; tied weights stay tied.

    Tokens are compared as strings, words and subwords alike.

    Args:
        model: The language model; its embedding and decoder are replaced.
        old_tokens: Its vocabulary, position = id.
        new_tokens: The vocabulary it gets, position = id.
        vocab_hash: The new vocabulary's hash, written to the configuration.
        old_vocab_hash: The old vocabulary's hash; it must be the one that the model was trained with.

    Raises:
        ValueError: As `remap_embeddings`; the old vocabulary is another model's, by its hash; or the padding id means
            different tokens in the two vocabularies.
    """
    trained_with = model.config.vocab_hash
    if None not in (old_vocab_hash, trained_with) and old_vocab_hash != trained_with:
        raise ValueError(
            f"the old vocabulary has the hash {str(old_vocab_hash)[:12]}..., the model was trained with "
            f"{str(trained_with)[:12]}...; give the vocabulary this model was trained with"
        )
    _check_padding(model.config.pad_token_id, old_tokens, new_tokens)
    embeddings, decoder = model.model.embeddings, model.lm_head
    tied = decoder.weight is embeddings.weight
    weight, bias, counts = remap_embeddings(embeddings.weight, decoder.bias, old_tokens, new_tokens)
    if not tied:
        decoder.weight = nn.Parameter(remap_embeddings(decoder.weight, None, old_tokens, new_tokens)[0])
    embeddings.weight = nn.Parameter(weight)
    if tied:
        decoder.weight = embeddings.weight
    if bias is not None:
        decoder.bias = nn.Parameter(bias)
    embeddings.num_embeddings = decoder.out_features = len(new_tokens)
    model.config.vocab_size, model.config.vocab_hash = len(new_tokens), vocab_hash
    return counts


def _check_padding(pad_token_id: int | None, old_tokens: Sequence[str], new_tokens: Sequence[str]) -> None:
    if pad_token_id is None or pad_token_id >= min(len(old_tokens), len(new_tokens)):
        return
    old, new = old_tokens[pad_token_id], new_tokens[pad_token_id]
    if old != new:
        raise ValueError(
            f"pad_token_id {pad_token_id} is {old!r} in the old vocabulary and {new!r} in the new one; both must "
            "have the padding token at the same id"
        )
