"""A short account of a run's tables before anything is trained: what they hold, and what may be wrong with them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from ulmfit_pipe.data.labels import find_lookalikes, is_quoted, list_labels, mixes_scripts, parse_list, shown_label
from ulmfit_pipe.data.splits import labels_of_rows
from ulmfit_pipe.data.tables.tables import FileFacts
from ulmfit_pipe.data.text.text_facts import TextFacts, count_repeats, count_shared, find_conflicts, look_at_texts

LIKELY_SEPARATORS = "|;,/+"  # what people put between the labels of one cell
SHOWN_FILES = 6
SHOWN_LABELS = 12  # labels listed in a line
SHOWN_GROUPS = 4  # groups of labels that look alike, listed in a line
SHOWN_TEXT = 60  # characters of a text that is named
MISSING_LABELS = set("nan none null na n/a n.a. <na> nat #n/a undefined missing - -- ? . ...".split())  # small letters

Say = Callable[[str], None]


def tell_of_tables(
    tables: Mapping[str, Dataset],
    files: Mapping[str, Sequence[FileFacts]],
    *,
    names: Sequence[str],
    several: bool,
    say: Say,
    known: int = 0,
) -> None:
    """Report what a run's tables hold and what looks wrong.

    Args:
        tables: The tables by their names in words, after the split.
        files: What reading each table's files has shown, by the table's name in words.
        names: The label names.
        several: A row may have several labels.
        say: Receives the lines.
        known: How many labels, the first ones, the model has learned before.
    """
    say(f"files: {_describe_files(files)}")
    facts = {name: look_at_texts(table) for name, table in tables.items()}
    labels = {name: labels_of_rows(table) for name, table in tables.items() if "label" in table.column_names}
    counts = {name: Counter(label for row in rows for label in row) for name, rows in labels.items()}
    say(f"training labels: {_describe_counts(counts['training'], names)}")
    for name, found in facts.items():
        if len(found):
            say(f"{name} texts: {found.describe()}")
    _tell_of_texts(facts, files, say)
    parts = [name for name in ("training", "validation") if name in tables]
    _tell_of_conflicts([tables[name] for name in parts], [facts[name] for name in parts], labels, names, say)
    _tell_of_shared(facts, say)
    totals = sum((counts[name] for name in counts if name != "test"), Counter[int]())
    _tell_of_unmeasured(counts, totals, names, say, known=known)
    _tell_of_lookalikes(totals, names, say)
    _tell_of_odd_labels(totals, names, several, say)


def tell_of_texts(train: Dataset, validation: Dataset, *, say: Say) -> None:
    """Report what the texts of a language model are like."""
    for name, table in (("training", train), ("validation", validation)):
        facts = look_at_texts(table)
        say(f"{name} texts: {len(facts):,}; {facts.describe()}")
        _tell_of_texts({name: facts}, {}, say)


def _describe_files(files: Mapping[str, Sequence[FileFacts]]) -> str:
    found = [
        f"{shown_label(Path(file.name).name)} ({file.rows:,} {name} rows)"
        for name, read in files.items()
        for file in read
    ]
    more = f" and {len(found) - SHOWN_FILES:,} more" if len(found) > SHOWN_FILES else ""
    return ", ".join(found[:SHOWN_FILES]) + more


def _describe_counts(counts: Counter[int], names: Sequence[str]) -> str:
    ranked = sorted(range(len(names)), key=lambda number: -counts[number])
    shown = ranked if len(names) <= SHOWN_LABELS else ranked[: SHOWN_LABELS - 1]
    listed = ", ".join(f"{shown_label(names[number])} {counts[number]:,}" for number in shown)
    if len(shown) == len(names):
        return listed
    return f"{listed}, and {len(names) - len(shown):,} more, down to {counts[ranked[-1]]:,}"


def _tell_of_texts(facts: Mapping[str, TextFacts], files: Mapping[str, Sequence[FileFacts]], say: Say) -> None:
    for name, read in files.items():
        for file in read:
            if file.blank:
                say(f"note: {file.blank:,} rows of {file.name} have no text and are left out")
            if file.numbers:
                say(
                    f"note: {file.numbers:,} of {file.rows:,} {name} texts of {file.name} are numbers and are taken as "
                    "their text; is it the right column? text_column names the column of text"
                )
    for name, found in facts.items():
        exact, alike = count_repeats(found)
        if exact or alike:
            say(
                f"note: {exact + alike:,} of {len(found):,} {name} texts repeat an earlier one, {exact:,} word for "
                f"word and {alike:,} apart from capitals and spaces"
            )
        if found.missing:
            listed = ", ".join(f"{word!r} {count:,}" for word, count in found.missing.most_common(SHOWN_GROUPS))
            say(
                f"note: {found.missing.total():,} of {len(found):,} {name} texts are only a word for a missing value "
                f"({listed}); if they are missing, empty these cells and set empty_text to skip"
            )


def _tell_of_conflicts(
    tables: Sequence[Dataset],
    facts: Sequence[TextFacts],
    labels: Mapping[str, Sequence[Sequence[int]]],
    names: Sequence[str],
    say: Say,
) -> None:
    """Report texts that are in training and validation rows with different labels."""
    rows = [row for name in ("training", "validation") for row in labels.get(name, [])]
    found = find_conflicts(facts[0] + facts[1] if len(facts) > 1 else facts[0], rows)
    if not found:
        return
    one, other = found[0]
    text = tables[0][one]["text"] if one < len(tables[0]) else tables[1][one - len(tables[0])]["text"]
    given = " and ".join(repr(_listed(names, rows[row])) if rows[row] else "no label" for row in (one, other))
    say(
        f"note: {len(found):,} labelled texts are in several rows with different labels, such as "
        f"{text[:SHOWN_TEXT]!r} with {given}; at most one of them can be right, correct the others"
    )


def _listed(names: Sequence[str], numbers: Sequence[int]) -> str:
    return list_labels([names[number] for number in numbers], SHOWN_LABELS)


def _tell_of_shared(facts: Mapping[str, TextFacts], say: Say) -> None:
    for name in ("validation", "test"):
        if name not in facts:
            continue
        exact, alike = count_shared(facts[name], facts["training"])
        if exact:
            say(
                f"note: {exact:,} of {len(facts[name]):,} {name} texts are also in the training table, word for "
                f"word; the {name} metrics are flattered by as much"
            )
        if alike:
            say(
                f"note: {alike:,} {'more ' if exact else ''}of {len(facts[name]):,} {name} texts are also in the "
                f"training table, apart from capitals and spaces; the {name} metrics are flattered by as much"
            )


def _tell_of_unmeasured(
    counts: Mapping[str, Counter[int]], totals: Counter[int], names: Sequence[str], say: Say, *, known: int
) -> None:
    """Report the classes that a table has no rows of."""
    untrained = [number for number in range(known, len(names)) if not counts["training"][number]]
    if untrained:
        say(
            f"note: there are no training rows of {_listed(names, untrained)}; the classifier will not know when to "
            "give such a label"
        )
    for name in ("validation", "test"):
        if name not in counts:
            continue
        missing = [number for number in range(len(names)) if not counts[name][number]]
        if missing:
            listed = list_labels([f"{names[number]} ({totals[number]:,})" for number in missing], SHOWN_LABELS)
            advice = "; min_rows_per_class leaves rare classes out" if name == "validation" else ""
            say(
                f"note: there are no {name} rows of {listed}, with labelled rows in brackets; nothing is measured on "
                f"{'it' if len(missing) == 1 else 'them'}{advice}"
            )


def _tell_of_lookalikes(counts: Counter[int], names: Sequence[str], say: Say) -> None:
    numbers = {name: number for number, name in enumerate(names)}
    groups = find_lookalikes(names)
    if not groups:
        return
    shown = [
        " and ".join(f"{name[:SHOWN_TEXT]!r} ({counts[numbers[name]]:,})" for name in group[:SHOWN_GROUPS])
        for group in groups[:SHOWN_GROUPS]
    ]
    more = f"; and {len(groups) - SHOWN_GROUPS:,} more groups" if len(groups) > SHOWN_GROUPS else ""
    say(
        f"note: labels that look alike are classes of their own, with labelled rows in brackets: {'; '.join(shown)}"
        f"{more}; write them alike if they mean the same, or give label_names"
    )


def _tell_of_odd_labels(counts: Counter[int], names: Sequence[str], several: bool, say: Say) -> None:
    """Report suspicious labels: in quotes, words for a missing value, lists, several joined in one cell."""
    kinds = {
        "are in quotes, which are a part of them; take the quotes out if they are not meant": is_quoted,
        "are words for a missing value; delete these rows if their labels are missing": _means_missing,
        "mix letters of two scripts in one word; type them anew if that is not meant": mixes_scripts,
    }
    if not several:
        kinds["are written like lists; set multi_label if a text may have several labels"] = _is_list_text
    for what, holds in kinds.items():
        found = [f"{name} ({counts[number]:,})" for number, name in enumerate(names) if holds(name)]
        if found:
            say(f"note: the labels {list_labels(found, SHOWN_LABELS)} {what}")
    _tell_of_joined_labels(names, several, say)


def _means_missing(name: str) -> bool:
    return name.casefold() in MISSING_LABELS


def _is_list_text(name: str) -> bool:
    return parse_list(name) is not None


def _tell_of_joined_labels(names: Sequence[str], several: bool, say: Say) -> None:
    """Log a note where labels look like several in one cell: each part of ``a|b`` is itself a label of the table."""
    known = set(names)
    for separator in LIKELY_SEPARATORS if not several else "":
        for name in names:
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and all(part in known for part in parts):
                shown = " and ".join(repr(shown_label(part)) for part in parts[:SHOWN_GROUPS])
                say(
                    f"note: the label {shown_label(name)!r} counts as one label beside {shown}; if it "
                    f"means several, set label_separator to {separator!r}"
                )
                return
