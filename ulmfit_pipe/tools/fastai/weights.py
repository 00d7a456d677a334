"""Map the keys of fastai AWD-LSTM checkpoints to ours and back, by name; tensors are passed on as they are.

Read: fastai 2 and 1 (`weight_hh_l0_raw` beside the inner module), fastai 0.7 and salesforce (`_raw` inside it,
`encoder_with_dropout.embed`), each as language model, encoder file or classifier. Written: fastai 2.8.

One thing is computed: the head of fastai 1 and 0.7 has a bias in its linear layers, ours (and fastai 2's) none. It is
moved into the bias of the norm in front of the layer, which gives the same scores.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

_LSTM_WEIGHT = r"(?P<weight>(?:weight|bias)_(?:ih|hh)_l0)"
_LSTM_ORDER = ("weight_hh_l0", "weight_ih_l0", "bias_ih_l0", "bias_hh_l0")  # in fastai's state dict
_HEAD_NORM = r"(?P<norm>weight|bias|running_mean|running_var|num_batches_tracked)"
_ENCODER = r"(?:0\.)?(?:module\.)?"
_INNER = r"(?:module\.)?"
_COPY_OF_ENCODER = rf"(?P<stem>{_ENCODER})(?:encoder_dp\.emb|encoder_with_dropout\.embed)\.weight"
_KEY_RULES = [  # fastai key -> ours; None drops a copy of another key
    (re.compile(rf"{_ENCODER}encoder\.weight"), "model.embeddings.weight"),
    (re.compile(_COPY_OF_ENCODER), None),
    (re.compile(rf"{_ENCODER}rnns\.(?P<layer>\d+)\.{_INNER}{_LSTM_WEIGHT}(?:_raw)?"), "model.layers.{layer}.{weight}"),
    (re.compile(r"(?:1\.)?decoder\.weight"), "lm_head.weight"),
    (re.compile(r"(?:1\.)?decoder\.bias"), "lm_head.bias"),
    (re.compile(rf"1\.layers\.(?P<block>\d+)\.0\.{_HEAD_NORM}"), "classifier.blocks.{block}.norm.{norm}"),
    (re.compile(r"1\.layers\.(?P<block>\d+)\.[12]\.weight"), "classifier.blocks.{block}.linear.weight"),
]
_OLD_HEADS = [  # fastai 1 (a flat list of modules), fastai 0.7
    re.compile(rf"1\.layers\.(?P<module>\d+)\.{_HEAD_NORM}"),
    re.compile(rf"1\.layers\.(?P<module>\d+)\.(?P<kind>lin|bn)\.{_HEAD_NORM}"),
]
HEAD_BLOCKS = 2  # of our classifier, and of fastai's unless lin_ftrs was given
_RAW = re.compile(rf"(?P<stem>{_ENCODER}rnns\.\d+\.){_INNER}weight_hh_l0_raw")


def from_fastai_state_dict(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename a fastai state dict's keys to ours.

    Args:
        state_dict: The weights of a fastai language model, encoder file or classifier, or the dict
            {"model": weights, ...} that `Learner.save` writes with its optimizer.

    Returns:
        Our keys: `model.*`, with `lm_head.*` for a language model and `classifier.*` for a classifier. The decoder's
        tied weight stays in it under its own name.

    Raises:
        ValueError: A key is not of a known layout, two keys would become one or are copies that differ (both
            are named), or a head does not have two blocks.
    """
    if isinstance(inner := state_dict.get("model"), Mapping):
        state_dict = inner
    _refuse_other_copies(state_dict)
    state_dict = _with_fastai_2_head(state_dict)
    dropped_copies = {match["stem"] for key in state_dict if (match := _RAW.fullmatch(key))}
    ours: StateDict = {}
    origin: dict[str, str] = {}
    for key, tensor in state_dict.items():
        name = None if _is_dropped_copy(key, dropped_copies) else _our_name(key)
        if name is None:
            continue
        if name in origin:
            raise ValueError(f"fastai keys {origin[name]!r} and {key!r} both become {name!r}; remove one of them")
        ours[name], origin[name] = tensor, key
    return ours


def _refuse_other_copies(state_dict: Mapping[str, Tensor]) -> None:
    """Refuse a second embedding: fastai's dropout keeps the encoder's under a name of its own, and one is dropped."""
    for key, copy in state_dict.items():
        if match := re.fullmatch(_COPY_OF_ENCODER, key):
            name = f"{match['stem']}encoder.weight"
            original = state_dict.get(name, copy)
            if original.dim() != 2:
                continue  # not an embedding; `fastai_sizes` reports it with its shape
            if original.shape != copy.shape or not bool((original == copy).all()):
                raise ValueError(
                    f"{name!r} and {key!r} are one embedding in every fastai model, and here they differ; take an "
                    "earlier save, or put the right one under both names and save again"
                )


def _with_fastai_2_head(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Bring the head of fastai 1 or 0.7 into fastai 2's layout; anything else is returned as it is."""
    modules: dict[tuple[int, str], dict[str, Tensor]] = {}
    rest: StateDict = {}
    for key, tensor in state_dict.items():
        match = next((found for pattern in _OLD_HEADS if (found := pattern.fullmatch(key))), None)
        if match is None:
            rest[key] = tensor
        else:
            kind = match.groupdict().get("kind", "")
            modules.setdefault((int(match["module"]), kind), {})[match["norm"]] = tensor
    if not modules:
        return state_dict
    ordered = [modules[place] for place in sorted(modules)]
    norms = [module for module in ordered if "running_mean" in module]
    linears = [module for module in ordered if "running_mean" not in module]
    if len(norms) != len(linears):
        raise ValueError(f"the head has {len(norms)} norms but {len(linears)} linear layers; it is cut short")
    for block, (norm, linear) in enumerate(zip(norms, linears, strict=True)):
        _check_old_block(block, norm, linear)
        moved = {**norm, "bias": _with_bias_moved(norm["bias"], linear)}
        moved.setdefault("num_batches_tracked", torch.tensor(0))
        rest |= {f"1.layers.{block}.0.{name}": tensor for name, tensor in moved.items()}
        rest[f"1.layers.{block}.2.weight"] = linear["weight"]
    return rest


def _check_old_block(block: int, norm: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> None:
    for kind, part, name in (("norm", norm, "bias"), ("linear layer", linear, "weight")):
        if name not in part:
            raise ValueError(f"the {kind} of the head's block {block} has no {name}; it is not a whole classifier")
    weight, bias = linear["weight"], linear.get("bias")
    fits = weight.dim() == 2 and norm["bias"].shape == weight.shape[1:]
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = [tuple(tensor.shape) for tensor in (norm["bias"], weight, bias) if tensor is not None]
        raise ValueError(f"the parts of the head's block {block} do not fit: norm and linear layer have {shapes}")


def _with_bias_moved(norm_bias: Tensor, linear: Mapping[str, Tensor]) -> Tensor:
    """Return the norm's bias b' for which weight @ b' is weight @ b + the linear layer's own bias."""
    if "bias" not in linear:
        return norm_bias
    weight, bias = linear["weight"].double(), linear["bias"].double()
    shift = torch.linalg.pinv(weight) @ bias
    if not torch.allclose(weight @ shift, bias, atol=1e-6):
        raise ValueError(
            f"the head's linear layer of shape {tuple(weight.shape)} has a bias that cannot be moved into its norm, "
            "because its rows depend on one another; train a classifier on the encoder instead"
        )
    return norm_bias + shift.to(norm_bias.dtype)


def _is_dropped_copy(key: str, stems: set[str]) -> bool:
    """Return whether this is the once dropped recurrent weight beside a `_raw` one."""
    return key.endswith("weight_hh_l0") and any(key.startswith(stem) for stem in stems)


def _our_name(key: str) -> str | None:
    for pattern, template in _KEY_RULES:
        if match := pattern.fullmatch(key):
            if int(match.groupdict().get("block") or 0) >= HEAD_BLOCKS:
                raise ValueError(f"the head has a block {match['block']} ({key!r}); a head of two blocks can be mapped")
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
        fastai keys in fastai's order (`load_pretrained` goes by position), the tied copies included.

    Raises:
        ValueError: A key is not one of ours.
    """
    if any(key.startswith("lm_head.") for key in state_dict):
        prefix = "0."
    elif any(key.startswith("classifier.") for key in state_dict):
        prefix = "0.module."
    else:
        prefix = ""
    if prefix == "0." and "lm_head.weight" not in state_dict:
        state_dict = {**state_dict, "lm_head.weight": state_dict["model.embeddings.weight"]}
    theirs: StateDict = {}
    for key in sorted(state_dict, key=_fastai_place):
        for name in _fastai_names(key, prefix, linear_index):
            theirs[name] = state_dict[key]
    return theirs


def _fastai_place(key: str) -> tuple[int, int, int]:
    """Sort our keys in the order of fastai's modules; ties keep their order."""
    if match := re.search(rf"layers\.(?P<layer>\d+)\.{_LSTM_WEIGHT}", key):
        return 1, int(match["layer"]), _LSTM_ORDER.index(match["weight"])
    if match := re.search(r"blocks\.(?P<block>\d+)\.(?P<kind>norm|linear)", key):
        return 2, int(match["block"]), ("norm", "linear").index(match["kind"])
    return (0 if key.endswith("embeddings.weight") else 2), 0, int(key.endswith("bias"))


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
        ValueError: As `from_fastai_state_dict`, or no embedding is in it, or it, the first layer or the decoder has
            another shape than such a model's.
    """
    ours = from_fastai_state_dict(state_dict)
    for needed, theirs in (
        ("embeddings.weight", "encoder.weight"),
        ("layers.0.weight_hh_l0", "rnns.0.weight_hh_l0_raw"),
    ):
        if f"model.{needed}" not in ours:
            raise ValueError(f"no {theirs!r} among the {len(ours)} mapped keys; this is not a complete checkpoint")
    vocab_size, embedding_size = _shape(ours, "model.embeddings.weight", ("vocab", "embedding"))
    _shape(ours, "model.layers.0.weight_hh_l0", ("4 x hidden", "hidden"))
    for name, expected in (("lm_head.weight", (vocab_size, embedding_size)), ("lm_head.bias", (vocab_size,))):
        if name in ours and ours[name].shape != expected:
            raise ValueError(
                f"the decoder's {name.removeprefix('lm_head.')} has the shape {tuple(ours[name].shape)}, but the "
                f"embedding asks for {expected}; they are of two models, or the file was altered"
            )
    return {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "hidden_size": ours["model.layers.0.weight_hh_l0"].shape[1],
        "num_hidden_layers": sum(key.endswith("weight_ih_l0") for key in ours),
    }


def _shape(ours: Mapping[str, Tensor], name: str, axes: tuple[str, ...]) -> tuple[int, ...]:
    shape = tuple(ours[name].shape)
    if len(shape) != len(axes):
        raise ValueError(f"{name} must have the axes ({', '.join(axes)}), its shape is {shape}; the file was altered")
    return shape


def fastai_head_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of a fastai classifier's head as keyword arguments of an `AwdLstmConfig`; {} if it has none.

    Raises:
        ValueError: As `from_fastai_state_dict`, or one of the two blocks is missing or has another shape.
    """
    ours = from_fastai_state_dict(state_dict)
    names = [f"classifier.blocks.{block}.linear.weight" for block in range(HEAD_BLOCKS)]
    if not any(key.startswith("classifier.") for key in ours):
        return {}
    for block, name in enumerate(names):
        if name not in ours:
            raise ValueError(f"the head has no linear layer in block {block}; this is not a complete classifier")
    head_hidden_size, num_labels = (_shape(ours, name, ("out", "in"))[0] for name in names)
    return {"head_hidden_size": head_hidden_size, "num_labels": num_labels}
