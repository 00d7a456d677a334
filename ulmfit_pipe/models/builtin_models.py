"""The language models that come with the package: their names, and the folders they are in.

A built-in model is a folder below `models/pretrained/`; the folder's name is the model's. Nothing is loaded here.
"""

from pathlib import Path

PRETRAINED = Path(__file__).parent / "pretrained"


def builtin_models() -> dict[str, Path]:
    """Return the folder of each built-in model of this installation by its name."""
    return {config.parent.name: config.parent for config in sorted(PRETRAINED.glob("*/config.json"))}
