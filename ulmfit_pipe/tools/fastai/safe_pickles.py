"""Read the two pickled files of a fastai model without running what is in them, and write such files.

The only file of the package that touches pickles. Weights go through torch's `weights_only` reader; what fastai keeps
of its optimizer beside them is read into inert stubs and discarded. A vocabulary may hold nothing but lists of
strings: its reader refuses every class and function, by name.
"""

import contextlib
import io
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.models.awd_lstm.vocab_transfer import FASTAI_FILLER
from ulmfit_pipe.tools.fastai.pickle_names import PickleNames, names_in_file, odd_archive, shown, shown_text

PROTOCOL = 2  # of what is written; fastai's own files have it, and every Python 3 reads it
READ_PROTOCOLS = (2, 3)  # what torch's reader of plain tensors knows
# What fastai's optimizer state names besides tensors: `L`, and numpy's floats (learning rates).
_OPTIMIZER_NAMES = (
    "fastcore.foundation.L",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Int64DType",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
# What a file of tensors names; not `torch.storage._load_from_bytes`, which unpickles its argument.
_TENSOR_NAMES = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\._utils\._rebuild_\w+|torch\.(storage\.|cuda\.)?\w*Storage|"
    r"torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout|torch\.nn\.parameter\.Parameter|"
    r"torch\.(Size|Tensor|device|per_\w+|bool|[a-z]+\d\w*)"
)
MOST_VOCABULARY_BYTES = 16_000_000  # 60,000 words take less than 1 MB
MOST_NAME_LETTERS = 200  # of a tensor's name; fastai's have up to 40
_COUNTER = "num_batches_tracked"  # of a norm: the only whole number among the weights
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAVE_WEIGHTS = (
    "save the weights alone where it was made: `learn.save(name, with_opt=False)` or "
    "`torch.save(model.state_dict(), file)`, not `learn.export` or `pickle.dump`"
)
_AS_PLAIN_LISTS = (
    "save it again as plain lists where it was made: `import pickle; pickle.dump(list(learn.dls.vocab), "
    "open('vocab.pkl', 'wb'))`, for a classifier `pickle.dump([list(learn.dls.vocab[0]), "
    "[str(name) for name in learn.dls.vocab[1]]], open('vocab.pkl', 'wb'))`"
)


class UnsafePickleError(UlmfitError, ValueError):
    """A pickle holds something that is not allowed in it, or is not a pickle; the message names what."""


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary file holds.

    Attributes:
        tokens: The tokens; position = id.
        labels: Names of a classifier's labels, position = output; None where the file has tokens alone.
    """

    tokens: list[str]
    labels: list[str] | None = None


class _Ignored:
    """Stub for a part of an optimizer's state: takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Ignored":  # noqa: ARG004
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NOT_OF_LISTS = {  # instruction -> what it fills
    **dict.fromkeys(("SETITEM", "SETITEMS", "DICT"), "dict"),
    **dict.fromkeys(("ADDITEMS", "FROZENSET"), "set"),
    "BYTEARRAY8": "bytearray",  # of the length in the file, whatever follows
}
_REFUSED = [instruction for instruction in pickletools.opcodes if instruction.name in _NOT_OF_LISTS]


def _refusal_of(kind: str) -> Callable[..., None]:
    def refuse(reader: "_ListsOnly") -> NoReturn:  # noqa: ARG001
        """Refuse what the instruction would fill."""
        raise UnsafePickleError(f"it holds a {kind}, not a list of strings; {_AS_PLAIN_LISTS}")

    return refuse


class _ListsOnly(pickle._Unpickler):
    """Reads lists, tuples and plain values; every class or function is refused before it is looked up.

    It is Python's reader in Python: the one in C makes room for every position up to the highest that a file names,
    which 12 bytes can put at four thousand million. A dict is refused where it is filled, as hashing a tuple in a
    tuple in a tuple, a million deep, ends the process.
    """

    dispatch = {
        **pickle._Unpickler.dispatch,
        **{ord(each.code): _refusal_of(_NOT_OF_LISTS[each.name]) for each in _REFUSED},
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse the name.

        Raises:
            UnsafePickleError: Always.
        """
        named = shown(f"{module[:80]}.{name[:80]}")
        raise UnsafePickleError(f"it names {named}, and only lists of strings are read; {_AS_PLAIN_LISTS}")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse a reference to something outside the file.

        Raises:
            UnsafePickleError: Always.
        """
        what = _short(pid) or type(pid).__name__
        raise UnsafePickleError(
            f"it refers to something outside it ({what}), and only lists of strings are read; {_AS_PLAIN_LISTS}"
        )


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read the weights of a `.pth` file that fastai or torch wrote, on the CPU.

    Args:
        path: A saved state dict, or {"model": state dict, ...} as `Learner.save` writes it with its optimizer, and
            training scripts with more; what is beside the model is left out.

    Returns:
        Dense, finite tensors by name; of an `nn.Parameter` its data.

    Raises:
        UnsafePickleError: The file names a class or function that is neither a tensor nor a known part of fastai's
            optimizer state, is not such a file, is of a pickle protocol that cannot be read safely, or holds something
            that is not a dense tensor of finite numbers; the message names it.
        OSError: It cannot be opened.
    """
    path = Path(path)
    if odd := odd_archive(path):
        raise UnsafePickleError(f"{path} is refused: {odd}; copy it again from where it was made, or {_SAVE_WEIGHTS}")
    found = names_in_file(path)
    if refusal := _refusal(found):
        raise UnsafePickleError(f"{path} is refused: {refusal}")
    try:
        with path.open("rb") as file, _allowing_alone(_OPTIMIZER_NAMES), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # what it cannot read, it says
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken file fails in many ways
        raise UnsafePickleError(f"{path} is refused: {_reason(found, error)}") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UnsafePickleError(f"{path} holds a {kind}, not a dict of tensors by name; {_SAVE_WEIGHTS}")
    if not content:
        raise UnsafePickleError(f"{path} holds no weights; {_SAVE_WEIGHTS}")
    size = path.stat().st_size
    return {name: _checked_tensor(path, name, value, size) for name, value in content.items()}


@contextlib.contextmanager
def _allowing_alone(names: Sequence[str]) -> Iterator[None]:
    """Make torch's reader accept these names as stubs, and no others that a library has allowed.

    Importing torch's distributed parts, as transformers and accelerate do, puts classes there that run code.
    """
    of_others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals([(_Ignored, name) for name in names])
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(of_others)


def _checked_tensor(path: Path, name: Any, value: Any, file_bytes: int) -> Tensor:
    if not isinstance(name, str) or len(name) > MOST_NAME_LETTERS:
        raise UnsafePickleError(
            f"{path}: {_shown(name)} is in place of a tensor's name, a string of at most "
            f"{MOST_NAME_LETTERS} letters; {_SAVE_WEIGHTS}"
        )
    if not isinstance(value, Tensor):
        raise UnsafePickleError(f"{path}: under {name!r} is {_shown(value)}, not a tensor; {_SAVE_WEIGHTS}")
    tensor = value.detach()
    if problem := _unusual_form(tensor, name, file_bytes):
        raise UnsafePickleError(f"{path}: under {name!r} is {problem}")
    if not bool(tensor.float().isfinite().all()):
        count = int((~tensor.float().isfinite()).sum())
        raise UnsafePickleError(
            f"{path}: {count} of the {tensor.numel():,} numbers under {name!r} are NaN, infinite or past float32; the "
            "training that saved them had gone wrong: take an earlier save"
        )
    return tensor


def _unusual_form(tensor: Tensor, name: str, file_bytes: int) -> str | None:
    """Return a tensor's kind and how to make a plain one of it, unless it is one."""
    if tensor.is_meta:
        return "a tensor of the device meta, which has a shape and no numbers; save the model after it was loaded"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}); save `tensor.dequantize()`"
    if tensor.is_nested or tensor.layout != torch.strided:
        form = "nested" if tensor.is_nested else f"sparse ({tensor.layout})"
        return f"a {form} tensor; save a dense one, such as `tensor.to_dense()`"
    counts = name.endswith(_COUNTER) and not tensor.is_complex() and tensor.dtype != torch.bool
    if tensor.dtype not in _WEIGHT_TYPES and not (counts and not tensor.is_floating_point()):
        return f"a tensor of {tensor.dtype}; weights are float16, bfloat16, float32 or float64: save `tensor.float()`"
    if not tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes() <= file_bytes:
        shape = tuple(tensor.shape)
        return f"a tensor of shape {shape} that has fewer numbers in the file than that; save `tensor.contiguous()`"
    return None


def _refusal(found: PickleNames | None) -> str | None:
    """Return the reason why a file is not given to torch's reader, if any."""
    if found is None:
        return None
    if foreign := [name for name in found.names if not _is_known(name)]:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        return f"it names {', '.join(foreign[:3])}{more}, and only tensors by name are read; {_SAVE_WEIGHTS}"
    return f"{found.odd}; {_SAVE_WEIGHTS}" if found.odd else None


def _reason(found: PickleNames | None, error: Exception) -> str:
    """Return why torch's reader refused a file in which no forbidden name was found."""
    text = " ".join(str(error).split())
    if named := re.search(r"GLOBAL ([\w.]+)", text):  # of torch's own, but none that its reader allows
        return f"it names {shown(named[1])}, and only tensors by name are read; {_SAVE_WEIGHTS}"
    if found is not None and found.protocol not in READ_PROTOCOLS:
        return (
            f"it was written with pickle protocol {found.protocol}, and of tensors protocol {PROTOCOL} is read; save "
            f"it again where it was made with torch.save's default pickle_protocol={PROTOCOL}"
        )
    if "legacy .tar format" in text:
        return f"it has torch's oldest format, a .tar archive, which is not read; {_SAVE_WEIGHTS}"
    told = text.rpartition("WeightsUnpickler error: ")[2].removeprefix("Weights only load failed. ")
    first = told.split(". ")[0].removesuffix(".").partition(" Check the documentation")[0]
    return (
        f"it is not a file of tensors by name, or was cut short ({shown_text(first) or type(error).__name__}); copy it "
        f"again from where it was made, or {_SAVE_WEIGHTS}"
    )


def _is_known(name: str) -> bool:
    return name in _OPTIMIZER_NAMES or _TENSOR_NAMES.fullmatch(name) is not None


def read_vocabulary(path: Path | str) -> Vocabulary:
    """Read a vocabulary file: a list of tokens, or [tokens, labels] of a classifier; any pickle protocol.

    Args:
        path: The `.pkl` beside the weights (`itos.pkl` in fastai 0.7).

    Raises:
        UnsafePickleError: The file names any class or function (the message says which), is not a pickle, or holds
            something other than strings (the message says where and what).
        ValueError: A token other than the padding xxfake is there twice, or there are no tokens.
        OSError: The file cannot be opened.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _read_lists(file.read(MOST_VOCABULARY_BYTES + 1))
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} is refused: {error}") from error.__cause__
    labels = None
    if isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(p, list | tuple) for p in content):
        content, labels = content
        labels = _checked_strings(path, labels, "label")
    tokens = _checked_strings(path, content, "token")
    if not tokens:
        raise ValueError(f"{path} holds no token; give the vocabulary that the model was saved with")
    _refuse_twice(path, tokens, "token")
    _refuse_twice(path, labels or [], "label")
    return Vocabulary(tokens, labels)


def _read_lists(content: bytes) -> Any:
    if len(content) > MOST_VOCABULARY_BYTES:
        raise UnsafePickleError(
            f"it has more than {MOST_VOCABULARY_BYTES:,} bytes, too many for a list of words; give the vocabulary's "
            ".pkl file, not the weights"
        )
    try:
        return _ListsOnly(io.BytesIO(content), encoding="utf-8").load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a broken pickle fails in many ways
        text = "" if isinstance(error, KeyError) else shown_text(str(error))  # the key is an unknown instruction's code
        raise UnsafePickleError(
            f"it is not a pickled list, or was cut short ({text or type(error).__name__}); copy it again from where it "
            f"was made, or {_AS_PLAIN_LISTS}"
        ) from error


def _checked_strings(path: Path, values: Any, what: str) -> list[str]:
    if not isinstance(values, list | tuple):
        raise UnsafePickleError(f"{path} holds a {type(values).__name__}, not a list of strings; {_AS_PLAIN_LISTS}")
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise UnsafePickleError(
                f"{path}: {what} {position} is {_shown(value)}, not a string; every {what} must be one: "
                f"{_AS_PLAIN_LISTS}"
            )
        if re.search("[\ud800-\udfff]", value):
            raise UnsafePickleError(
                f"{path}: {what} {position} is {_shown(value)}, which holds half of a character; "
                "replace it and save the list again, such as with `value.encode('utf-8', 'replace').decode()`"
            )
    return list(values)


def _short(value: Any) -> str:
    """Return a plain value as Python writes it, truncated; of other values only the type, as lists can be nested."""
    if isinstance(value, str | bytes):
        return repr(value[:60])
    is_small = isinstance(value, int) and value.bit_length() < 200  # Python writes no number of over 4,300 digits
    return repr(value) if is_small or value is None or isinstance(value, float) else ""


def _shown(value: Any) -> str:
    return f"the {type(value).__name__} {_short(value)}".rstrip()


def _refuse_twice(path: Path, values: Sequence[str], what: str) -> None:
    seen: dict[str, int] = {}
    for position, value in enumerate(values):
        if value in seen and not (what == "token" and value == FASTAI_FILLER):
            raise ValueError(
                f"{path}: {what} {_short(value)} is there twice, at {seen[value]} and {position}; give the vocabulary "
                "that the model was saved with, or rename one of the two and save the list again"
            )
        seen[value] = position


def write_weights(path: Path | str, weights: Mapping[str, Tensor]) -> None:
    """Write tensors by name as `torch.save` does; keys that share a tensor share it in the file."""
    torch.save(dict(weights), path, pickle_protocol=PROTOCOL)


def write_vocabulary(path: Path | str, vocabulary: Vocabulary) -> None:
    """Write a list of tokens, or [tokens, labels], as a pickle of plain lists."""
    content = vocabulary.tokens if vocabulary.labels is None else [vocabulary.tokens, vocabulary.labels]
    with Path(path).open("wb") as file:
        pickle.dump(content, file, protocol=PROTOCOL)
