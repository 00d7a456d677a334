"""The one way to transformers' ``from_pretrained``: files are checked first, and no code that comes with them runs.

Errors of every layer below become one line that names the folder and what to do.
"""

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import cached_file

from ulmfit_pipe.data.tables.saved_datasets import HUB_TIMEOUT
from ulmfit_pipe.models.builtin_models import builtin_models
from ulmfit_pipe.models.quiet_transformers import quiet_transformers
from ulmfit_pipe.stages.model_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    NAMING_FILES,
    WEIGHTS_FILE,
    check_folder,
    check_network,
    other_save,
    remote_code_allowed,
    sizes_that_differ,
)
from ulmfit_pipe.stages.model_names import ArtifactError, ModelName, ResolvedModel, location_of

# Modules whose errors mean that a file of the model cannot be used: all that read one, and Python's own.
READERS = ("safetensors_rust", "safetensors", "tokenizers", "builtins", "torch", "json", "huggingface_hub")
_ONE_AT_A_TIME = threading.RLock()  # transformers patches torch.nn.init, for all threads, while it loads
ASKS_FOR_CODE = "trust_remote_code=True"  # in transformers' error where a model comes with code of its own


def load_pretrained(kind: Any, name: ModelName, *, images: bool = False, **settings: Any) -> Any:
    """Load a configuration, model, tokenizer or processor by transformers, and nothing else that its files name.

    Args:
        kind: The Auto class.
        name: A folder, a built-in name or a hub id.
        images: Whether an image model is wanted, for messages.
        **settings: Passed on to ``from_pretrained``.

    Raises:
        ArtifactError: Nothing of that name can be had, its files are not whole or name others, or it needs code of
            its own and ``trust_remote_code`` is off.
        ImportError: It needs a library that is not installed.
    """
    resolved = location_of(name, images=images)
    is_folder = Path(resolved).is_dir()
    is_model = "use_safetensors" in settings
    folder = Path(resolved) if is_folder else _fetched(resolved, images=images, weights=is_model)
    check_folder(folder, weights=is_folder or is_model)
    trusted, skeleton = remote_code_allowed(), None
    try:
        with _ONE_AT_A_TIME, quiet_transformers():
            if is_model:
                skeleton = _skeleton_of(kind, name, settings)
            if skeleton is not None:
                check_network(name, folder, skeleton)
            return kind.from_pretrained(resolved, trust_remote_code=trusted, **settings)
    except ArtifactError:
        raise
    except Exception as error:
        if ASKS_FOR_CODE in str(error):
            raise ArtifactError(_needs_code(name, folder, images=images)) from None
        if not is_folder and isinstance(error, OSError | ValueError):
            raise _not_on_hub(resolved, error, images=images) from error
        if type(error).__module__.split(".")[0] not in READERS:
            raise
        differs = sizes_that_differ(folder, skeleton) if skeleton is not None else ""
        raise ArtifactError(_unusable(resolved, folder, error, differs)) from error


def _unusable(name: str, folder: Path, error: Exception, differs: str) -> str:
    """Return why a model's files could not be loaded, from what the library raised, and what to do."""
    if isinstance(error, ImportError):
        return f"{name} cannot be loaded: it needs a library that is not installed ({_first_line(error)})"
    if isinstance(error, StrictDataclassError):
        reason = " ".join(str(error).split())[:200]
        return (
            f"{name} cannot be loaded: config.json has a value that cannot be used ({reason}); correct it, or "
            "take another save"
        )
    if differs:
        return (
            f"{name} cannot be loaded: {differs}, so they are of two models; take config.json and weights from one save"
        )
    what = (
        "is missing, cut short or not ours" if isinstance(error, OSError | ValueError) else "was cut short or altered"
    )
    return f"{name} cannot be loaded ({_first_line(error)}); a file {what}: {other_save(folder)}"


def register_remote_classes(name: ModelName, config: Any) -> None:
    """Make the Auto classes know the models that come with a configuration, where code of a model's own may run.

    Args:
        name: A folder or hub id.
        config: Its configuration; its class is one that came with the model.
    """
    if not remote_code_allowed() or type(config).__module__.startswith(("transformers.", "ulmfit_pipe.")):
        return
    for auto_name, reference in (getattr(config, "auto_map", None) or {}).items():
        auto: Any = getattr(transformers, auto_name, None)
        if auto_name.startswith("AutoModel") and auto is not None and type(config) not in auto._model_mapping:
            auto.register(type(config), get_class_from_dynamic_module(reference, location_of(name)), exist_ok=True)


def _skeleton_of(kind: Any, name: ModelName, settings: dict[str, Any]) -> Any:
    """Return the network that the configuration describes, without memory for its weights; None where that fails."""
    known = name.loaded if isinstance(name, ResolvedModel) else None
    config = settings.get("config") or known or load_pretrained(transformers.AutoConfig, name)
    given = {key: copy.deepcopy(settings[key]) for key in ("custom_head", "add_pooling_layer") if key in settings}
    return _without_memory(
        lambda: kind.from_config(copy.deepcopy(config), trust_remote_code=remote_code_allowed(), **given)
    )


def _without_memory(build: Callable[[], Any]) -> Any:
    """Build a network on torch's meta device; None where that fails, as building it for real then raises."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build()
    except (OverflowError, RuntimeError):
        return None


def refuse_larger_network(name: ModelName, build: Callable[[], Any]) -> None:
    """Raise if a network that is about to be built cannot be that of a folder's weights.

    Args:
        name: A folder, a built-in name or a hub id.
        build: Builds the network; it is called on torch's meta device.

    Raises:
        ArtifactError: It is many times larger than the weights, as a configuration changed by hand makes it.
    """
    folder = Path(location_of(name))
    network = _without_memory(build) if folder.is_dir() else None
    if network is not None:
        check_network(name, folder, network)


def _needs_code(name: ModelName, folder: Path, *, images: bool) -> str:
    """Return the files that name code."""
    places = [file for file in (CONFIG_FILE, *NAMING_FILES) if (folder / file).is_file()]
    named = [file for file in places if "auto_map" in json.loads((folder / file).read_text(encoding="utf-8"))]
    return (
        f"{name} comes with Python code of its own (auto_map in {' and '.join(named) or CONFIG_FILE}), which would run "
        "here with all your rights, so it is refused; give a model that transformers knows"
        f"{'' if images else ', or, where you have read the code and trust it, set trust_remote_code to true'}"
    )


def find_beside(name: ModelName, file: str) -> Path | None:
    """Return the path of a further file of a model, or None if the model has no file of that name.

    Args:
        name: A folder, a built-in name or a hub id.
        file: Path inside the model's folder; one that leads out of it is not looked for.
    """
    if Path(file).is_absolute() or ".." in Path(file).parts:
        return None
    resolved = location_of(name)
    if Path(resolved).is_dir():
        found = Path(resolved) / file
        return found if found.is_file() else None
    with quiet_transformers():
        cached = cached_file(
            resolved,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if cached is None else Path(cached)


# ---- the hub


def _fetched(name: str, *, images: bool, weights: bool) -> Path:
    """Fetch from the hub what is checked before anything is loaded; return the folder of its cache that holds it."""
    _ask_hub(name, images=images)

    def fetch(file: str) -> str | None:
        with quiet_transformers():
            return cached_file(name, file, _raise_exceptions_for_missing_entries=False)

    try:
        config = fetch(CONFIG_FILE)
        if config is None:
            raise OSError(f"there is no {CONFIG_FILE}")
        for file in (*NAMING_FILES, "adapter_config.json"):
            fetch(file)
        index = fetch(INDEX_FILE) if weights and not fetch(WEIGHTS_FILE) else None
        if index is not None:
            for shard in sorted({str(file) for file in json.loads(Path(index).read_text())["weight_map"].values()}):
                if shard.endswith(".safetensors"):
                    fetch(shard)
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise _not_on_hub(name, error, images=images) from error
    return Path(config).parent


def _ask_hub(name: str, *, images: bool) -> None:
    """Ask the hub quickly whether there is such a model, unless it is in the cache: downloads retry for long."""
    if is_offline_mode() or isinstance(try_to_load_from_cache(name, CONFIG_FILE), str):
        return
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # every layer below raises its own kind when the network is missing
        raise _not_on_hub(name, error, images=images) from error


def _not_on_hub(name: str, error: Exception, *, images: bool) -> ArtifactError:
    reason = "HF_HUB_OFFLINE is set" if is_offline_mode() else "no network, or no such model there"
    advice = (
        "preprocessor_config.json of an image model, or that ulmfit images wrote; or leave the "
        "model out for a small ResNet"
        if images
        else f"a tokenizer, for example one written by ulmfit pretrain-lm{_builtin_advice()}"
    )
    return ArtifactError(
        f"{name!r} is not a folder here and could not be fetched from the hub ({reason}: {_first_line(error)}); "
        f"give a folder that holds config.json, model.safetensors and {advice}"
    )


def _builtin_advice() -> str:
    names = ", ".join(builtin_models())
    return f"; or a built-in model: {names}" if names else ""


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
