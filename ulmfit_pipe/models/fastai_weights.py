"""Map the keys of fastai AWD-LSTM checkpoints to ours and back, by name; tensors are passed on as they are.

Read: fastai 2 and 1 (`weight_hh_l0_raw` beside the inner module), fastai 0.7 and salesforce (`_raw` inside it,
`encoder_with_dropout.embed`), each as language model, encoder file or classifier. Written: fastai 2.8.
"""

import re
from collections.abc import Mapping

from torch import Tensor

StateDict = dict[str, Tensor]

_LSTM_WEIGHT = r"(?P<weight>(?:weight|bias)_(?:ih|hh)_l0)"
_HEAD_NORM = r"(?P<norm>weight|bias|running_mean|running_var|num_batches_tracked)"
_ENCODER = r"(?:0\.)?(?:module\.)?"
_INNER = r"(?:module\.)?"
_KEY_RULES = [  # fastai key -> ours; None drops a copy of another key
    (re.compile(rf"{_ENCODER}encoder\.weight"), "model.embeddings.weight"),
    (re.compile(rf"{_ENCODER}(?:encoder_dp\.emb|encoder_with_dropout\.embed)\.weight"), None),
    (re.compile(rf"{_ENCODER}rnns\.(?P<layer>\d+)\.{_INNER}{_LSTM_WEIGHT}(?:_raw)?"), "model.layers.{layer}.{weight}"),
    (re.compile(r"(?:1\.)?decoder\.weight"), "lm_head.weight"),
    (re.compile(r"(?:1\.)?decoder\.bias"), "lm_head.bias"),
    (re.compile(rf"1\.layers\.(?P<block>\d+)\.0\.{_HEAD_NORM}"), "classifier.blocks.{block}.norm.{norm}"),
    (re.compile(r"1\.layers\.(?P<block>\d+)\.[12]\.weight"), "classifier.blocks.{block}.linear.weight"),
]
_RAW = re.compile(rf"(?P<stem>{_ENCODER}rnns\.\d+\.){_INNER}weight_hh_l0_raw")


def from_fastai_state_dict(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename a fastai state dict's keys to ours.

    Args:
        state_dict: The weights of a fastai language model, encoder file or classifier, or the dict
            {"model": weights, "opt": ...} that `Learner.save` writes.

    Returns:
        Our keys: `model.*`, with `lm_head.*` for a language model and `classifier.*` for a classifier. The decoder's
        tied weight stays in it under its own name.

    Raises:
        ValueError: A key is none of the known layouts', or two keys would become one; both are named.
    """
    if set(state_dict) == {"model", "opt"}:
        state_dict = state_dict["model"]  # type: ignore[assignment]
    dropped_copies = {match["stem"] for key in state_dict if (match := _RAW.fullmatch(key))}
    ours: StateDict = {}
    origin: dict[str, str] = {}
    for key, tensor in state_dict.items():
        name = None if _is_dropped_copy(key, dropped_copies) else _our_name(key)
        if name is None:
            continue
        if name in origin:
            raise ValueError(f"fastai keys {origin[name]!r} and {key!r} both become {name!r}; which one is meant?")
        ours[name], origin[name] = tensor, key
    return ours


def _is_dropped_copy(key: str, stems: set[str]) -> bool:
    """Tell whether this is the once dropped recurrent weight beside a `_raw` one."""
    return key.endswith("weight_hh_l0") and any(key.startswith(stem) for stem in stems)


def _our_name(key: str) -> str | None:
    for pattern, template in _KEY_RULES:
        if match := pattern.fullmatch(key):
            return template and template.format(**match.groupdict())
    raise ValueError(
        f"key {key!r} is not one of a fastai AWD-LSTM language model, encoder or classifier; "
        "QRNN, bidirectional and transformer models cannot be mapped"
    )


def to_fastai_state_dict(state_dict: Mapping[str, Tensor], *, linear_index: tuple[int, int] = (2, 2)) -> StateDict:
    """Rename our keys to fastai 2.8's.

    Args:
        state_dict: The weights of one of our three forms; with `lm_head.*` keys it becomes a fastai language model,
            with `classifier.*` keys a classifier, else an encoder file.
        linear_index: Position of the linear layer in each head block of the fastai model: 2, or 1 where that block's
            dropout is 0 (fastai leaves the dropout out).

    Returns:
        fastai keys, the tied copies included.

    Raises:
        ValueError: A key is not one of ours.
    """
    if any(key.startswith("lm_head.") for key in state_dict):
        prefix = "0."
    elif any(key.startswith("classifier.") for key in state_dict):
        prefix = "0.module."
    else:
        prefix = ""
    theirs: StateDict = {}
    for key, tensor in state_dict.items():
        for name in _fastai_names(key, prefix, linear_index):
            theirs[name] = tensor
    if prefix == "0." and "1.decoder.weight" not in theirs:
        theirs["1.decoder.weight"] = theirs["0.encoder.weight"]
    return theirs


def _fastai_names(key: str, prefix: str, linear_index: tuple[int, int]) -> list[str]:
    if key.removeprefix("model.") == "embeddings.weight":
        return [f"{prefix}encoder.weight", f"{prefix}encoder_dp.emb.weight"]
    if match := re.fullmatch(rf"(?:model\.)?layers\.(?P<layer>\d+)\.{_LSTM_WEIGHT}", key):
        stem = f"{prefix}rnns.{match['layer']}."
        return [stem + ("weight_hh_l0_raw" if match["weight"] == "weight_hh_l0" else f"module.{match['weight']}")]
    if match := re.fullmatch(r"lm_head\.(?P<part>weight|bias)", key):
        return [f"1.decoder.{match['part']}"]
    if match := re.fullmatch(rf"classifier\.blocks\.(?P<block>[01])\.norm\.{_HEAD_NORM}", key):
        return [f"1.layers.{match['block']}.0.{match['norm']}"]
    if match := re.fullmatch(r"classifier\.blocks\.(?P<block>[01])\.linear\.weight", key):
        block = int(match["block"])
        return [f"1.layers.{block}.{linear_index[block]}.weight"]
    raise ValueError(f"key {key!r} is not one of AwdLstmModel, AwdLstmForCausalLM or AwdLstmForSequenceClassification")


def fastai_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes a fastai state dict needs of an `AwdLstmConfig`, as its keyword arguments.

    Raises:
        ValueError: As `from_fastai_state_dict`, or no embedding is in it.
    """
    ours = from_fastai_state_dict(state_dict)
    if "model.embeddings.weight" not in ours:
        raise ValueError(f"no 'encoder.weight' among the {len(ours)} mapped keys; this is not a complete checkpoint")
    vocab_size, embedding_size = ours["model.embeddings.weight"].shape
    return {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "hidden_size": ours["model.layers.0.weight_hh_l0"].shape[1],
        "num_hidden_layers": sum(key.endswith("weight_ih_l0") for key in ours),
    }
