"""The tensors inside the arguments and outputs of modules: nested tuples, lists, dictionaries and dataclasses."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Place = tuple[str | int, ...]  # the keys that lead to a leaf


def leaves_of(tree: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every leaf of a tree with its path, in order; whatever is not a known container is a leaf."""
    branches = _branches(tree)
    if branches is None:
        yield place, tree
        return
    for key, branch in branches:
        yield from leaves_of(branch, (*place, key))


def tensors_of(tree: Any) -> dict[Place, Tensor]:
    """Return every tensor of a tree by its path."""
    return {place: leaf for place, leaf in leaves_of(tree) if isinstance(leaf, Tensor)}


def with_tensors(tree: Any, change: Callable[[Place, Tensor], Tensor], place: Place = ()) -> Any:
    """Return a tree with every tensor replaced by what ``change`` makes of its path and itself.

    Unchanged branches are shared with the given tree.
    """
    if isinstance(tree, Tensor):
        return change(place, tree)
    branches = _branches(tree)
    if branches is None:
        return tree
    changed = {key: with_tensors(branch, change, (*place, key)) for key, branch in branches}
    if all(changed[key] is branch for key, branch in branches):
        return tree
    return _rebuilt(tree, changed)


def _branches(tree: Any) -> list[tuple[str | int, Any]] | None:
    """Return the keys and branches of a container, or None for a leaf."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):  # transformers' outputs are dataclasses too
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree) if field.init]
    if isinstance(tree, Mapping):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, tuple | list) else None


def _rebuilt(tree: Any, branches: dict[Any, Any]) -> Any:
    if dataclasses.is_dataclass(tree):
        return dataclasses.replace(tree, **branches)  # type: ignore[type-var]
    if isinstance(tree, Mapping):
        return type(tree)(branches)  # type: ignore[call-arg]
    if hasattr(tree, "_fields"):  # a named tuple
        return type(tree)(*branches.values())
    return type(tree)(branches.values())
