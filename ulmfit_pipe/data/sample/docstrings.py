"""The embedded sample corpus: prose of the docstrings of installed libraries, labelled by library.

Every machine that can run this project carries some 100,000 paragraphs of technical English in the libraries beside
it. Given a paragraph in which the library's own names are masked, which library does it come from? The docstrings
are read from source files with `ast`, in several processes; no library is imported. What was read is kept in an
Arrow file per library, named after the library's version and these rules.
"""

import difflib
import gc
import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Value

from ulmfit_pipe.data.sample import docstring_text
from ulmfit_pipe.data.sample.docstring_text import (
    docstrings_of_source,
    mask_names,
    name_pattern,
    paragraphs_of_docstring,
)
from ulmfit_pipe.storage.atomic import whole_file

SKIPPED_FOLDERS = frozenset(
    "__pycache__ tests test testing site-packages dist-packages _vendor externals third_party "
    "array_api_compat array_api_extra idlelib lib2to3 ensurepip".split()
)  # tests, and copies of other libraries
SOURCE_BYTES_PER_TASK = 1_000_000  # a worker's portion, about a third of a second

TABLE_SCHEMA = pa.schema({"text": pa.string(), "source": pa.string(), "num_words": pa.int32(), "key": pa.int64()})


@dataclass(frozen=True)
class Library:
    """A library to read: where it is and what it calls itself.

    Attributes:
        package: Import name, which is also its folder; "" for the standard library.
        distribution: Name under which its version is registered; "" for the standard library.
        names: Masked wherever they are inside a word, in any case; see `name_pattern`.
        aliases: Masked as whole words only.
    """

    package: str
    distribution: str
    names: tuple[str, ...]
    aliases: tuple[str, ...] = ()


# Label -> library. All of these come with the project's own dependencies, or are skipped where they do not.
LIBRARIES: dict[str, Library] = {
    "stdlib": Library("", "", ("python", "stdlib", "standard library"), ("PEP",)),
    "numpy": Library("numpy", "numpy", ("numpy", "num py", "ndarray"), ("np",)),
    "pandas": Library("pandas", "pandas", ("pandas", "dataframe", "data frame"), ("pd",)),
    "scipy": Library("scipy", "scipy", ("scipy",), ("sp",)),
    "sklearn": Library("sklearn", "scikit-learn", ("scikit-learn", "scikit learn", "sklearn", "scikit")),
    "torch": Library("torch", "torch", ("torch", "inductor", "dynamo"), ("aten", "ATen", "c10", "c10d")),
    "sympy": Library("sympy", "sympy", ("sympy", "sympif")),
    "mpmath": Library("mpmath", "mpmath", ("mpmath",), ("mp", "mpf", "mpc", "mpi")),
    "networkx": Library("networkx", "networkx", ("networkx", "nxgraph", "nx_"), ("nx", "NX")),
    "matplotlib": Library("matplotlib", "matplotlib", ("matplotlib", "pyplot", "mpl_", "mplot"), ("plt", "mpl")),
    "transformers": Library("transformers", "transformers", ("transformers", "hugging face", "huggingface"), ("HF",)),
    "datasets": Library("datasets", "datasets", ("datasets", "hugging face", "huggingface"), ("HF",)),
    "huggingface_hub": Library(
        "huggingface_hub", "huggingface_hub", ("hugging face", "huggingface", "hf_"), ("hub", "Hub", "HF")
    ),
    "accelerate": Library("accelerate", "accelerate", ("accelerate", "accelerator"), ("HF",)),
    "setuptools": Library("setuptools", "setuptools", ("setuptools", "distutils", "setup.py")),
    "jinja2": Library("jinja2", "Jinja2", ("jinja",)),
    "fsspec": Library("fsspec", "fsspec", ("fsspec", "filesystem_spec"), ("fs",)),
    "joblib": Library("joblib", "joblib", ("joblib",)),
}


def available_libraries() -> list[str]:
    """Labels of the libraries that are installed here, in the order of `LIBRARIES`."""
    return [label for label in LIBRARIES if _root_folder(label) is not None]


def build_corpus(
    libraries: Sequence[str] | None = None,
    *,
    min_words: int = docstring_text.MIN_WORDS,
    cache_dir: Path | None = None,
    num_workers: int | None = None,
) -> Dataset:
    """Read the docstring paragraphs of some libraries.

    A paragraph that occurs again, but for case, digits and punctuation, is left out, also across libraries (the
    first one in order stays). The order is fixed: by library as given, by source file, by position in the file.

    Args:
        libraries: Labels from `available_libraries()`; None takes all of them.
        min_words: Leave out shorter paragraphs; below `MIN_WORDS` it changes nothing. Half of all paragraphs have
            15 words or fewer, a quarter 26 or more: longer ones are easier to classify.
        cache_dir: Folder of the Arrow files; None takes a folder inside the cache of `datasets`.
        num_workers: Processes that read source files; None takes one per usable core, 1 starts none.

    Returns:
        A table with `text` (string), `label` (ClassLabel over `libraries`) and `source` (string: the file, such
        as "scipy/linalg/_basic.py").

    Raises:
        ValueError: For a library that is unknown, not installed or given twice, an empty list, or no worker.
    """
    labels = available_libraries() if libraries is None else list(libraries)
    _check_labels(labels)
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers must be 1 or more, got {num_workers}; None takes one per core")
    folder = (
        Path(datasets.config.HF_DATASETS_CACHE) / "ulmfit_pipe_docstrings" if cache_dir is None else Path(cache_dir)
    )
    files = {label: folder / f"{_cache_name(label)}.arrow" for label in labels}
    tables = {label: _load_table(file) for label, file in files.items()}
    missing = [label for label, table in tables.items() if table is None]
    tables |= _read_libraries(missing, num_workers=num_workers or _usable_cores())
    for label in missing:
        _save_table(tables[label], files[label])
    return _join_tables([tables[label] for label in labels], labels, min_words=min_words)


def split_by_source(corpus: Dataset, *, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Set aside whole source files of each library, so that no docstring is on both sides.

    Args:
        corpus: A table with `label` and `source`.
        fraction: Share of each library's paragraphs to set aside, at least; whole files are taken at random until
            it is reached, and one file stays.
        seed: Fixes the choice.

    Returns:
        (what remains, what was set aside), both in the order of `corpus`.

    Raises:
        ValueError: If the fraction is not inside (0, 1), or a library has a single file.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction!r}; 0.2 sets a fifth aside")
    labels, sources = np.array(corpus["label"][:]), np.array(corpus["source"][:])
    aside = np.zeros(len(corpus), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        files, file_of_row, sizes = np.unique(sources[rows], return_inverse=True, return_counts=True)
        if len(files) < 2:
            raise ValueError(
                f"label {label} ({corpus.features['label'].int2str(int(label))}) has one source file, {files[0]}: "
                "it cannot be split by source; leave this library out"
            )
        order = np.random.default_rng([seed, int(label)]).permutation(len(files))
        taken = 1 + int(np.searchsorted(np.cumsum(sizes[order]), fraction * len(rows)))
        aside[rows] = np.isin(file_of_row, order[: min(taken, len(files) - 1)])
    return corpus.select(np.flatnonzero(~aside)), corpus.select(np.flatnonzero(aside))


def _check_labels(labels: list[str]) -> None:
    if not labels:
        raise ValueError(f"no library given; installed here: {', '.join(available_libraries())}")
    for label in labels:
        if label not in LIBRARIES:
            close = difflib.get_close_matches(label, LIBRARIES, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ValueError(f"unknown library {label!r}; {hint}installed here: {', '.join(available_libraries())}")
        if _root_folder(label) is None:
            raise ValueError(
                f"library {label!r} is not installed: pip install {LIBRARIES[label].distribution}, "
                f"or choose among {', '.join(available_libraries())}"
            )
        if labels.count(label) > 1:
            raise ValueError(f"library {label!r} is given twice in {labels}")


def _root_folder(label: str) -> Path | None:
    """The folder that holds the library's source, found without importing it; None if it is not installed."""
    package = LIBRARIES[label].package
    if not package:
        return Path(os.__file__).parent
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _source_files(label: str) -> list[tuple[str, Path]]:
    """(source, path) of every Python file to read, in a fixed order; source begins with the library's label."""
    root = _root_folder(label)
    if root is None:
        return []
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        files += [Path(folder) / name for name in names if name.endswith(".py")]
    return sorted((f"{label}/{path.relative_to(root).as_posix()}", path) for path in files)


@cache
def _rules_hash() -> str:
    """Return a digest of the code that reads and cleans, so that no stale file is taken from the cache."""
    rules = b"".join(Path(file).read_bytes() for file in (__file__, docstring_text.__file__))
    return hashlib.sha256(rules).hexdigest()[:12]


def _cache_name(label: str) -> str:
    distribution = LIBRARIES[label].distribution
    version = importlib.metadata.version(distribution) if distribution else platform.python_version()
    return f"{label}-{version}-{_rules_hash()}"


def _load_table(file: Path) -> pa.Table | None:
    """A library's table from the cache; None if it is not there or cut short."""
    try:
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_file(source).read_all()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _save_table(table: pa.Table, file: Path) -> None:
    """Write a library's table atomically."""
    with whole_file(file) as unfinished, pa.OSFile(str(unfinished), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def _read_libraries(labels: list[str], *, num_workers: int) -> dict[str, pa.Table]:
    """Read libraries from source: one table of `TABLE_SCHEMA` per label."""
    tasks = [(label, files) for label in labels for files in _portions(label)]
    if num_workers == 1 or len(tasks) < 2:
        results = [_read_files(*task) for task in tasks]
    else:  # fork where there is one: its workers do not run the caller's script again
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=gc.disable) as pool:
            results = list(pool.map(_read_files, *zip(*tasks, strict=True)))
    rows: dict[str, list[tuple[str, str, int, int]]] = {label: [] for label in labels}
    for (label, _), found in zip(tasks, results, strict=True):
        rows[label] += found
    return {label: _table_of_rows(rows[label]) for label in labels}


def _table_of_rows(rows: list[tuple[str, str, int, int]]) -> pa.Table:
    columns = [[row[i] for row in rows] for i in range(len(TABLE_SCHEMA))]
    return pa.table(columns, schema=TABLE_SCHEMA)


def _portions(label: str) -> list[list[tuple[str, Path]]]:
    """A library's files in portions of about `SOURCE_BYTES_PER_TASK`."""
    portions: list[list[tuple[str, Path]]] = []
    size = SOURCE_BYTES_PER_TASK
    for source, path in _source_files(label):
        if size >= SOURCE_BYTES_PER_TASK:
            portions.append([])
            size = 0
        portions[-1].append((source, path))
        size += path.stat().st_size
    return portions


def _read_files(label: str, files: list[tuple[str, Path]]) -> list[tuple[str, str, int, int]]:
    """The masked paragraphs of some files of a library, as rows of `TABLE_SCHEMA`."""
    pattern = name_pattern(LIBRARIES[label].names, LIBRARIES[label].aliases)
    rows = []
    for source, path in files:
        for docstring in docstrings_of_source(path.read_text(encoding="utf-8", errors="replace")):
            for paragraph in paragraphs_of_docstring(docstring):
                text = mask_names(paragraph, pattern)
                rows.append((text, source, len(text.split()), _letters_key(text)))
    return rows


def _letters_key(text: str) -> int:
    """Return a 64-bit hash of a text's letters: equal for texts that differ in case, digits and punctuation only."""
    letters = "".join(character for character in text.casefold() if character.isalpha())
    return int.from_bytes(hashlib.blake2b(letters.encode(), digest_size=8).digest(), "little", signed=True)


def _join_tables(tables: list[pa.Table], labels: list[str], *, min_words: int) -> Dataset:
    """One table with labels, repeated and short paragraphs left out."""
    table = pa.concat_tables(tables)
    _, first_rows = np.unique(table["key"].to_numpy(), return_index=True)
    is_kept = np.zeros(len(table), dtype=bool)
    is_kept[first_rows] = True
    is_kept &= table["num_words"].to_numpy() >= min_words
    label_of_row = np.repeat(np.arange(len(tables)), [len(one) for one in tables])
    columns = {"text": table["text"], "label": pa.array(label_of_row), "source": table["source"]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=labels), "source": Value("string")})
    recipe = "|".join([*map(_cache_name, labels), str(min_words)])
    return Dataset(
        pa.table(columns).filter(pa.array(is_kept)).combine_chunks(),
        info=DatasetInfo(features=features),
        fingerprint=hashlib.sha256(recipe.encode()).hexdigest()[:16],  # the same corpus is cached once downstream
    )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
