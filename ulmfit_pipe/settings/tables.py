"""How tables are read and how much of them is used."""

import dataclasses
from dataclasses import dataclass, field

from ulmfit_pipe.settings.choices import EmptyText


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How tables of text are read; each null is found out from the file.

    Attributes:
        text_column: Column of text; several are joined with field marks.
        encoding: Encoding of tables of text, such as cp1252, latin-1, utf-16 or gb18030; null finds UTF-8, UTF-16 and
            cp1252, and names what is not UTF-8.
        delimiter: What separates the fields of CSV-like tables: one character, or tab, comma, semicolon, pipe, space;
            null finds it, but for spaces.
        quote: Mark around the fields of CSV-like tables: double, single, or none where quotes belong to the text; null
            finds it, and refuses a table in which both readings make sense.
        no_header: The first row of CSV-like tables and Excel sheets is a row like the others; the columns are then
            named by number: --text_column 2 --label_column 1.
        skip_torn_end: Leave out the last record of a table that was cut short, instead of refusing the table.
    """

    text_column: list[str] = field(default_factory=lambda: ["text"])
    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    no_header: bool = False
    skip_torn_end: bool = False


@dataclass(frozen=True, kw_only=True)
class LabelledTables(TableOptions):
    """Which columns of labelled tables hold what, and how their cells are read.

    Attributes:
        label_column: Column of labels. Repeated, each column is a label of its own that holds 0 and 1 (multi-label).
        label_separator: Splits a label cell into several labels (multi-label).
        multi_label: The label column holds lists of labels.
        label_names: Names for the values of the label column: a JSON file {"0": "neg", "1": "pos"}, such a text
            itself, or a CSV file with a value and its name in each row; null takes the values as names.
        label_threshold: For several label columns of votes or shares: the number from which a label counts as given.
        min_rows_per_class: Leave classes with fewer labelled rows out of every table; the single row of a class is
            otherwise trained on and never measured.
        empty_text: error names the first labelled row without text; skip leaves such rows out and reports them.
    """

    label_column: list[str] = field(default_factory=lambda: ["label"])
    label_separator: str | None = None
    multi_label: bool = False
    label_names: str | None = None
    label_threshold: float | None = None
    min_rows_per_class: int = 1
    empty_text: EmptyText = "error"


@dataclass(frozen=True)
class RowLimits:
    """Use only this many rows of a table, chosen at random by the seed; null takes all.

    Attributes:
        train: Of the labelled rows, before the validation part is held out.
        test: Of the test table.
        unlabelled: Of the further texts.
    """

    train: int | None = None
    test: int | None = None
    unlabelled: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, count in dataclasses.asdict(self).items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more rows, or null for all, got {count!r}")
