"""Layer groups of image models: stem and early stages | late stages | head, or one group per stage.

Nothing is listed by architecture: the stages are found by how the modules are nested (the outermost list of blocks),
and what else the backbone holds is before or after that list, as its modules are put together. Three groups as in
fastai 2.8's `resnet_split` (vision/learner.py): its boundary is in the middle of the four stages of a ResNet.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec

Stages = list[tuple[str, ...]]  # the module-name prefixes of each stage, input side first

LEAST_SHARE = 0.3  # of a backbone's parameters that a list of stages holds; a stem of several layers holds less
HEAD_NAMES = ("classifier", "head", "fc", "cls_classifier", "distillation_classifier", "head_dist")
_NUMBERED = re.compile(r"(.*?)_?(\d+)")


@dataclass(frozen=True)
class _Parts:
    """Prefixes of all modules of an image model, by position: before, in or after the stages."""

    stem: tuple[str, ...]
    stages: Stages
    after: tuple[str, ...]
    head: tuple[str, ...]


def image_group_specs(model: nn.Module, *, stages: bool | None = None) -> list[LayerGroupSpec]:
    """Return the layer groups of an image model, input side first.

    Args:
        model: A classifier of this project, or any image model of transformers with or without a head.
        stages: One group per stage (a transformer's blocks count as stages), with the stem as a group of its own; False
            gives ``early | late | head``. None takes the value of the model's configuration, else False.

    Returns:
        Groups that hold every parameter once. Of an odd number of stages the early group has one more. Norms after the
        last stage go with it; the head is missing where the model has none.

    Raises:
        ValueError: The model has no list of at least two stages.
    """
    wanted = getattr(getattr(model, "config", None), "layer_groups", None)
    if stages is None and isinstance(wanted, list):
        return [LayerGroupSpec(name, tuple(prefixes)) for name, prefixes in wanted]
    parts = _parts_of(model)
    last = (*parts.stages[-1], *parts.after)
    if wanted == "stages" if stages is None else stages:
        bodies = [LayerGroupSpec(f"stage{index}", prefixes) for index, prefixes in enumerate(parts.stages[:-1])]
        bodies.append(LayerGroupSpec(f"stage{len(parts.stages) - 1}", last))
        groups = [LayerGroupSpec("stem", parts.stem), *bodies] if parts.stem else bodies
    else:
        middle = (len(parts.stages) + 1) // 2
        early = (*parts.stem, *_flat(parts.stages[:middle]))
        groups = [
            LayerGroupSpec("early", early),
            LayerGroupSpec("late", (*_flat(parts.stages[middle:-1]), *last)),
        ]
    return [*groups, LayerGroupSpec("head", parts.head)] if parts.head else groups


def backbone_stages(model: nn.Module) -> Stages:
    """Return the module-name prefixes of each stage of an image model.

    Raises:
        ValueError: The model has no list of at least two stages.
    """
    return _parts_of(model).stages


def _flat(stages: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(prefix for prefixes in stages for prefix in prefixes)


def _parts_of(model: nn.Module) -> _Parts:
    base_name = getattr(model, "base_model_prefix", "")
    inner = getattr(model, base_name, None) if base_name and not _is_bare(model) else None
    base, prefix = (inner, f"{base_name}.") if isinstance(inner, PreTrainedModel) else (model, "")
    stages = [tuple(f"{prefix}{name}" for name in names) for names in _stages_of(base, type(model).__name__)]
    stem, after, head = [], [], []
    for name in _outermost_beside(model, _flat(stages)):
        inside = name.startswith(prefix)
        if not inside:
            head.append(name)
        elif _comes_first(model, name, stages[0][0]):
            stem.append(name)
        else:
            after.append(name)
    if not head:  # timm keeps its head inside the backbone
        head = [name for name in after if name.rpartition(".")[2] in HEAD_NAMES]
        after = [name for name in after if name not in head]
    return _Parts(tuple(stem), stages, tuple(after), tuple(head))


def _is_bare(model: nn.Module) -> bool:
    """Whether a model of transformers is a backbone alone, which may call a part of it by the name of a backbone.

    DINOv3's encoder is its ``model``; what is beside it is not a head.
    """
    return type(model) in classes_in(MODEL_MAPPING, getattr(model, "config", None))


def classes_in(mapping: Any, config: Any) -> tuple[type, ...]:
    """Return the classes of a configuration in one of transformers' mappings, which holds one, several or none.

    Args:
        mapping: Such as ``MODEL_MAPPING``.
        config: The configuration.
    """
    kinds: Any = mapping.get(type(config), ())
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _outermost_beside(model: nn.Module, stages: tuple[str, ...]) -> list[str]:
    """Return the shortest prefixes of everything that is in no stage, none of which holds a stage."""
    holders = {"", *(stage[:end] for stage in stages for end in _dots(stage))}
    found: dict[str, None] = {}
    for name in _tensor_names(model):
        if not any(name.startswith(f"{stage}.") for stage in stages):
            found[next(name[:end] for end in [*_dots(name), len(name)] if name[:end] not in holders)] = None
    return list(found)


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


def _tensor_names(model: nn.Module) -> Iterator[str]:
    """Yield the names of parameters and buffers; a norm without parameters is found by the latter."""
    for name, _ in model.named_parameters():
        yield name
    for name, _ in model.named_buffers():
        yield name


def _comes_first(model: nn.Module, name: str, stage: str) -> bool:
    """Whether a module is before the stages where both belong to the same module; bare parameters do."""
    parent = name.rpartition(".")[0]
    children = [child for child, _ in model.get_submodule(parent).named_children()]
    leaf = name.rpartition(".")[2]
    towards_stage = stage[len(parent) + 1 if parent else 0 :].partition(".")[0]
    return leaf not in children or children.index(leaf) < children.index(towards_stage)


def _stages_of(base: nn.Module, shown: str) -> Stages:
    """Return the stages below a backbone: of the outermost lists of blocks, the one that holds the most."""
    total = sum(parameter.numel() for parameter in base.parameters())
    candidates = []
    for name, module in base.named_modules():
        for stages in _lists_in(name, module):
            candidates.append((name.count(".") + bool(name), _held(base, stages) / total, stages))
    large = [candidate for candidate in candidates if candidate[1] >= LEAST_SHARE]
    if not candidates:
        raise ValueError(
            f"{shown} has no list of at least two stages or blocks, so its layer groups cannot be found; give them "
            "yourself as a list of LayerGroupSpec(name, prefixes), input side first"
        )
    if not large:
        return max(candidates, key=lambda candidate: candidate[1])[2]
    outermost = min(depth for depth, _, _ in large)
    return max((one for one in large if one[0] == outermost), key=lambda candidate: candidate[1])[2]


def _held(base: nn.Module, stages: Stages) -> int:
    return sum(p.numel() for prefix in _flat(stages) for p in base.get_submodule(prefix).parameters())


def _lists_in(name: str, module: nn.Module) -> list[Stages]:
    """Return the lists of blocks that a module has for children.

    A list is a `ModuleList` (those of one length are side by side, as patch embeddings and blocks do, and make one), a
    `Sequential`, or children with numbered names (``layer1``, ``layer2``).
    """
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return []  # its children are the list, for the module above
    before = f"{name}." if name else ""
    numbered: dict[str, list[str]] = {}
    for child_name, child in module.named_children():
        match = _NUMBERED.fullmatch(child_name)
        if match and _has_parameters(child) and next(child.children(), None) is not None:
            numbered.setdefault(match[1], []).append(child_name)
    families = [names for names in numbered.values() if len(names) > 1]
    side_by_side: dict[Any, list[list[str]]] = {}
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and not any(child_name in names for names in families):
            blocks = [f"{before}{child_name}.{key}" for key, block in child.named_children() if _has_parameters(block)]
            key = len(blocks) if isinstance(child, nn.ModuleList) else child_name
            side_by_side.setdefault(key, []).append(blocks)
    lists: list[Stages] = [[(f"{before}{child_name}",) for child_name in names] for names in families]
    return lists + [list(zip(*same, strict=True)) for same in side_by_side.values() if len(same[0]) > 1]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
