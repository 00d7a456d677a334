"""A layer group as its name and the modules whose parameters it holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerGroupSpec:
    """A layer group's name and the module-name prefixes of its parameters."""

    name: str
    prefixes: tuple[str, ...]


GIVE_THEM_YOURSELF = "give the groups yourself as a list of LayerGroupSpec(name, prefixes), input side first"
