"""What a user gives as a model, turned into a folder or a hub id; what cannot be one is refused with a hint."""

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.models.builtin_models import builtin_models
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.settings.choices import BUILTIN_NAMES
from ulmfit_pipe.storage.pickles import PICKLE_SUFFIXES

NEAR_NAME = 0.75  # likeness of two names, by difflib, from which one is taken for the other mistyped


class ArtifactError(UlmfitError, ValueError):
    """A model folder or name cannot be used; the message says why and what to give instead."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was looked up once, and is handed on in place of its name.

    Attributes:
        name: As the user gave it; messages and records have it.
        location: A folder, or a hub id.
        loaded: Its configuration as it was read; `config` is one that may be changed.
    """

    name: str
    location: str
    loaded: Any = None

    def __str__(self) -> str:
        """Return the name, for messages."""
        return self.name

    @property
    def config(self) -> Any:
        """Return a copy of the configuration, which may be changed."""
        return copy.deepcopy(self.loaded)

    @property
    def model_type(self) -> str:
        """Return the architecture's name in transformers, such as "bert"."""
        return self.loaded.model_type


ModelName: TypeAlias = str | Path | ResolvedModel


def location_of(name: ModelName, *, images: bool = False) -> str:
    """Return a model's folder or hub id; a name is resolved as `resolve_model` does.

    Args:
        name: A name, or a model that was resolved before.
        images: Whether an image model is wanted, for messages.
    """
    return name.location if isinstance(name, ResolvedModel) else resolve_model(name, images=images)


def resolve_model(name: str | Path, *, images: bool = False) -> str:
    """Turn what a user gives as a model into a folder or a hub id.

    Args:
        name: A folder, the name of a built-in model (a folder of that name with a model in it comes first), or a hub
            id (``owner/name``).
        images: Whether an image model is wanted, for messages: no built-in model is one.

    Raises:
        ArtifactError: It is a pickle, a file, an adapter, an empty folder, a path that does not exist, or nearly a
            built-in name.
    """
    name = home_path(name)
    path, text, builtin = Path(name), str(name), builtin_models()
    if text.rstrip("/") in builtin and not (path / "config.json").is_file():  # a shell's completion adds the slash
        return str(builtin[text.rstrip("/")])
    if path.suffix in PICKLE_SUFFIXES:
        raise ArtifactError(
            f"{path} is a pickled checkpoint ({path.suffix}), which can run code when read, so it is refused; "
            "give a folder with config.json, model.safetensors and a tokenizer; ulmfit import-fastai makes one "
            "out of fastai's files"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise ArtifactError(
                    f"{path} holds an adapter of peft (adapter_config.json), not the model it belongs to; merge the "
                    "two: peft_model.merge_and_unload().save_pretrained(folder), with the model's tokenizer or image "
                    "processor, and give that folder"
                )
            inside = [child.name for child in sorted(path.iterdir()) if (child / "config.json").is_file()]
            hint = f"did you mean {path / inside[-1]}?" if inside else "give the folder that a stage wrote"
            raise ArtifactError(f"{path} holds no model (no config.json); {hint}")
        return str(path)
    if path.exists():
        raise ArtifactError(f"{path} is a file, not a model folder; give the folder that a stage wrote")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or (path.parent != Path(".") and path.parent.is_dir()):
        others = "or a hub id" if images else _other_names()
        raise ArtifactError(f"there is no folder {text!r}; give the folder that a stage wrote, {others}")
    if not images:
        _refuse_nearly_builtin(text)
    return text


def _other_names() -> str:
    """Return what can be given besides a folder."""
    names = ", ".join(builtin_models())
    return f"a built-in model ({names}) or a hub id" if names else "or a hub id"


def _refuse_nearly_builtin(name: str) -> None:
    """Raise for a mistyped built-in name, and for one that this installation lacks; neither is asked of the hub."""
    if name in BUILTIN_NAMES:
        raise ArtifactError(
            f"the built-in model {name!r} is not in this installation; give the folder that a stage wrote, "
            f"{_other_names()}, or train one with ulmfit pretrain-lm"
        )
    known = {*BUILTIN_NAMES, *builtin_models()}
    nearest = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=1, cutoff=NEAR_NAME)
    if nearest and "/" not in name:
        raise ArtifactError(
            f"there is no model {name!r}; did you mean {nearest[0]!r}? Else give the folder that a stage wrote, "
            f"{_other_names()}"
        )
