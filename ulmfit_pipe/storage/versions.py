"""Versions of Python and of the libraries that a result depends on."""

import platform
from importlib.metadata import version

TRACKED_LIBRARIES = ("ulmfit_pipe", "torch", "transformers", "datasets", "tokenizers", "accelerate")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in TRACKED_LIBRARIES}}
