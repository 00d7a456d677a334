"""Layer groups: which parameters move together, and which of them are frozen.

A model is split into groups by lists of module-name prefixes, the input side first. The split is checked to be a
partition of the parameters, so that none is forgotten and none is trained twice. Freezing acts on groups only.

Source: Howard & Ruder 2018, sections 3.2 and 3.3; the meaning of ``freeze_to`` is fastai's.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

# Every norm layer of torch that is one by base class; RMSNorm and friends of other libraries go by their name.
_NORM_TYPES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_DROPOUT_CHOICES = ("on", "off")


@dataclass(frozen=True)
class LayerGroup:
    """One layer group of a model.

    Attributes:
        index: Position, 0 is nearest the input.
        name: What people call it, such as ``lstm1``.
        prefixes: Module-name prefixes that define it.
        parameters: ``(name, parameter)`` pairs; a tied parameter appears once, in one group.
        modules: ``(name, module)`` pairs of every module below the prefixes.
    """

    index: int
    name: str
    prefixes: tuple[str, ...]
    parameters: tuple[tuple[str, nn.Parameter], ...] = field(repr=False)
    modules: tuple[tuple[str, nn.Module], ...] = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """Number of scalars in the group, tied ones once."""
        return sum(parameter.numel() for _, parameter in self.parameters)

    @property
    def num_trainable(self) -> int:
        """Number of scalars that an optimizer step may change."""
        return sum(parameter.numel() for _, parameter in self.parameters if parameter.requires_grad)

    @property
    def frozen(self) -> bool:
        """Whether nothing in the group but norm layers may move."""
        norms = norm_parameter_names(self)
        rest = [parameter for name, parameter in self.parameters if name not in norms]
        judged = rest or [parameter for _, parameter in self.parameters]
        return not any(parameter.requires_grad for parameter in judged)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalizes: torch's norms by type, other libraries' by class name.

    By name, only a layer with vectors for parameters counts, all its own (an activation may be inside): a whole block
    called ``PreLayerNormAttention`` is not a norm.
    """
    if isinstance(module, _NORM_TYPES):
        return True
    if "norm" not in type(module).__name__.lower():
        return False
    if any(True for child in module.children() for _ in child.parameters()):
        return False
    return all(parameter.ndim <= 1 for parameter in module.parameters(recurse=False))


def norm_parameter_names(group: LayerGroup) -> frozenset[str]:
    """Return the names of the group's parameters that a norm layer owns."""
    owners = {name for name, module in group.modules if is_norm(module)}
    return frozenset(name for name, _ in group.parameters if name.rpartition(".")[0] in owners)


def _below(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(prefix + ".")


def split_layer_groups(
    model: nn.Module, prefixes: Sequence[Sequence[str]], *, names: Sequence[str] | None = None
) -> list[LayerGroup]:
    """Split a model into layer groups, and prove that they are a partition of its parameters.

    Args:
        model: Any module.
        prefixes: One list of module- or parameter-name prefixes per group, input side first.
        names: Names of the groups; by default the first prefix of each.

    Returns:
        The groups, in the order given.

    Raises:
        ValueError: A parameter is in no group or in two, or a prefix matches no parameter; it is named.
    """
    if not prefixes:
        raise ValueError("a model needs at least one layer group, got an empty list of prefixes")
    names = [group[0] if group else "" for group in prefixes] if names is None else list(names)
    if len(names) != len(prefixes):
        raise ValueError(f"got {len(names)} names for {len(prefixes)} layer groups; give one name a group")
    if len(set(names)) < len(names):
        raise ValueError(f"names of layer groups must differ, got {names}; learning rates and saves go by name")
    owner = _owners(model, prefixes, names)
    _check_running_norms(model, prefixes, names)
    groups = []
    for index, (group_prefixes, name) in enumerate(zip(prefixes, names, strict=True)):
        parameters = tuple((key, parameter) for key, parameter in model.named_parameters() if owner[key] == index)
        norm_owners = {key.rpartition(".")[0] for key, _ in parameters}  # of a prefix that names a parameter
        modules = tuple(
            (key, module)
            for key, module in model.named_modules()
            if any(_below(key, prefix) for prefix in group_prefixes) or (key in norm_owners and is_norm(module))
        )
        if not parameters:
            raise ValueError(f"layer group {index} ({name}) holds no parameter that is not tied to another group")
        groups.append(LayerGroup(index, name, tuple(group_prefixes), parameters, modules))
    return groups


def _owners(model: nn.Module, prefixes: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, int]:
    """Map each parameter's first name to its group; tied parameters keep the group of the name they list first."""
    every_name = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    every_name += [key for key, _ in model.named_buffers(remove_duplicate=False)]
    for group_prefixes in prefixes:
        for prefix in group_prefixes:
            if not any(_below(key, prefix) for key in every_name):
                known = sorted({key.rpartition(".")[0] for key in every_name} - {""})
                near = difflib.get_close_matches(prefix, known, n=3, cutoff=0.3) or known[:5]
                raise ValueError(f"prefix {prefix!r} matches no parameter of the model; names near it: {near}")
    owner: dict[str, int] = {}
    for key, _ in model.named_parameters():
        found = [
            index
            for index, group_prefixes in enumerate(prefixes)
            if any(_below(key, prefix) for prefix in group_prefixes)
        ]
        if len(found) > 1:
            both = " and ".join(names[index] for index in found)
            raise ValueError(f"parameter {key!r} is in {len(found)} layer groups ({both}); it may be in one only")
        if not found:
            raise ValueError(f"parameter {key!r} is in no layer group; add a prefix of it to one of {list(names)}")
        owner[key] = found[0]
    return owner


def _check_running_norms(model: nn.Module, prefixes: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """Raise for a norm layer with running statistics but no parameters, which no group would freeze."""
    for key, module in model.named_modules():
        running = is_norm(module) and any(True for _ in module.buffers(recurse=False))
        if running and next(module.parameters(recurse=False), None) is None:
            if not any(_below(key, prefix) for group_prefixes in prefixes for prefix in group_prefixes):
                raise ValueError(
                    f"norm layer {key!r} keeps running statistics but is in no layer group; "
                    f"add a prefix of it to one of {list(names)}"
                )


def resolve_index(groups: Sequence[LayerGroup], n: int) -> int:
    """Turn ``freeze_to``'s argument into the index of the first trained group.

    Raises:
        ValueError: ``n`` is outside ``-len(groups)..len(groups)-1``.
    """
    count = len(groups)
    if isinstance(n, bool) or not isinstance(n, int) or not -count <= n < count:
        raise ValueError(
            f"freeze_to({n!r}) is out of range: the model has {count} layer groups, "
            f"so n may be {-count}..{count - 1} (-1 trains the last group only, 0 trains all)"
        )
    return n % count


def set_trainable(groups: Sequence[LayerGroup], trainable: Iterable[int], *, train_norm: bool = False) -> None:
    """Train exactly the groups of the given indices and freeze the others.

    Freezing sets ``requires_grad=False`` and drops the gradient, so that no optimizer touches the parameter
    again, whatever its weight decay or momentum.

    Args:
        groups: The layer groups of a model.
        trainable: Indices of the groups to train.
        train_norm: Whether norm layers inside frozen groups continue training (fastai's ``train_bn``).

    Raises:
        ValueError: An index is outside the groups, or none is given.
    """
    chosen = set(trainable)
    unknown = sorted(index for index in chosen if not 0 <= index < len(groups))
    if unknown or not chosen:
        raise ValueError(f"trainable groups must be a non-empty subset of 0..{len(groups) - 1}, got {sorted(chosen)}")
    for group in groups:
        norms = norm_parameter_names(group) if train_norm else frozenset()
        for name, parameter in group.parameters:
            trains = group.index in chosen or name in norms
            parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None


def freeze_to(groups: Sequence[LayerGroup], n: int, *, train_norm: bool = False) -> None:
    """Freeze the groups before ``n`` and train ``n`` and later; negative ``n`` counts from the end.

    Raises:
        ValueError: ``n`` is out of range (see `resolve_index`).
    """
    set_trainable(groups, range(resolve_index(groups, n), len(groups)), train_norm=train_norm)


def freeze(groups: Sequence[LayerGroup], *, train_norm: bool = False) -> None:
    """Freeze all groups but the last, the head.

    Raises:
        ValueError: There is one group only: freezing would leave nothing below the head to freeze.
    """
    if len(groups) < 2:
        raise ValueError(
            "freeze() keeps the last layer group and freezes the others, but this model has 1 layer group; "
            "split it into at least two (see split_layer_groups)"
        )
    freeze_to(groups, -1, train_norm=train_norm)


def unfreeze(groups: Sequence[LayerGroup]) -> None:
    """Train every group."""
    freeze_to(groups, 0)


def freeze_map(groups: Sequence[LayerGroup]) -> dict[str, bool]:
    """Map each parameter's name to whether it is frozen."""
    return {name: not parameter.requires_grad for group in groups for name, parameter in group.parameters}


def trainable_indices(groups: Sequence[LayerGroup]) -> tuple[int, ...]:
    """Return the indices of the groups that train (norm layers alone do not count)."""
    return tuple(group.index for group in groups if not group.frozen)


def describe_frozen(groups: Sequence[LayerGroup]) -> str:
    """Return one line on what is frozen and what is about to train."""
    frozen = [group.name for group in groups if group.frozen]
    trains = [group.name for group in groups if not group.frozen]
    total = sum(group.num_parameters for group in groups)
    moving = sum(group.num_trainable for group in groups)
    frozen_text = ", ".join(frozen) if frozen else "nothing"
    return f"frozen: {frozen_text} | trains: {', '.join(trains) or 'nothing'} ({moving:,} of {total:,} parameters)"


def train_mode(
    model: nn.Module, groups: Sequence[LayerGroup], *, train_norm: bool = False, frozen_dropout: str = "on"
) -> None:
    """Put a model in training mode, with its frozen groups in the mode of the policy.

    Call this instead of ``model.train()``, which would set every frozen norm layer moving again.

    Args:
        model: The model that the groups belong to.
        groups: Its layer groups.
        train_norm: False holds the running statistics of norm layers in frozen groups.
        frozen_dropout: ``"on"`` keeps dropout in frozen groups as a regularizer (the paper's and fastai's
            behaviour); ``"off"`` runs frozen groups in evaluation mode, the same for every pass over a text.
            Dropout that is between groups is off only where the whole module that holds it is frozen.

    Raises:
        ValueError: ``frozen_dropout`` is neither choice, or ``"off"`` is asked for with ``train_norm``.
    """
    if frozen_dropout not in _DROPOUT_CHOICES:
        raise ValueError(f"frozen_dropout must be one of {_DROPOUT_CHOICES}, got {frozen_dropout!r}")
    if frozen_dropout == "off" and train_norm:
        raise ValueError(
            "frozen_dropout='off' runs frozen groups in evaluation mode, which train_norm=True contradicts; "
            "drop one of the two"
        )
    model.train()
    frozen = [group for group in groups if group.frozen]
    for group in frozen:
        for _, module in group.modules:
            if frozen_dropout == "off" or (is_norm(module) and not train_norm):
                module.training = False
    if frozen_dropout == "off":
        still = {id(parameter) for group in frozen for _, parameter in group.parameters}
        for module in model.modules():
            held = [id(parameter) for parameter in module.parameters()]
            if held and still.issuperset(held):
                module.eval()


@contextlib.contextmanager
def train_flags_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into training or evaluation mode, as it was before the block."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
