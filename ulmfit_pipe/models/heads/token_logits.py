"""The logits of a transformers language model at the positions that are asked for.

A masked model is asked for one position in seven, but transformers runs its head, a layer as wide as the vocabulary, at
all of them. Here the hidden states of the other positions are left out before the head.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

LEAK_LENGTH = 8  # tokens are enough to see whether a model looks ahead
LEAK_SHARE = 1e-4  # of the change at the token itself; rounding in float32 stays far below it


def masked_logits(model: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
    """Return a masked language model's logits at some positions, without computing those of the others.

    Args:
        model: A transformers model whose head reads the first output of its ``base_model`` position by position, as
            all of transformers' do; bare or wrapped for data parallelism.
        inputs: Named inputs.
        wanted: bool (batch, seq_len).

    Returns:
        float (wanted positions, vocab_size), row by row.
    """

    def keep_wanted(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        name, hidden = next(iter(output.items()))  # float (batch, seq_len, hidden)
        if hidden.shape[:2] == wanted.shape:
            output[name] = hidden[wanted].unsqueeze(0)  # (1, wanted positions, hidden)
        return output

    bare: Any = getattr(model, "module", model)
    hook = bare.base_model.register_forward_hook(keep_wanted)
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    return logits[wanted] if logits.shape[:2] == wanted.shape else logits.squeeze(0)


def causal_logits(model: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
    """Return a causal language model's logits at some positions, without the cache that only generation needs.

    Args:
        model: A transformers model, bare or wrapped for data parallelism.
        inputs: Named inputs.
        wanted: bool (batch, seq_len); usually all.

    Returns:
        float (wanted positions, vocab_size), row by row.
    """
    bare: Any = getattr(model, "module", model)
    cache = {"use_cache": False} if "use_cache" in inspect.signature(bare.forward).parameters else {}
    logits: Tensor = model(**inputs, **cache).logits
    return logits.flatten(0, 1) if bool(wanted.all()) else logits[wanted]


def sees_later_tokens(model: nn.Module) -> bool:
    """Return whether a language model's logits at a position depend on the tokens behind it.

    Such a model cannot be trained to name the next token: it would read it off.

    Args:
        model: A transformers language model.
    """
    bare: Any = model
    was_training = model.training
    model.eval()
    last = min(bare.config.get_text_config().vocab_size, LEAK_LENGTH + 1) - 1
    first = torch.arange(LEAK_LENGTH, device=bare.device).remainder(last).unsqueeze(0)  # (1, seq_len)
    other = first.clone()
    other[0, -1] = last
    with torch.no_grad():
        before, after = (
            causal_logits(model, {"input_ids": ids}, torch.ones_like(ids, dtype=torch.bool)).float()
            for ids in (first, other)
        )
    model.train(was_training)
    changes = (before - after).abs().amax(dim=1)  # (seq_len,)
    return bool(changes[:-1].max() > LEAK_SHARE * changes[-1])
