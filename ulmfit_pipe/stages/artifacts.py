"""What a stage starts from and ends in: a folder with weights, configuration, tokenizer and ``stage.json``.

A folder is complete or absent: it is written under another name and renamed. Its tokenizer is checked against the hash
that the model's configuration holds, so that ids can never mean other tokens than they did in training.

Importing ``ulmfit_pipe.stages`` registers the AWD-LSTM and the concat-pooling classifier with transformers' Auto
classes.
"""

import hashlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.text.pretrained_tokenizers import vocabulary_digest
from ulmfit_pipe.data.text.tokenization import register_tokenizer, vocab_hash
from ulmfit_pipe.data.text.ulmfit_tokenizer import BACKEND_FILE, UlmfitTokenizer, silence_fork_warning
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import (
    AwdLstmForCausalLM,
    AwdLstmForSequenceClassification,
    AwdLstmModel,
)
from ulmfit_pipe.models.heads.pooling_classifier import (
    MODEL_TYPE,
    PoolingClassifierConfig,
    PoolingForSequenceClassification,
)
from ulmfit_pipe.models.images.classifier import register_image_classifier
from ulmfit_pipe.models.layer_groups.image_groups import classes_in
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.stages.model_folder import INDEX_FILE, STAGE_FILE, remote_code_allowed
from ulmfit_pipe.stages.model_names import ArtifactError, ModelName, ResolvedModel, location_of, resolve_model
from ulmfit_pipe.stages.pretrained_files import load_pretrained, register_remote_classes
from ulmfit_pipe.storage.atomic import CheckpointError, atomic_folder, contents_of, recover_folder
from ulmfit_pipe.storage.digests import digest_of_file
from ulmfit_pipe.storage.json_files import SEAL, AlteredError, read_sealed, write_sealed
from ulmfit_pipe.storage.temporary_files import no_place_for_a_file
from ulmfit_pipe.storage.versions import library_versions

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # size, crop and scale of an image model
TOKENIZER_FILES = (BACKEND_FILE, "tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")
# What a fast tokenizer is made from where a model has no tokenizer.json: DeBERTa v2 and v3, ALBERT, Llama, XLM-R.
SENTENCEPIECE_FILES = ("spm.model", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
WHOLE_TOKENIZERS = (BACKEND_FILE, "tokenizer.json", "vocab.txt", *SENTENCEPIECE_FILES)  # any is one by itself
LOG_FILE = "log.jsonl"
FORMAT = 1


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


def model_identity(name: ModelName | None, *, images: bool = False) -> str | None:
    """Return a model's fingerprint: a digest of its files, wherever the folder is, or the hub id.

    Counted is each file that changes what the model computes: weights, configuration, tokenizer or image processor, and
    code of its own where that may run.

    Args:
        name: As `resolve_model`; None for a model from scratch.
        images: Whether an image model is wanted, for messages.

    Raises:
        ArtifactError: As `resolve_model`, and as `check_stage_files`.
    """
    if name is None:
        return None
    folder = Path(location_of(name, images=images))
    if not folder.is_dir():
        return str(name)
    check_stage_files(folder)
    digest = hashlib.sha256()
    ours = (folder / BACKEND_FILE).is_file()
    tokenizer = [BACKEND_FILE] if ours else [*TOKENIZER_FILES, "merges.txt", "special_tokens_map.json"]
    if not (folder / "tokenizer.json").is_file():
        tokenizer += [*SENTENCEPIECE_FILES, "added_tokens.json"]
    named = ["config.json", INDEX_FILE, *tokenizer, *(PROCESSOR_FILES if images else ())]
    others = [*(folder / name for name in named), *(folder.glob("*.py") if remote_code_allowed() else ())]
    for file in sorted([*folder.glob("*.safetensors"), *others]):
        if file.is_file():
            digest.update(f"{file.name} {digest_of_file(file)}\n".encode())
    return f"folder with digest {digest.hexdigest()[:16]}"


def load_config(name: ModelName, *, images: bool = False) -> Any:
    """Load a model's configuration from a folder, a built-in model or the hub.

    Args:
        name: A folder, a built-in name or a hub id.
        images: Whether an image model is wanted, for messages.

    Raises:
        ArtifactError: Nothing of that name can be had; the message says how to give a folder.
    """
    register()
    config = load_pretrained(AutoConfig, name, images=images)
    register_remote_classes(name, config)
    return config


def load_image_processor(name: str | Path) -> Any:
    """Load a model's image processor.

    Args:
        name: A folder or a hub id.

    Raises:
        ArtifactError: It is refused; it has none, or needs a library (the cause is then transformers' own error).
    """
    return load_pretrained(AutoImageProcessor, name, images=True)


def refuse_image_model(name: ModelName, config: Any) -> None:
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
            "ImagePipeline or ulmfit images, or give a text model"
        )


@overload
def find_model(name: None) -> None: ...


@overload
def find_model(name: ModelName) -> ResolvedModel: ...


def find_model(name: ModelName | None) -> ResolvedModel | None:
    """Resolve a model's name and read its configuration, once: the result is passed on instead of the name.

    Args:
        name: A folder, a built-in name, a hub id or what this returned; None, a model from scratch, stays None.

    Raises:
        ArtifactError: As `resolve_model` and `load_config`.
    """
    if name is None or isinstance(name, ResolvedModel):
        return name
    found = ResolvedModel(str(home_path(name)), resolve_model(name))
    return replace(found, loaded=load_config(found))


def model_type_of(name: ModelName | None) -> str:
    """Return transformers' name of a model's architecture; None, a model from scratch, is an AWD-LSTM."""
    found = find_model(name)
    return AwdLstmConfig.model_type if found is None else found.model_type


def load_model(name: ModelName, kind: Any, **settings: Any) -> Any:
    """Load a model from a folder, the package or the hub; safetensors only.

    Args:
        name: A folder, a built-in name or a hub id.
        kind: An Auto class, such as ``AutoModelForCausalLM``.
        **settings: Passed on to ``from_pretrained``; weights are turned to float32 unless ``dtype`` is given.

    Raises:
        ArtifactError: The folder lacks weights, a file of it was cut short or altered, or the hub cannot be reached.
    """
    register()
    check_stage_files(location_of(name))
    wants_info = settings.pop("output_loading_info", False)
    settings.setdefault("dtype", "float32")
    model, found = load_pretrained(kind, name, use_safetensors=True, output_loading_info=True, **settings)
    if found["unexpected_keys"] and found["missing_keys"] >= set(dict(model.named_parameters())):
        raise ArtifactError(
            f"{name} holds none of the weights of a {type(model).__name__}, but others ("
            f"{min(found['unexpected_keys'])}, ...): config.json and weights are of two models; take both from one save"
        )
    _refuse_cut_layers(name, model, found["unexpected_keys"])
    if wants_info:
        return model, found
    missing = sorted(found["missing_keys"])  # transformers fills a gap with random weights
    if missing:
        is_classifier = any(key.startswith("classifier.") for key in found["unexpected_keys"])
        what = "it holds a classifier; give the folder of its language model" if is_classifier else "take another save"
        raise ArtifactError(
            f"the weights of {name} lack {missing[0]} ({len(missing)} in all), so they are not a complete "
            f"{type(model).__name__}: {what}"
        )
    return model


def _refuse_cut_layers(name: ModelName, model: Any, unexpected: Iterable[str]) -> None:
    """Raise where the files hold layers behind the last one of the network; transformers would leave them out."""
    lists = {path: len(part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList | nn.Sequential)}
    prefix = f"{model.base_model_prefix}."
    for key in sorted(unexpected):
        for place in re.finditer(r"\.(\d+)\.", key):
            path, number = key[: place.start()], int(place[1])
            count = lists.get(path, lists.get(prefix + path, lists.get(path.removeprefix(prefix))))
            if count is not None and number >= count:
                raise ArtifactError(
                    f"{name} cannot be loaded: its files hold {path}.{number}, config.json describes {count} of these "
                    "layers; take config.json and weights from one save"
                )


def load_tokenizer(name: ModelName, *, config: Any = None) -> UlmfitTokenizer:
    """Load the tokenizer of a folder, and check that it is the model's own.

    Args:
        name: A folder, a built-in name or a hub id.
        config: The model's configuration; its ``vocab_hash`` must be the tokenizer's.

    Raises:
        ArtifactError: There is no tokenizer, or it belongs to another model.
    """
    register()
    _require_tokenizer(Path(location_of(name)))
    tokenizer = load_pretrained(AutoTokenizer, name)
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
    name: ModelName, config: Any, *, say: Callable[[str], None] = print_line
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of any text model, ready to encode documents: ours, or a transformer's fast one.

    Args:
        name: A folder, a built-in name or a hub id.
        config: The model's configuration; its padding id is set to the tokenizer's.
        say: Receives a log line when a tokenizer without a padding token gets its end-of-text token for one.

    Raises:
        ArtifactError: There is no tokenizer, no fast one, or it belongs to another model.
    """
    if config.model_type == AwdLstmConfig.model_type:
        return load_tokenizer(name, config=config)
    register()
    _require_tokenizer(Path(location_of(name)))
    try:
        tokenizer: Any = load_pretrained(AutoTokenizer, name)
    except ArtifactError as error:
        if error.__cause__ is not None:
            _require_vocabulary(Path(location_of(name)))
        raise
    if not tokenizer.is_fast:
        raise ArtifactError(
            f"the tokenizer of {name} is a {type(tokenizer).__name__}, not a fast tokenizer (tokenizer.json); save it "
            "as a fast one with transformers, or take another model"
        )
    _require_vocabulary(Path(location_of(name)))
    silence_fork_warning()
    tokenizer.backend_tokenizer.no_truncation()  # some are saved with both, all-MiniLM-L6-v2 for example
    tokenizer.backend_tokenizer.no_padding()
    text_config = config.get_text_config()
    _check_vocabulary(name, tokenizer, config, size=text_config.vocab_size)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ArtifactError(f"the tokenizer of {name} has neither a padding nor an end-of-text token; add one")
        tokenizer.pad_token = tokenizer.eos_token
        say(f"{name} has no padding token: its end-of-text token {tokenizer.eos_token!r} is used instead")
    text_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _check_vocabulary(name: ModelName, tokenizer: Any, config: Any, *, size: int) -> None:
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
    """Raise if a folder holds weights and architecture only, as a learner saves them by default."""
    if folder.is_dir() and not any((folder / name).is_file() for name in (*TOKENIZER_FILES, *SENTENCEPIECE_FILES)):
        raise ArtifactError(
            f"{folder} holds no tokenizer ({BACKEND_FILE}); save a learner together with its own: "
            "learner.save(folder, add_files=tokenizer.save_pretrained), or copy it from the folder the model came from"
        )


def _require_vocabulary(folder: Path) -> None:
    """Raise if a folder has a part of a tokenizer's files only; of vocab.json alone every letter becomes a token."""
    found = [name for name in WHOLE_TOKENIZERS if (folder / name).is_file()]
    if found and set(found) <= set(SENTENCEPIECE_FILES) and importlib.util.find_spec("google.protobuf") is None:
        raise ArtifactError(
            f"{folder} has its tokenizer in {found[0]} only, and reading that needs protobuf, which is not installed: "
            "pip install 'ulmfit_pipe[spm]', or save the tokenizer as a fast one (tokenizer.json) where it is"
        )
    if not folder.is_dir() or found:
        return
    missing = "merges.txt" if (folder / "vocab.json").is_file() else f"its vocabulary ({', '.join(WHOLE_TOKENIZERS)})"
    if missing != "merges.txt" or not (folder / missing).is_file():
        raise ArtifactError(
            f"the tokenizer of {folder} is not complete: {missing} is missing; copy all tokenizer files of the folder "
            "the model came from"
        )


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
        ArtifactError: The folder holds something that is not such a stage.
        CheckpointError: The disk is full; what was there is untouched.
    """
    path = Path(path)
    refuse_foreign_folder(path, stage)
    with atomic_folder(path) as folder:
        write(folder)
        files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in _digests(folder).items()}
        full = {
            "format": FORMAT,
            "stage": stage,
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": library_versions(),
            **record,
            "files": files,
        }
        write_sealed(folder / STAGE_FILE, full)
    return path


def _digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every file of a stage, by its path in the folder; but not of its log."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name not in (STAGE_FILE, LOG_FILE):
            found[file.relative_to(folder).as_posix()] = (file.stat().st_size, digest_of_file(file))
    return found


def check_stage_files(folder: Path | str) -> None:
    """Raise if a file of a finished stage is not the one that was saved; stages of older versions have no digests.

    Args:
        folder: Any folder.

    Raises:
        ArtifactError: A file is missing or was altered, `stage.json` too; the message names it and what to do.
    """
    folder = Path(folder)
    record = read_stage(folder)
    if record is None and (folder / STAGE_FILE).is_file():
        _require_json(folder)
    saved = (record or {}).get("files")
    if not isinstance(saved, dict):
        return
    there = _digests(folder)
    for name, record in saved.items():
        wanted = (record.get("bytes"), record.get("sha256")) if isinstance(record, dict) else None
        if there.get(name) == wanted:
            continue
        change = "its SHA-256 differs" if name in there else "it is missing"
        if name in there and wanted is not None and there[name][0] != wanted[0]:
            change = f"it has {there[name][0]:,} bytes, {wanted[0]} were saved"
        raise ArtifactError(
            f"{folder / name} is not the file that was saved ({change}): it was damaged or altered; put back a copy "
            f"of it, or remove {folder} and run the command that wrote it again (if you changed the file on purpose, "
            f"delete the entries 'files' and {SEAL!r} of {folder / STAGE_FILE})"
        )


def _require_json(folder: Path) -> None:
    """Raise if the record of a stage is damaged, so that the list of its files is unknown."""
    try:
        read_sealed(folder / STAGE_FILE)
    except CheckpointError as error:
        raise ArtifactError(
            f"{error}; put back a copy of it, or remove {folder} and run the command that wrote it again (without "
            f"{STAGE_FILE} the model can be used, and nothing tells whether its files are those that were saved)"
        ) from error


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
        raise ArtifactError(no_place_for_a_file(path) or f"{path} is a file; choose another output folder")
    if not contents_of(path):
        return
    found = read_stage(path)
    if found is None or found.get("stage") != stage:
        what = f"a {found['stage']} stage" if found else "files that are not a stage's"
        raise ArtifactError(f"{path} holds {what}, not a {stage} stage; choose another output folder or remove it")


def read_stage(path: Path | str) -> dict[str, Any] | None:
    """Return the record of a finished stage, or None if it does not exist or was cut short.

    Raises:
        ArtifactError: It is not what was saved: a number or a digest in it was altered.
    """
    file = Path(path) / STAGE_FILE
    if not file.is_file():
        return None
    try:
        record = read_sealed(file)
    except AlteredError as error:
        raise ArtifactError(f"{error}, or remove {path} and run the command that wrote it again") from error
    except CheckpointError:
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    dictionaries = [record.get(name, {}) for name in ("identity", "metrics")]
    return record if all(isinstance(part, dict) for part in dictionaries) else None
