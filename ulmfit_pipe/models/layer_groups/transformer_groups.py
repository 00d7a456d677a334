"""Layer groups of the text models of transformers: embeddings | each block, or bundles of blocks | head.

The blocks are found by how the modules are nested: the outermost list of blocks inside the backbone. What is beside
that list is placed by its kind: a norm goes with the last block, a pooler with the head, everything else (positions,
also relative ones, projections) with the embeddings. What is outside the backbone is the head. Never by the order
in which parameters are registered: XLM-RoBERTa and CamemBERT register their head first. What nesting and kind do not
tell is in `ARRANGEMENTS`.

Source: Howard & Ruder 2018, sections 3.2 and 3.3, one group per layer; per-layer rates of a BERT in Sun et al. 2019,
section 5.3.3.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ulmfit_pipe.models.layer_groups.awd_lstm_groups import SPECS_BY_CLASS
from ulmfit_pipe.models.layer_groups.spec import GIVE_THEM_YOURSELF, LayerGroupSpec


@dataclass(frozen=True)
class Arrangement:
    """The groups of an architecture's modules that cannot be inferred from nesting and kind.

    All names are relative to the backbone; those that a model of the architecture lacks are passed over.

    Attributes:
        stacks: Lists of blocks, run one after the other; several names in one entry are lists that run side by side
            (the first block is the first of each).
        embeddings: Modules that go with the embeddings.
        first_block: Modules that go with the first block.
        last_block: Modules that go with the last block.
        head: Modules that go with the head.
        decoder: A head that multiplies by a matrix of the backbone without holding it, and the matrix.
        fixed: Parameters that no training moves: they are computed, or no text reaches them.
    """

    stacks: tuple[tuple[str, ...], ...] = ()
    embeddings: tuple[str, ...] = ()
    first_block: tuple[str, ...] = ()
    last_block: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    decoder: tuple[str, str] | None = None
    fixed: tuple[str, ...] = ()


# A head that is handed the word embeddings, in DeBERTa's newer language models.
_HANDED = ("lm_predictions", "embeddings.word_embeddings")
_LFM = Arrangement(last_block=("embedding_norm",))  # a final norm, despite its name
_XLM = Arrangement(stacks=(("attentions", "layer_norm1", "ffns", "layer_norm2"),))

ARRANGEMENTS: dict[str, Arrangement] = {
    "bigbird_pegasus": Arrangement(last_block=("decoder.layernorm_embedding",)),  # a final norm, despite its name
    "deberta": Arrangement(decoder=_HANDED),
    "deberta-v2": Arrangement(  # the norm is of the relative positions, the convolution runs beside the first layer
        embeddings=("encoder.LayerNorm",), first_block=("encoder.conv",), decoder=_HANDED
    ),
    "flaubert": _XLM,
    "funnel": Arrangement(stacks=(("encoder.blocks",), ("decoder.layers",))),
    "gemma4": Arrangement(embeddings=("language_model.per_layer_projection_norm",)),
    "gemma4_text": Arrangement(embeddings=("per_layer_projection_norm",)),
    "layoutlmv3": Arrangement(embeddings=("LayerNorm", "norm")),
    "lfm2": _LFM,
    "lfm2_moe": _LFM,
    "lfm3": _LFM,
    "opt": Arrangement(last_block=("decoder.project_out",)),
    "perceiver": Arrangement(head=("decoder",)),
    "roformer": Arrangement(fixed=("encoder.embed_positions",)),  # sines, looked up without gradients
    "xlm": _XLM,
    "xlnet": Arrangement(fixed=("mask_emb",)),  # stands for the words to predict in its own pretraining only
}


def transformer_group_specs(model: nn.Module, *, max_blocks: int | None = None) -> list[LayerGroupSpec]:
    """Return the layer groups of a text model of transformers, input side first.

    Args:
        model: A backbone, with or without a head on it, bare or inside a module of one's own.
        max_blocks: Most groups that the blocks make up; neighbours are bundled (``blocks0-2``), the bundles as equal
            as possible, the larger ones nearer the input. None gives each block a group.

    Returns:
        ``embeddings | block0 | block1 ... | head`` without what the model lacks, together every parameter once. An
        embedding that a language model's head is tied to is in the head's group, the last; a block that shares all
        its weights with an earlier one is one with it.

    Raises:
        ValueError: The model is not from transformers, is an encoder-decoder, or its blocks are not found; it has fewer
            than two groups; or ``max_blocks`` is not a whole number of 1 or more.
    """
    if max_blocks is not None and (isinstance(max_blocks, bool) or not isinstance(max_blocks, int) or max_blocks < 1):
        raise ValueError(f"max_blocks must be a whole number of 1 or more, got {max_blocks!r}; None bundles nothing")
    host = pretrained_part(model)
    backbone = _backbone(host)
    stacks = _stacks(host, backbone)
    blocks = [block for stack in stacks for block in _blocks(backbone, stack)]
    depths = _depths(model, host, backbone, stacks, blocks)
    head = len(blocks) + 1
    used = sorted(set(depths.values()))
    labels = {0: "embeddings", head: "head", **_bundles([depth for depth in used if 0 < depth < head], max_blocks)}
    prefixes: dict[str, list[str]] = {labels[depth]: [] for depth in used}
    for label, prefix in _prefixes(model, "", lambda parameter: labels[depths[id(parameter)]]):
        prefixes[label].append(prefix)
    if len(prefixes) < 2:
        raise ValueError(
            f"{type(model).__name__} has 1 layer group ({next(iter(prefixes), 'nothing')}), and unfreezing needs two: "
            f"something to freeze and something to train; {GIVE_THEM_YOURSELF}"
        )
    return [LayerGroupSpec(label, tuple(names)) for label, names in prefixes.items()]


def fixed_names(model: nn.Module) -> frozenset[str]:
    """Name the parameters of a text model that no training moves (`Arrangement.fixed`); none of any other model."""
    parts = _outermost_pretrained(model)
    if len(parts) != 1:
        return frozenset()
    backbone = _backbone(parts[0])
    fixed = {id(parameter) for part in _found(backbone, _arrangement(backbone).fixed) for parameter in part}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in fixed)


def pretrained_part(model: nn.Module) -> PreTrainedModel:
    """Return the one model of transformers that a module is or holds.

    Raises:
        ValueError: It holds none, or several side by side.
    """
    parts = _outermost_pretrained(model)
    if not parts:
        raise ValueError(
            f"no layer groups are known for {type(model).__name__}; known are {', '.join(sorted(SPECS_BY_CLASS))} "
            f"and the models of transformers. Else {GIVE_THEM_YOURSELF}"
        )
    if len(parts) > 1:
        names = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(
            f"{type(model).__name__} holds {len(parts)} models side by side ({names}), so no one order of layers runs "
            f"from its input to its head; {GIVE_THEM_YOURSELF}"
        )
    return parts[0]


def _outermost_pretrained(module: nn.Module) -> list[PreTrainedModel]:
    if isinstance(module, PreTrainedModel):
        return [module]
    found = [part for child in module.children() for part in _outermost_pretrained(child)]
    return list({id(part): part for part in found}.values())


def _backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its head; a backbone in a backbone's place is opened too.

    A class that does not name its backbone (Llama4ForCausalLM) has the one model inside that holds all embeddings.
    """
    inner = model.base_model
    if inner is model:
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        for child in model.children():
            if isinstance(child, PreTrainedModel) and embeddings and {*embeddings} <= {*child.modules()}:
                inner = child
    while isinstance(inner, PreTrainedModel) and inner is not model:
        model, inner = inner, inner.base_model
    return model


def _arrangement(backbone: PreTrainedModel) -> Arrangement:
    return ARRANGEMENTS.get(getattr(backbone.config, "model_type", ""), Arrangement())


def _stacks(host: PreTrainedModel, backbone: PreTrainedModel) -> list[tuple[str, ...]]:
    """Return the lists of blocks in the order they run, each as the names of the lists that run side by side.

    Raises:
        ValueError: There is no list of blocks, or several that nothing puts in order.
    """
    here = dict(backbone.named_modules())
    listed = [stack for stack in _arrangement(backbone).stacks if all(name in here for name in stack)]
    stacks = listed or [(name,) for name in _lists_of_blocks(backbone, "")]
    if listed or len(stacks) == 1:
        return stacks
    name = type(host).__name__
    if not stacks:
        raise ValueError(f"{name} has no list of blocks, so its layer groups cannot be found; {GIVE_THEM_YOURSELF}")
    shown = ", ".join(stack[0] for stack in stacks)
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder: its stacks of blocks ({shown}) read different inputs, so no one order of "
            "layers runs from the input to the head. Take an encoder (BERT, RoBERTa, DeBERTa), a decoder (GPT-2, "
            f"Llama) or the encoder alone (T5EncoderModel), or {GIVE_THEM_YOURSELF}"
        )
    raise ValueError(
        f"{name} has {len(stacks)} stacks of blocks ({shown}), and their order is unknown; take a text model with "
        f"one, or {GIVE_THEM_YOURSELF}"
    )


def _lists_of_blocks(module: nn.Module, path: str) -> Iterator[str]:
    """Yield the names of the outermost lists whose entries are made of further modules."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if not isinstance(child, nn.ModuleList):
            yield from _lists_of_blocks(child, below)
        elif any(_holds_parameters(block) and next(block.children(), None) is not None for block in child):
            yield below


def _holds_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _blocks(backbone: nn.Module, stack: Sequence[str]) -> list[list[nn.Module]]:
    """Return the blocks of a stack; a list of lists is one list, and lists side by side are zipped."""
    return [list(block) for block in zip(*(list(_flat(backbone.get_submodule(name))) for name in stack), strict=True)]


def _flat(blocks: Any) -> Iterator[nn.Module]:
    for block in blocks:
        if isinstance(block, nn.ModuleList):
            yield from _flat(block)
        else:
            yield block


def _depths(
    model: nn.Module,
    host: PreTrainedModel,
    backbone: PreTrainedModel,
    stacks: Sequence[tuple[str, ...]],
    blocks: Sequence[Sequence[nn.Module]],
) -> dict[int, int]:
    """Map each parameter's id to its depth: 0 embeddings, 1 the first block, ..., one more than the blocks the head.

    The first claim counts, so a parameter of several names has one depth: the head's if anything outside the backbone
    holds it too, else that of the block nearest the input.
    """
    arrangement = _arrangement(backbone)
    head = len(blocks) + 1
    claims: list[tuple[Iterable[nn.Parameter], int]] = [(_outside(model, backbone), head)]
    if arrangement.decoder is not None and hasattr(host, arrangement.decoder[0]):
        claims += [(part, head) for part in _found(backbone, arrangement.decoder[1:])]
    for names, depth in (
        (arrangement.embeddings, 0),
        (arrangement.first_block, 1),
        (arrangement.last_block, len(blocks)),
        (arrangement.head, head),
    ):
        claims += [(part, depth) for part in _found(backbone, names)]
    claims += [(part.parameters(), depth) for depth, block in enumerate(blocks, 1) for part in block]
    for name, child in _beside(backbone, stacks):
        if "pooler" in name or "head" in name:
            claims.append((child.parameters(), head))
        elif _is_norm(child) and "emb" not in name:
            claims.append((child.parameters(), len(blocks)))
    claims.append((backbone.parameters(), 0))
    depths: dict[int, int] = {}
    for parameters, depth in claims:
        for parameter in parameters:
            depths.setdefault(id(parameter), depth)
    return depths


def _outside(model: nn.Module, backbone: nn.Module) -> Iterator[nn.Parameter]:
    """Yield every parameter that something outside the backbone holds, whether or not the backbone holds it too."""
    inside = [name for name, module in model.named_modules(remove_duplicate=False) if module is backbone]
    if "" in inside:
        return
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not any(name.startswith(f"{prefix}.") for prefix in inside):
            yield parameter


def _found(backbone: nn.Module, names: Iterable[str]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters of each named module, or the named parameter, that there is."""
    modules, parameters = dict(backbone.named_modules()), dict(backbone.named_parameters(remove_duplicate=False))
    for name in names:
        if name in modules:
            yield list(modules[name].parameters())
        elif name in parameters:
            yield [parameters[name]]


def _beside(backbone: nn.Module, stacks: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield, with its name in lower case, every module that is beside a list of blocks or beside what holds one."""
    lists = [name for stack in stacks for name in stack]
    holders = {name[:end] for name in lists for end in range(len(name)) if name[end] == "."} | {""}
    for holder in sorted(holders):
        for name, child in backbone.get_submodule(holder).named_children():
            full = f"{holder}.{name}" if holder else name
            if full not in holders and full not in lists:
                yield name.lower(), child


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm by its class's name, or an adapter's wrapper of one; all it holds are vectors."""
    inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None) or module
    return "norm" in type(inner).__name__.lower() and all(parameter.ndim <= 1 for parameter in module.parameters())


def _bundles(depths: Sequence[int], max_blocks: int | None) -> dict[int, str]:
    """Name the group of each block; blocks count from 0, and their depths from 1."""
    count = len(depths) if max_blocks is None else min(max_blocks, len(depths))
    labels: dict[int, str] = {}
    for index in range(count):
        size, rest = divmod(len(depths), count)
        start = index * size + min(index, rest)
        bundle = depths[start : start + size + (index < rest)]
        first, last = bundle[0] - 1, bundle[-1] - 1
        labels.update(dict.fromkeys(bundle, f"block{first}" if first == last else f"blocks{first}-{last}"))
    return labels


def _prefixes(module: nn.Module, path: str, label_of: Callable[[nn.Parameter], str]) -> Iterator[tuple[str, str]]:
    """Yield ``(label, prefix)`` of the largest modules all of one label, and of parameters beside such modules."""
    labels = {label_of(parameter) for parameter in module.parameters()}
    if len(labels) == 1:
        yield labels.pop(), path
    elif labels:
        for name, parameter in module.named_parameters(recurse=False, prefix=path):
            yield label_of(parameter), name
        for name, child in module.named_children():
            yield from _prefixes(child, f"{path}.{name}" if path else name, label_of)
