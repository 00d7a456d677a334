"""What a stage starts from and ends in: a folder with weights, configuration, tokenizer and ``stage.json``.

A folder is whole or absent: it is written under another name and renamed. Its tokenizer is checked against the hash
that the model's configuration holds, so that ids can never mean other tokens than they did in training.

Importing ``ulmfit_pipe.stages`` registers the AWD-LSTM and the concat-pooling classifier with transformers' Auto
classes.
"""

import hashlib
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.pretrained_tokenizers import vocabulary_digest
from ulmfit_pipe.data.table_readers import HUB_TIMEOUT
from ulmfit_pipe.data.tokenization import register_tokenizer, vocab_hash
from ulmfit_pipe.data.ulmfit_tokenizer import BACKEND_FILE, UlmfitTokenizer, silence_fork_warning
from ulmfit_pipe.models.builtin_models import builtin_models
from ulmfit_pipe.models.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.image_classifier import register_image_classifier
from ulmfit_pipe.models.image_groups import classes_in
from ulmfit_pipe.models.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification, AwdLstmModel
from ulmfit_pipe.models.pooling_classifier import MODEL_TYPE, PoolingClassifierConfig, PoolingForSequenceClassification
from ulmfit_pipe.models.quiet_transformers import quiet_transformers
from ulmfit_pipe.stages.model_names import ArtifactError, resolve_model
from ulmfit_pipe.training.checkpoint import (
    PICKLE_SUFFIXES,
    CheckpointError,
    atomic_folder,
    contents_of,
    read_json,
    recover_folder,
    write_json,
)

STAGE_FILE = "stage.json"
TOKENIZER_FILES = (BACKEND_FILE, "tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")
# What a fast tokenizer is made from where a model has no tokenizer.json: DeBERTa v2 and v3, ALBERT, Llama, XLM-R.
SENTENCEPIECE_FILES = ("spm.model", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
FORMAT = 1
TRACKED_LIBRARIES = ("ulmfit_pipe", "torch", "transformers", "datasets", "tokenizers", "accelerate")


def register() -> None:
    """Make transformers' Auto classes know what is ours; doing it twice is harmless."""
    AutoConfig.register("awd_lstm", AwdLstmConfig, exist_ok=True)
    AutoModel.register(AwdLstmConfig, AwdLstmModel, exist_ok=True)
    AutoModelForCausalLM.register(AwdLstmConfig, AwdLstmForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(AwdLstmConfig, AwdLstmForSequenceClassification, exist_ok=True)
    AutoConfig.register(MODEL_TYPE, PoolingClassifierConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(
        PoolingClassifierConfig, PoolingForSequenceClassification, exist_ok=True
    )
    register_image_classifier()
    register_tokenizer()


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in TRACKED_LIBRARIES}}


def model_identity(name: str | Path | None, *, images: bool = False) -> str | None:
    """Return what tells a model from any other: a digest of its files, wherever the folder lies, or the hub id.

    Args:
        name: As `resolve_model`; None for a model from scratch.
        images: Whether an image model is wanted, for messages.

    Raises:
        ArtifactError: As `resolve_model`.
    """
    if name is None:
        return None
    folder = Path(resolve_model(name, images=images))
    if not folder.is_dir():
        return str(name)
    digest = hashlib.sha256()
    ours = (folder / BACKEND_FILE).is_file()
    tokenizer = [BACKEND_FILE] if ours else [*TOKENIZER_FILES, "merges.txt", "special_tokens_map.json"]
    if not (folder / "tokenizer.json").is_file():
        tokenizer += SENTENCEPIECE_FILES
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json", *(folder / name for name in tokenizer)]):
        if file.is_file():
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"folder with digest {digest.hexdigest()[:16]}"


def load_config(name: str | Path, *, images: bool = False) -> Any:
    """Load a model's configuration from a folder, a built-in model or the hub.

    Args:
        name: A folder, a built-in name or a hub id.
        images: Whether an image model is wanted, for messages.

    Raises:
        ArtifactError: Nothing of that name can be had; the message says how to give a folder.
    """
    register()
    return _from_name(AutoConfig.from_pretrained, name, images=images)


def refuse_image_model(name: str | Path, config: Any) -> None:
    """Raise if what is given as a text model reads images.

    Args:
        name: What the user calls it.
        config: Its configuration.

    Raises:
        ArtifactError: It does.
    """
    kinds: Any = classes_in(MODEL_MAPPING, config) or classes_in(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, config)
    if any(kind.main_input_name == "pixel_values" for kind in kinds):
        raise ArtifactError(
            f"{name} is a {config.model_type!r} model, which reads images, not texts; train it on images with "
            "ImagePipeline or recipes/train_image_classifier.py, or give a text model"
        )


def model_type_of(name: str | Path | None) -> str:
    """Return transformers' name of a model's architecture; None, a model from scratch, is an AWD-LSTM."""
    return AwdLstmConfig.model_type if name is None else load_config(name).model_type


def load_model(name: str | Path, kind: Any, **settings: Any) -> Any:
    """Load a model from a folder, the package or the hub; safetensors only.

    Args:
        name: A folder, a built-in name or a hub id.
        kind: An Auto class, such as ``AutoModelForCausalLM``.
        **settings: Passed on to ``from_pretrained``; weights are turned to float32 unless ``dtype`` says otherwise.

    Raises:
        ArtifactError: The folder lacks weights or they were cut short, or the hub cannot be reached.
    """
    register()
    wants_info = settings.pop("output_loading_info", False)
    settings.setdefault("dtype", "float32")
    model, found = _from_name(kind.from_pretrained, name, use_safetensors=True, output_loading_info=True, **settings)
    if wants_info:
        return model, found
    missing = sorted(found["missing_keys"])  # transformers fills a gap with random weights
    if missing:
        is_classifier = any(key.startswith("classifier.") for key in found["unexpected_keys"])
        what = "it holds a classifier; give the folder of its language model" if is_classifier else "take another save"
        raise ArtifactError(
            f"the weights of {name} lack {missing[0]} ({len(missing)} in all), so they are no whole "
            f"{type(model).__name__}: {what}"
        )
    return model


def load_tokenizer(name: str | Path, *, config: Any = None) -> UlmfitTokenizer:
    """Load the tokenizer of a folder, and check that it is the model's own.

    Args:
        name: A folder, a built-in name or a hub id.
        config: The model's configuration; its ``vocab_hash`` must be the tokenizer's.

    Raises:
        ArtifactError: There is no tokenizer, or it belongs to another model.
    """
    register()
    _require_tokenizer(Path(resolve_model(name)))
    tokenizer = _from_name(AutoTokenizer.from_pretrained, name)
    wanted = getattr(config, "vocab_hash", None)
    if wanted is not None and vocab_hash(tokenizer) != wanted:
        raise ArtifactError(
            f"the tokenizer of {name} does not belong to the model: its vocabulary hash is "
            f"{vocab_hash(tokenizer)[:12]}..., the model was trained with {wanted[:12]}...; "
            "copy the tokenizer files of the folder the model came from"
        )
    if not isinstance(tokenizer, UlmfitTokenizer):
        raise ArtifactError(
            f"the tokenizer of {name} is a {type(tokenizer).__name__}, not one that this project wrote; "
            "give the folder that a stage wrote"
        )
    return tokenizer


def load_text_tokenizer(
    name: str | Path, config: Any, *, say: Callable[[str], None] = print_line
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of any text model, ready to encode documents: ours, or a transformer's fast one.

    Args:
        name: A folder, a built-in name or a hub id.
        config: The model's configuration; its padding id is set to the tokenizer's.
        say: Told when a tokenizer without a padding token gets its end-of-text token for one.

    Raises:
        ArtifactError: There is no tokenizer, no fast one, or it belongs to another model.
    """
    if config.model_type == AwdLstmConfig.model_type:
        return load_tokenizer(name, config=config)
    register()
    _require_tokenizer(Path(resolve_model(name)))
    tokenizer: Any = _from_name(AutoTokenizer.from_pretrained, name)
    if not tokenizer.is_fast:
        raise ArtifactError(
            f"the tokenizer of {name} is a {type(tokenizer).__name__}, which is no fast one (tokenizer.json); save it "
            "as a fast one with transformers, or take another model"
        )
    silence_fork_warning()
    tokenizer.backend_tokenizer.no_truncation()  # some are saved with both, all-MiniLM-L6-v2 for example
    tokenizer.backend_tokenizer.no_padding()
    text_config = config.get_text_config()
    _check_vocabulary(name, tokenizer, config, size=text_config.vocab_size)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ArtifactError(f"the tokenizer of {name} has neither a padding nor an end-of-text token; add one")
        tokenizer.pad_token = tokenizer.eos_token
        say(f"{name} has no padding token: its end-of-text token {tokenizer.eos_token!r} takes that place")
    text_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _check_vocabulary(name: str | Path, tokenizer: Any, config: Any, *, size: int) -> None:
    """Raise unless a tokenizer's ids are rows of the model's embedding, and their number is likely its own."""
    largest = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not size / 2 < largest <= size:
        added = "if tokens were added, model.resize_token_embeddings(len(tokenizer)) and save both again; else "
        raise ArtifactError(
            f"the tokenizer of {name} has {largest:,} ids, the model's embedding {size:,} rows, so they do not belong "
            f"together; {added if largest > size else ''}copy the tokenizer files of the folder the model came from"
        )
    wanted = (getattr(config, "ulmfit_pipe", None) or {}).get("vocabulary")
    if wanted not in (None, vocabulary_digest(tokenizer)):
        raise ArtifactError(
            f"the tokenizer of {name} does not belong to the model: it has as many tokens, but others or in another "
            "order; copy the tokenizer files of the folder the model came from"
        )


def _require_tokenizer(folder: Path) -> None:
    """Raise if a folder holds weights and architecture only, as a learner saves them unless told to add more."""
    if folder.is_dir() and not any((folder / name).is_file() for name in (*TOKENIZER_FILES, *SENTENCEPIECE_FILES)):
        raise ArtifactError(
            f"{folder} holds no tokenizer ({BACKEND_FILE}); save a learner together with its own: "
            "learner.save(folder, add_files=tokenizer.save_pretrained), or copy it from the folder the model came from"
        )


def _from_name(load: Callable[..., Any], name: str | Path, *, images: bool = False, **settings: Any) -> Any:
    resolved = resolve_model(name, images=images)
    if not Path(resolved).is_dir():
        _ask_hub(resolved, images=images)
    try:
        with quiet_transformers():
            return load(resolved, **settings)
    except (OSError, ValueError) as error:
        if Path(resolved).is_dir():
            _refuse_pickled_weights(Path(resolved))
            raise ArtifactError(
                f"{resolved} cannot be loaded ({_first_line(error)}); a file is missing, cut short or not ours: "
                "take another save or train the stage again"
            ) from error
        raise _not_on_hub(resolved, error, images=images) from error
    except Exception as error:  # safetensors and tokenizers raise their own types on a file that was cut short
        if type(error).__module__.split(".")[0] in ("safetensors_rust", "safetensors", "tokenizers", "builtins"):
            raise ArtifactError(
                f"{resolved} cannot be loaded ({_first_line(error)}); a file was cut short or altered: "
                "take another save or train the stage again"
            ) from error
        raise


def _ask_hub(name: str, *, images: bool) -> None:
    """Ask the hub quickly whether there is such a model, unless it is in the cache: downloads retry for long."""
    if is_offline_mode() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # every layer below raises its own kind when the network is missing
        raise _not_on_hub(name, error, images=images) from error


def _not_on_hub(name: str, error: Exception, *, images: bool) -> ArtifactError:
    reason = "HF_HUB_OFFLINE is set" if is_offline_mode() else "no network, or no such model there"
    advice = (
        "preprocessor_config.json of an image model, or that recipes/train_image_classifier.py wrote; or leave the "
        "model out for a small ResNet"
        if images
        else f"a tokenizer, for example one written by recipes/pretrain_language_model.py{_builtin_advice()}"
    )
    return ArtifactError(
        f"{name!r} is no folder here and could not be fetched from the hub ({reason}: {_first_line(error)}); "
        f"give a folder that holds config.json, model.safetensors and {advice}"
    )


def _builtin_advice() -> str:
    names = ", ".join(builtin_models())
    return f"; or a built-in model: {names}" if names else ""


def _refuse_pickled_weights(folder: Path) -> None:
    pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLE_SUFFIXES]
    if pickled and not any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"{folder} cannot be loaded: it has its weights in {pickled[0]}, a pickled checkpoint, which can run code "
            "when read, so it is refused; convert it to model.safetensors where you trust it"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def save_stage(
    path: Path | str,
    *,
    stage: str,
    record: dict[str, Any],
    write: Callable[[Path], None],
) -> Path:
    """Write a stage's folder, whole or not at all.

    Args:
        path: The folder; an older one of the same stage is replaced, anything else there is refused.
        stage: Name of the stage.
        record: JSON-able facts: settings, metrics, seconds, what it was made from.
        write: Writes the stage's files into the folder it is given.

    Returns:
        The folder.

    Raises:
        ArtifactError: The folder holds something that is no such stage.
        CheckpointError: The disk is full; what was there is untouched.
    """
    path = Path(path)
    refuse_foreign_folder(path, stage)
    with atomic_folder(path) as folder:
        write(folder)
        full = {
            "format": FORMAT,
            "stage": stage,
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": library_versions(),
            **record,
        }
        write_json(folder / STAGE_FILE, full)
    return path


def refuse_foreign_folder(path: Path, stage: str) -> None:
    """Raise if a folder that a stage is about to write holds something else.

    Raises:
        ArtifactError: It is not empty and not an earlier result of the same stage.
    """
    recover_folder(path)
    if path.is_symlink() and not path.exists():
        raise ArtifactError(
            f"{path} is a link to {path.readlink()}, which is not there; make that folder, or choose another output "
            "folder"
        )
    if not path.exists():
        return
    if not path.is_dir():
        raise ArtifactError(f"{path} is a file; choose another output folder")
    if not contents_of(path):
        return
    found = read_stage(path)
    if found is None or found.get("stage") != stage:
        what = f"a {found['stage']} stage" if found else "files that are no stage's"
        raise ArtifactError(f"{path} holds {what}, not a {stage} stage; choose another output folder or remove it")


def read_stage(path: Path | str) -> dict[str, Any] | None:
    """Return the record of a finished stage, or None where there is none (or it was cut short)."""
    file = Path(path) / STAGE_FILE
    if not file.is_file():
        return None
    try:
        record = read_json(file)
    except CheckpointError:
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None
