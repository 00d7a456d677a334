"""The rows of an update: the new ones, and the old ones that the classifier was trained on, read again.

Where old rows came from is in ``settings.yaml`` beside the classifier, and what they were in the fingerprint of its
``stage.json``: rows that have changed since are not taken for them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from ulmfit_pipe.data.labels import BOOLS, INTEGERS, can_be, clean_label, label_type_of, list_labels
from ulmfit_pipe.data.splits import labels_of_rows
from ulmfit_pipe.data.tables.row_sources import IN_MEMORY, reading_of
from ulmfit_pipe.data.tables.tables import FileFacts, TableError
from ulmfit_pipe.settings.parsing import load_settings
from ulmfit_pipe.settings.tables import LabelledTables, RowLimits
from ulmfit_pipe.settings.text_runs import ClassifierJob, PipelineSettings, UpdateSettings
from ulmfit_pipe.stages.artifacts import ResolvedModel, find_model, read_stage
from ulmfit_pipe.stages.classifier_labels import labels_of
from ulmfit_pipe.stages.config_notes import label_type_in
from ulmfit_pipe.stages.report import SETTINGS_FILE
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.text.scores.repeated_runs import fold_of
from ulmfit_pipe.text.tables import (
    RunTables,
    TableLoader,
    columns_of,
    hold_out,
    label_names_of,
    load_run_tables,
    loading_options,
    with_labels,
)

TYPES = {None: "text", INTEGERS: "integers", BOOLS: "true and false"}
RENAME = "write the new ones alike, or name them with label_names"
Say = Callable[[str], None]


@dataclass(frozen=True)
class LabelSet:
    """Labels in the order of their ids.

    Attributes:
        names: Their names.
        several: Whether a text may have several.
        kind: The type that they were given in, as in `data.labels`.
    """

    names: list[str]
    several: bool
    kind: str | None

    def features(self) -> Features:
        """Return the columns of a table with these labels."""
        label: Any = ClassLabel(names=self.names, id=self.kind)
        return Features({"text": Value("string"), "label": List(label) if self.several else label})


@dataclass(frozen=True)
class UpdateRows:
    """What an update trains and measures on; all tables have the old labels and then the new ones.

    Attributes:
        tables: Old and new rows to train on, rows held out from both, and the test table.
        new: The new rows that are held out, or None.
        labels: The labels.
        old_labels: How many of them the classifier had before.
        old_rows: Old rows to train on.
        files: What reading each table's files has shown.
        replayed: Where the old rows are from, or why there are none.
    """

    tables: RunTables
    new: Dataset | None
    labels: LabelSet
    old_labels: int
    old_rows: int
    files: dict[str, list[FileFacts]]
    replayed: str


def load_update_rows(
    settings: UpdateSettings, model: ResolvedModel, *, in_memory: Mapping[str, Any], say: Say
) -> UpdateRows:
    """Read the new rows and the old ones, and give both the labels of both.

    Args:
        settings: Settings of the update.
        model: The classifier.
        in_memory: Tables that are no files, by the names of the settings that they replace.
        say: Receives log lines.

    Raises:
        TableError: A table cannot be used, its labels are of another type, a new class has no row, or no row is new.
    """
    known = labels_of_classifier(model)
    given = {name: in_memory.get(name, getattr(settings, name)) for name in _TABLES}
    loader = _loader(settings, say)
    new = loader.labelled("training", given["train_file"])
    new = _without_rare(new, known, settings.min_rows_per_class, say)
    labels = _with_new(known, new, model)
    new = _relabelled(new, labels)
    _check_new_classes(new, labels, old=len(known.names))
    loader.names = labels.names
    held = None if given["validation_file"] is None else loader.labelled("validation", given["validation_file"])
    test = None if given["test_file"] is None else loader.labelled("test", given["test_file"])
    old, replayed = _old_rows(settings, model, known, given["replay_file"], say)
    parts = [] if old is None else [_relabelled(part, labels) for part in (old.train, old.validation) if part]
    new = _without_known_rows(new, parts, say)
    if held is None:
        new, held = hold_out(new, settings.validation_fraction, seed=settings.seed, say=say)
    held = None if held is None else _relabelled(held, labels)
    train = concatenate_datasets([*parts[:1], new])
    measured = [*parts[1:], *([] if held is None else [held])]
    tables = RunTables(
        train,
        concatenate_datasets(measured) if measured else None,
        None if test is None else _relabelled(test, labels),
        None,
    )
    counts = {"old_labels": len(known.names), "old_rows": len(train) - len(new)}
    return UpdateRows(tables, held, labels, files=loader.files, replayed=replayed, **counts)


_TABLES = ("train_file", "validation_file", "test_file", "replay_file")


def labels_of_classifier(model: ResolvedModel) -> LabelSet:
    """Return a saved classifier's labels."""
    names, several = labels_of(model, model.loaded)
    kind = label_type_in(model.loaded)
    return LabelSet(names, several, kind if can_be(names, kind) else None)


def _loader(settings: LabelledTables, say: Say) -> TableLoader:
    columns = LabelledTables(**columns_of(settings))
    how = {"reading": reading_of(columns), "say": say}
    return TableLoader(loading_options(columns), RowLimits(), 0, how=how)


def _without_rare(new: Dataset, known: LabelSet, least: int, say: Say) -> Dataset:
    """Leave out new classes with fewer rows than `least`.

    Raises:
        TableError: There is nothing else in the table.
    """
    names, counts = label_names_of(new)[0], Counter(label for row in labels_of_rows(new) for label in row)
    old = {clean_label(name) for name in known.names}
    kept = [number for number, name in enumerate(names) if clean_label(name) in old or counts[number] >= least]
    rare = [f"{name} ({counts[number]:,})" for number, name in enumerate(names) if number not in kept]
    if least <= 1 or not rare:
        return new
    if not kept:
        raise TableError(f"min_rows_per_class {least:,} leaves no class of the new table; take a lower one")
    say(f"left out new classes with fewer than {least:,} rows (min_rows_per_class): {list_labels(rare)}")
    return with_labels(new, kept)


def _with_new(known: LabelSet, table: Dataset, model: ResolvedModel) -> LabelSet:
    """Return a classifier's labels with those of a table that it does not have behind them.

    Raises:
        TableError: The table's labels are of another type, or as many of them are given to a text.
    """
    names, several = label_names_of(table)
    if several != known.several:
        one, other = ("several labels", "one") if known.several else ("one label", "several")
        raise TableError(
            f"{model} gives a text {one}, the new table {other}; give the new rows as the classifier was trained "
            "(multi_label, label_separator, or several label_column)"
        )
    kind, clean = label_type_of(table.features["label"]), {clean_label(name) for name in known.names}
    if kind != known.kind and not (can_be(names, known.kind) and can_be(known.names, kind)):
        raise TableError(
            f"the labels of the new table are {TYPES[kind]} ({list_labels(names)}), those of {model} are "
            f"{TYPES[known.kind]} ({list_labels(known.names)}); {RENAME}"
        )
    return replace(known, names=[*known.names, *(name for name in names if clean_label(name) not in clean)])


def _relabelled(table: Dataset, labels: LabelSet) -> Dataset:
    """Return a table with its labels numbered as in a larger set of them."""
    numbers = {clean_label(name): number for number, name in enumerate(labels.names)}
    turned = [numbers[clean_label(name)] for name in label_names_of(table)[0]]
    rows: list[Any] = [[turned[label] for label in row] for row in labels_of_rows(table)]
    found = [sorted(row) for row in rows] if labels.several else [row[0] for row in rows]
    return Dataset.from_dict({"text": table["text"][:], "label": found}, features=labels.features())


def _check_new_classes(new: Dataset, labels: LabelSet, *, old: int) -> None:
    seen = {label for row in labels_of_rows(new) for label in row}
    without = [name for number, name in enumerate(labels.names) if number >= old and number not in seen]
    if without:
        raise TableError(
            f"the new table has no row of the class {list_labels(without)}, which the classifier does not have either; "
            "add rows of it, or leave its column or name out"
        )


def _without_known_rows(new: Dataset, old: Sequence[Dataset], say: Say) -> Dataset:
    """Leave out rows that are among the old ones, text and label.

    Raises:
        TableError: There are no others.
    """
    known = {(row["text"], str(row["label"])) for table in old for row in table}
    kept = [number for number, row in enumerate(new) if (row["text"], str(row["label"])) not in known]
    if not kept:
        raise TableError(
            f"all {len(new):,} rows of the new table are among the old rows, text and label; there is nothing to "
            "update with: give rows that the classifier has not seen"
        )
    if len(kept) < len(new):
        say(f"left out {len(new) - len(kept):,} of {len(new):,} new rows that are among the old ones, text and label")
    return new.select(kept)


# Old rows


def _old_rows(
    settings: UpdateSettings, model: ResolvedModel, known: LabelSet, given: Any, say: Say
) -> tuple[RunTables | None, str]:
    """Return the old rows to train on and to measure, or None; and where they are from, or why there are none."""
    if settings.replay == "none":
        return None, "replay none"
    if given is not None:
        loader = _loader(settings, say)
        loader.names = known.names
        return RunTables(loader.labelled("training", given), None, None, None), "replay_file"
    try:
        return remembered_rows(Path(model.location), known), "the tables of the classifier's run"
    except (TableError, ValueError, OSError) as error:
        return None, str(error)


def remembered_rows(folder: Path, known: LabelSet) -> RunTables:
    """Read the rows again that a classifier was trained on.

    Args:
        folder: The classifier's folder.
        known: Its labels.

    Raises:
        TableError: It is not known where they are, they cannot be read, or they have changed.
        ValueError: The same, for a setting.
    """
    before, record = remembered_settings(folder), read_stage(folder) or {}
    files = getattr(before, "train_file", None) or []
    if any(name.startswith(IN_MEMORY) for name in files):
        raise TableError("the classifier was trained on a table in memory")
    found = _rows_of(before)
    names = label_names_of(found.train)[0]
    columns = [table[name] for table in (found.train, found.validation) if table for name in ("text", "label")]
    if names != known.names or digest_of(*columns, names) != record.get("identity", {}).get("data"):
        raise TableError(f"{', '.join(files)} no longer hold the rows that the classifier was trained on")
    return found


def remembered_settings(folder: Path) -> Any:
    """Return the settings that a classifier was trained with.

    Args:
        folder: The classifier's folder.

    Raises:
        TableError: They are not beside it.
        ValueError: They are not settings of this version.
    """
    places = [place / SETTINGS_FILE for place in (folder, folder.parent) if (place / SETTINGS_FILE).is_file()]
    if read_stage(folder) is None or not places:
        raise TableError(f"{folder} does not tell where its training rows are")
    return load_settings(_kind_of_settings(places[0]), places[0])


def _kind_of_settings(path: Path) -> type[Any]:
    """Return the class of the settings in a file, by their names."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TableError(f"{path} is not YAML") from error
    names = set(found) if isinstance(found, dict) else set()
    if "replay" in names:
        return UpdateSettings
    return PipelineSettings if "language_model" in names else ClassifierJob


def _rows_of(settings: Any) -> RunTables:
    """Return the rows that a run with these settings trains on and holds out."""
    if isinstance(settings, UpdateSettings):
        return load_update_rows(settings, find_model(settings.model), in_memory={}, say=_silent).tables
    is_fold = getattr(settings, "folds", None) is not None
    tables = load_run_tables(
        settings.train_file,
        validation_file=settings.validation_file,
        validation_fraction=0.0 if is_fold else settings.validation_fraction,
        seed=settings.seed,
        max_rows=getattr(settings, "max_rows", None),
        say=_silent,
        **columns_of(settings),
    )
    return fold_of(tables, settings, say=_silent) if is_fold else tables


def _silent(_line: str) -> None:
    """Leave out what was reported when the rows were trained on."""
