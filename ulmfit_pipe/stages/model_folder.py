"""What a model folder may hold, checked before transformers reads it: no pickles, nothing outside of the folder.

A folder may come from anybody. transformers follows names that it finds in JSON files (of weights, of other models, of
kernels), unpickles weights that an index names, and allocates whatever sizes a configuration asks for. So the JSON
files and the headers of the safetensors files, a few kilobytes, are read first. Code of a model's own runs where it is
allowed on purpose only (`remote_code`).
"""

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from ulmfit_pipe.stages.model_names import ArtifactError, ModelName
from ulmfit_pipe.storage.pickles import PICKLE_STARTS, PICKLE_SUFFIXES

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
STAGE_FILE = "stage.json"  # the record of a stage that was finished
NAMING_FILES = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
HUB_BLOBS = "blobs"  # where the hub's cache keeps the files that its snapshots link to
DEEPEST = 32  # levels of a configuration; transformers' own have four
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own bound
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # types that weights may have
NOTES = "ulmfit_pipe"  # entry of a transformer's config.json that holds what is ours
LFS_POINTER = b"version https://git-lfs"

# ---- bounds on sizes: far above any model, far below what a machine cannot hold
MOST_LAYERS = 1_000  # or as many as there are tensors; ALBERT's layers share theirs
MOST_LABELS = 1_000_000
SPARE_WEIGHTS = 100_000_000  # that a network may have beside four times those of its file: new heads, buffers
LAYER_COUNTS = re.compile(r"(^|_)(layers?|blocks?|depths?|experts|groups|group_num|stages)$")
WIDTHS = re.compile(r"(^|_)(size|sizes|dim|dims|width|channels|embd|inner|d_model|d_ff)$")
POSITIONS = re.compile(r"(^|_)(embeddings|positions)$")  # where they are computed, more than there are weights
LABELS = re.compile(r"^num_labels$")

# ---- entries of a configuration that make transformers fetch something else than the folder's files
KERNEL_CHOICES = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "grouped_mm", "batched_mm"),
}
FETCHING = {
    "quantization_config": "its weights are quantized, which cannot be trained here; give the model it was made from",
    "use_kernels": "it asks for compute kernels of the hub; delete the entry",
    "kernel_config": "it asks for compute kernels of the hub; delete the entry",
    "use_pretrained_backbone": "it asks for the weights of another model; give a folder with all of its own",
    "checkpoint_path": "it asks for weights outside of the folder; delete the entry",
}

Rest = ParamSpec("Rest")
Result = TypeVar("Result")
_ALLOWED: ContextVar[bool] = ContextVar("remote_code_allowed", default=False)


@contextlib.contextmanager
def remote_code(allowed: bool) -> Iterator[None]:
    """Let code that comes with a model run inside the block, or not; within an allowing block it stays allowed.

    Args:
        allowed: The setting ``trust_remote_code`` of whoever asks for the model.
    """
    token = _ALLOWED.set(allowed or _ALLOWED.get())
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def trusting_run(run: Callable[Concatenate[Any, Rest], Result]) -> Callable[Concatenate[Any, Rest], Result]:
    """Let code that comes with a model run within a run whose settings have ``trust_remote_code`` on."""

    @functools.wraps(run)
    def within(settings: Any, *args: Rest.args, **named: Rest.kwargs) -> Result:
        with remote_code(settings.trust_remote_code):
            return run(settings, *args, **named)

    return within


def remote_code_allowed() -> bool:
    """Return whether code that comes with a model may run."""
    return _ALLOWED.get()


class Stored(NamedTuple):
    """A tensor of a safetensors file, by its header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_record(file: Path) -> dict[str, Any]:
    """Read a JSON object of a model's folder.

    Raises:
        ArtifactError: It is not a JSON object, or one that Python cannot read (too deep, a number of 5,000 digits).
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120] or type(error).__name__
        raise ArtifactError(
            f"{file.parent} cannot be loaded: {file.name} is not readable JSON ({reason}), it was cut short or "
            "altered; take another save"
        ) from None
    if not isinstance(record, dict):
        raise ArtifactError(
            f"{file.parent} cannot be loaded: {file.name} must hold a JSON object, it is {shown(record)}; take "
            "another save"
        )
    return record


def shown(value: Any) -> str:
    """Return a value of a file as a short text without control characters."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Raise for what no loader must follow: pickles, names of other files or models, sizes that cannot be.

    Args:
        folder: A model's folder, with a config.json.
        weights: Whether all of its weights are expected to be there; of a hub model they may not be fetched yet.

    Raises:
        ArtifactError: Something in it is refused; file and entry are named.
    """
    record = read_record(folder / CONFIG_FILE)
    if (folder / "adapter_config.json").exists():
        raise ArtifactError(
            f"{folder} holds a model and an adapter of peft (adapter_config.json), which would be put on it unasked; "
            "merge the two with peft_model.merge_and_unload().save_pretrained(folder), or delete adapter_config.json"
        )
    _check_entries(folder, record)
    _check_labels(folder, record)
    _check_weights_name(folder, record)
    for name in NAMING_FILES:
        if (folder / name).is_file():
            _check_named_files(folder, name, read_record(folder / name))
    if (folder / "tokenizer_config.json").is_file():
        _check_bound(folder, read_record(folder / "tokenizer_config.json"))
    has_weights = weights and any((folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))
    _check_counts(folder, record, stored_tensors(folder) if has_weights else {})


def _entries(folder: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield dotted path, name and value of every entry, however deep; without recursion, which depth could exhaust."""
    waiting: list[tuple[str, int, Any]] = [("", 0, record)]
    while waiting:
        path, depth, value = waiting.pop()
        if depth > DEEPEST:
            raise ArtifactError(
                f"{folder} cannot be loaded: config.json is nested more than {DEEPEST} deep; take another save"
            )
        parts: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, part in parts:
            if isinstance(value, dict):
                yield f"{path}{name}", str(name), part
            waiting.append((f"{path}{name}.", depth + 1, part))


def _check_entries(folder: Path, record: dict[str, Any]) -> None:
    for path, name, value in _entries(folder, record):
        plain = name.removeprefix("_").removesuffix("_internal")
        for choice in _texts(value) if plain in KERNEL_CHOICES else ():
            if choice not in KERNEL_CHOICES[plain]:
                raise ArtifactError(
                    f"{folder} cannot be loaded: {path} in config.json is {shown(choice)}, which may be fetched from "
                    f"elsewhere and run; allowed are {', '.join(KERNEL_CHOICES[plain])}: change or delete the entry"
                )
        if plain in FETCHING and value not in (None, False):
            raise ArtifactError(f"{folder} cannot be loaded: config.json has {path}: {FETCHING[plain]}")
        if plain in ("backbone", "architecture") and isinstance(value, str) and re.search(r"[/:\\]", value):
            raise ArtifactError(
                f"{folder} cannot be loaded: {path} in config.json names another model, {shown(value)}; give a folder "
                "that holds all of its own"
            )


def _check_labels(folder: Path, record: dict[str, Any]) -> None:
    """Raise if the entries on the kind of model and its labels are not of their types."""
    classes = record.get("architectures")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(part, str) for part in classes)):
        raise ArtifactError(
            f"{folder} cannot be loaded: architectures in config.json must be a list of names, got {shown(classes)}; "
            "take another save"
        )
    for name in ("auto_map", "label2id", NOTES):
        if not isinstance(record.get(name) or {}, dict):
            raise ArtifactError(
                f"{folder} cannot be loaded: {name} in config.json must be an object, got {shown(record[name])}; "
                "delete the entry, or take another save"
            )
    names = record.get("id2label")
    if names is None:
        return
    wanted = [str(index) for index in range(len(names))] if isinstance(names, dict) else []
    is_classifier = any("Classification" in part for part in classes or [])
    if not isinstance(names, dict) or (is_classifier and sorted(names) != sorted(wanted)):
        raise ArtifactError(
            f"{folder} cannot be loaded: id2label in config.json must give the ids 0, 1, 2, ... without a gap a label "
            f"each, got {shown(list(names) if isinstance(names, dict) else names)}; correct it, or take another save"
        )


def _texts(value: Any) -> list[Any]:
    """Return a choice, or those of a dictionary that has one for each part of a model; None is not a choice."""
    return [part for part in (value.values() if isinstance(value, dict) else [value]) if part is not None]


def _check_named_files(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Raise where an entry such as ``vocab_file`` names a file that is outside of the folder."""
    for path, entry, value in _entries(folder, record):
        if not entry.endswith(("_file", "_files")):
            continue
        for given in value if isinstance(value, list) else [value]:
            if not isinstance(given, str) or not (outside := folder / given).is_file():
                continue  # old saves hold paths of the machine they were made on, which nothing reads
            if not outside.resolve().is_relative_to(folder.resolve()) and not _is_of_hub_cache(outside):
                raise ArtifactError(
                    f"{folder} cannot be loaded: {path} in {name} names {shown(given)}, which is outside of the "
                    "folder; copy the file into it and name it alone"
                )


def _check_bound(folder: Path, record: dict[str, Any]) -> None:
    length = record.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length > 0):
        raise ArtifactError(
            f"{folder} cannot be loaded: model_max_length in tokenizer_config.json must be a number above 0, got "
            f"{shown(length)}; delete the entry"
        )


def _is_of_hub_cache(file: Path) -> bool:
    """Return whether a link is one of the hub's cache: ``snapshots/REVISION/file`` -> ``../../blobs/HASH``."""
    parents = file.absolute().parents
    if len(parents) < 3 or parents[1].name != "snapshots":
        return False
    return file.resolve().parent == parents[2].resolve() / HUB_BLOBS


# ---- the weights


def _check_weights_name(folder: Path, record: dict[str, Any]) -> None:
    name = record.get("transformers_weights")
    if name is not None and name not in (WEIGHTS_FILE, INDEX_FILE):
        raise ArtifactError(
            f"{folder} cannot be loaded: transformers_weights in config.json is {shown(name)}; weights are read from "
            f"{WEIGHTS_FILE} or the files of {INDEX_FILE} alone: rename the file, and delete the entry"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a model's weights are read from; none where there are no weights.

    Raises:
        ArtifactError: The weights are pickled, a file of the index is missing, or it names one elsewhere.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        return _files_of_index(folder)
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise ArtifactError(
            f"{folder} cannot be loaded: it has its weights in {pickled[0]}, a pickled checkpoint, which can run code "
            "when read, so it is refused; convert it to model.safetensors where you trust it"
        )
    return []


def _files_of_index(folder: Path) -> list[Path]:
    index = read_record(folder / INDEX_FILE)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not isinstance(index.get("metadata"), dict):
        raise ArtifactError(
            f"{folder} cannot be loaded: {INDEX_FILE} has no weight_map and metadata, so it was altered; take "
            "another save"
        )
    files = []
    for name in sorted({str(name) for name in names.values()}):
        file = folder / name
        if Path(name).suffix in PICKLE_SUFFIXES:
            raise ArtifactError(
                f"{folder} cannot be loaded: {INDEX_FILE} names {shown(name)}, a pickled checkpoint, which can run "
                "code when read, so it is refused; convert it to safetensors where you trust it"
            )
        plain = re.fullmatch(r"[^/\\\0]{1,200}\.safetensors", name) is not None
        if not plain or not (file.resolve().is_relative_to(folder.resolve()) or _is_of_hub_cache(file)):
            raise ArtifactError(
                f"{folder} cannot be loaded: {INDEX_FILE} names {shown(name)}, which is not a safetensors file inside "
                "the folder; take another save"
            )
        files.append(file)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ArtifactError(
            f"{folder} cannot be loaded: {missing[0]} is missing ({len(missing)} of {len(files)} files of weights), "
            "the download or copy is not complete; fetch the folder again"
        )
    return files


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a folder's weights by name, from the headers of their files.

    Raises:
        ArtifactError: A file was cut short or is not a safetensors file, or as `weight_files`.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        found.update(_header_of(file))
    return found


def _header_of(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as content:
        start = content.read(8)
        length = int.from_bytes(start, "little")
        if start and LFS_POINTER.startswith(start):
            raise ArtifactError(
                f"{file.parent} cannot be loaded: {file.name} is a pointer of Git LFS, not the weights, which were not "
                "downloaded; run git lfs pull there, or fetch the folder again"
            )
        if length > min(size - 8, LONGEST_HEADER):
            if start.startswith(PICKLE_STARTS):
                raise ArtifactError(
                    f"{file.parent} cannot be loaded: {file.name} is a pickled checkpoint under another name, which "
                    "can run code when read, so it is refused; convert it to safetensors where you trust it"
                )
            raise _cut_short(file, f"{size:,} bytes are there")
        text = content.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        stored = {
            name: Stored(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))
            for name, entry in tensors.items()
        }
        wanted = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _cut_short(file, "its header cannot be read") from error
    if size != wanted:
        raise _cut_short(file, f"{size:,} bytes are there, its header declares {wanted:,}")
    return stored


def _cut_short(file: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{file.parent} cannot be loaded: {file.name} was cut short or altered ({reason}); {other_save(file.parent)}"
    )


def other_save(folder: Path) -> str:
    """Return advice for a folder of which a file cannot be used."""
    if (folder / STAGE_FILE).is_file():
        return f"take another save, or remove {folder} and run the command that wrote it again"
    return "take another save"


# ---- sizes


def _check_counts(folder: Path, record: dict[str, Any], stored: Mapping[str, Stored]) -> None:
    """Raise for sizes that no network with these weights can have, before anything of such a size is built."""
    elements = sum(tensor.elements for tensor in stored.values()) or SPARE_WEIGHTS
    bounds = {LAYER_COUNTS: max(MOST_LAYERS, len(stored)), WIDTHS: max(elements, MOST_LABELS)}
    bounds |= {POSITIONS: max(elements, SPARE_WEIGHTS), LABELS: MOST_LABELS}
    for path, name, value in _entries(folder, record):
        numbers = value if isinstance(value, list) else [value]
        for pattern, bound in bounds.items():
            if pattern.search(name) and any(isinstance(number, int | float) and number > bound for number in numbers):
                raise ArtifactError(
                    f"{folder} cannot be loaded: {path} in config.json is {shown(value)}, more than its weights can "
                    f"be of ({len(stored):,} tensors, {elements:,} values); take config.json and weights from one save"
                )


def sizes_that_differ(folder: Path, network: Any) -> str:
    """Return in words the first tensor that has another shape in a folder's files than in a network; empty for none."""
    stored = stored_tensors(folder)
    for name, part in network.named_parameters():
        for spelling in _spellings(network, name):
            if spelling in stored and stored[spelling].shape != tuple(part.shape):
                return f"{spelling} is {stored[spelling].shape} in its files and {tuple(part.shape)} by config.json"
    return ""


def _spellings(network: Any, parameter: str) -> tuple[str, ...]:
    """Return the names that a file may give a parameter: with and without the prefix of the model below a head."""
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    return parameter, prefix + parameter, parameter.removeprefix(prefix)


def check_network(name: ModelName, folder: Path, network: Any) -> None:
    """Raise if a folder's weights cannot be those of a network, by number and type; the network may be on meta.

    Args:
        name: What the user calls the model.
        folder: Its folder.
        network: What is to be loaded, without memory for its weights.

    Raises:
        ArtifactError: The network is many times larger than the weights, or they are not floating-point numbers.
    """
    stored = stored_tensors(folder)
    if not stored:
        return
    parts = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    wanted, elements = sum(part.numel() for part in parts.values()), sum(part.elements for part in stored.values())
    if wanted > 4 * elements + SPARE_WEIGHTS:
        raise ArtifactError(
            f"{name} cannot be loaded: config.json describes a network of {wanted:,} weights, its files hold "
            f"{elements:,}; take config.json and weights from one save"
        )
    for parameter, _ in network.named_parameters():
        for spelling in _spellings(network, parameter):
            if spelling in stored and stored[spelling].dtype not in FLOATS:
                raise ArtifactError(
                    f"{name} cannot be loaded: {spelling} is stored as {stored[spelling].dtype}, weights must be one "
                    f"of {', '.join(FLOATS)}; take another save, one that is not quantized"
                )
