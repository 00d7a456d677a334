"""Tables in memory are read as files are: the same rows, the same labels, the same refusals by row and column."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from ulmfit_pipe.data.labels import label_type_of, typed_label
from ulmfit_pipe.data.tables.memory_tables import CHUNK_ROWS, listed, open_memory_columns, open_memory_table
from ulmfit_pipe.data.tables.tables import FileFacts, TableError, load_table

TEXTS = ["a cold soup", "a warm soup", "an old soup", "a new soup"]


class Stream:
    """A table of another library: nothing but Arrow's PyCapsule method."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Interchange:
    """A table of another library: nothing but the interchange protocol's method."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        return pa.Table.from_pandas(self.frame).__dataframe__(allow_copy=allow_copy)


def in_every_form(columns):
    """Return the same table as each library has it."""
    frame = pd.DataFrame(columns)
    arrow = pa.table({name: list(values) for name, values in columns.items()})
    return {
        "DataFrame": frame,
        "shuffled index": frame.set_axis([3, 3, "x", None][: len(frame)]),
        "object": frame.astype(object),
        "Arrow dtypes": frame.convert_dtypes(dtype_backend="pyarrow"),
        "nullable": frame.convert_dtypes(),
        "Table": arrow,
        "reader": arrow.to_reader(),
        "stream": Stream(arrow),
        "interchange": Interchange(frame),
        "Dataset": Dataset(arrow),
        "shuffled Dataset": Dataset(pa.concat_tables([arrow, arrow])).select([4, 1, 6, 3][: len(frame)]),
    }


def rows_of(table):
    """Return the rows of a loaded table, labels as they were given."""
    feature = table.features["label"]
    inner, kind = getattr(feature, "feature", feature), label_type_of(feature)

    def label(numbers):
        if isinstance(numbers, list):
            return [typed_label(inner.int2str(number), kind) for number in numbers]
        return typed_label(inner.int2str(numbers), kind)

    return [(row["text"], label(row["label"])) for row in table]


@pytest.mark.parametrize("labels", [[1, 0, 1, 10], [True, False, True, True], ["b", "a", "b ", "\u0065\u0301"]])
def test_every_form_of_a_table_gives_the_rows_and_labels_that_it_holds(labels):
    expected = ["b", "a", "b", "\u00e9"] if isinstance(labels[0], str) else labels
    for name, source in in_every_form({"text": TEXTS, "other": [1.5, 2, 3, 4], "label": labels}).items():
        found = rows_of(load_table(source))
        assert found == list(zip(TEXTS, expected, strict=True)), name
        assert {type(label) for _, label in found} == {type(labels[0])}, name


def test_a_polars_frame_is_read_as_any_other():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"text": TEXTS, "label": [1, 0, 1, 1]}).with_columns(
        polars.col("text").cast(polars.String)
    )
    assert rows_of(load_table(frame)) == list(zip(TEXTS, [1, 0, 1, 1], strict=True))


def test_categories_are_their_values_and_an_unused_one_is_no_class():
    labels = pd.Categorical(["b", "a", "b", "a"], categories=["z", "b", "a"], ordered=True)
    frame = pd.DataFrame({"text": pd.Categorical(TEXTS), "label": labels})
    table = load_table(frame)
    assert rows_of(table) == list(zip(TEXTS, labels, strict=True))
    assert table.features["label"].names == ["a", "b"]


def test_class_labels_of_a_dataset_are_names_and_of_a_loaded_table_what_they_were(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    assert rows_of(load_table(Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0]}, features=features))) == list(
        zip(TEXTS, ["pos", "neg", "pos", "neg"], strict=True)
    )
    for labels in ([3, 1, 3, 1], [True, False, False, True], [[1, 2], [2], [], [1]]):
        several = {"multi_label": isinstance(labels[0], list)}
        loaded = load_table(pd.DataFrame({"text": TEXTS, "label": labels}), **several)
        loaded.save_to_disk(tmp_path / repr(labels))
        for again in (loaded, Dataset.load_from_disk(tmp_path / repr(labels))):
            assert rows_of(load_table(again, **several)) == list(zip(TEXTS, labels, strict=True))


def test_class_numbers_whose_names_are_no_numbers_stay_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"], id="int")})
    table = load_table(Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0]}, features=features))
    assert [label for _, label in rows_of(table)] == ["pos", "neg", "pos", "neg"]


def test_an_unknown_class_of_a_dataset_is_a_missing_label():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    unknown = Dataset.from_dict({"text": TEXTS, "label": [1, 0, -1, 0]}, features=features)
    with pytest.raises(TableError, match=r"the table, row 2 \(counted from 0\), column 'label': there is no label"):
        load_table(unknown)


MISSING = {
    "None": pd.Series(["b", "a", None, "a"], dtype=object),
    "NaN": pd.Series(["b", "a", np.nan, "a"], dtype=object),
    "NaT": pd.Series(["b", "a", pd.NaT, "a"], dtype=object),
    "NA": pd.Series([1, 0, pd.NA, 0], dtype="Int64"),
    "boolean NA": pd.Series([True, False, pd.NA, False], dtype="boolean"),
    "a float for an integer": pd.Series([1, 0, np.nan, 0], dtype=object),
    "str": pd.Series(["b", "a", None, "a"], dtype="str"),
    "Arrow": pd.Series(["b", "a", None, "a"], dtype=pd.ArrowDtype(pa.string())),
    "category": pd.Series(["b", "a", None, "a"], dtype="category"),
}


@pytest.mark.parametrize("labels", MISSING.values(), ids=MISSING)
def test_a_missing_label_is_refused_by_its_position(labels):
    frame = pd.DataFrame({"text": TEXTS, "label": labels}).set_axis([5, 6, 7, 8])
    with pytest.raises(
        TableError, match=r"^the table, row 2 \(counted from 0\), column 'label': there is no label; fill"
    ):
        load_table(frame)


@pytest.mark.parametrize("texts", MISSING.values(), ids=MISSING)
def test_a_missing_text_is_refused_by_its_position_or_passed_over(texts):
    frame = pd.DataFrame({"text": texts, "label": [1, 2, 1, 2]})
    with pytest.raises(
        TableError, match=r"^the table, row 2 \(counted from 0\), column 'text': the text is (None|empty or)"
    ):
        load_table(frame)
    facts: list[FileFacts] = []
    assert len(load_table(frame, skip_blank=True, facts=facts)) == 3
    assert [(each.name, each.rows, each.blank) for each in facts] == [("the table", 3, 1)]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (
            "label",
            1.0,
            "the label is the decimal number 1.0; labels must be names or integers. Convert the column first",
        ),
        ("label", datetime.date(2026, 1, 1), "the label must be a name or an integer, got date"),
        ("label", pd.Timestamp("2026"), "the label must be a name or an integer, got Timestamp"),
        ("label", ["a", "b"], "the label is a list, ['a', 'b']; set multi_label=True"),
        ("label", "", "the label is empty or only spaces"),
        ("label", True, "the label is True, but labels mix whole numbers with true and false"),
        ("text", b"abc", "the text must be a string, got bytes b'abc'"),
        ("text", ["a"], "the text must be a string, got list"),
        ("text", "a\0b", "the text holds a NUL byte at character 1"),
        ("text", "a\ud800b", "character 1 of the text is half of a surrogate pair"),
        ("text", " \u200b", "the text is empty or only spaces"),
    ],
)
def test_a_cell_that_cannot_be_used_is_refused_by_position_and_column(column, value, words):
    columns = {"text": list(TEXTS), "label": [1, 0, 1, 0]}
    columns[column][2] = value
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    with pytest.raises(TableError) as refused:
        load_table(frame)
    assert str(refused.value).startswith(f"the table, row 2 (counted from 0), column {column!r}: {words}")


def test_numbers_as_texts_count_as_their_text():
    facts: list[FileFacts] = []
    table = load_table(pd.DataFrame({"text": [1, 2], "label": ["a", "b"]}), facts=facts)
    assert (table["text"][:], facts[0].numbers) == (["1", "2"], 2)
    assert load_table(pa.table({"text": [decimal.Decimal("1.50")]}), label_column=None)["text"][:] == ["1.50"]


def test_lists_of_labels_are_several_labels():
    labels = [["b", "a"], [], ["a"], ["b"]]
    several = {"multi_label": True}
    expected = list(zip(TEXTS, [["a", "b"], [], ["a"], ["b"]], strict=True))
    arrays = pd.DataFrame({"text": TEXTS, "label": [np.array(each, dtype=object) for each in labels]})
    for source in (*in_every_form({"text": TEXTS, "label": labels}).values(), arrays):
        if not isinstance(source, Interchange):  # which has no lists
            assert rows_of(load_table(source, **several)) == expected
    sets = pd.DataFrame({"text": TEXTS, "label": [{"b", "a"}, set(), ("a",), "['b']"]})
    assert rows_of(load_table(sets, **several)) == expected
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["b", "a"]))})
    numbers = Dataset.from_dict({"text": TEXTS, "label": [[0, 1], [], [1], [0]]}, features=features)
    assert rows_of(load_table(numbers, **several)) == expected


def test_several_columns_of_labels_are_one_label_each():
    columns = {"text": TEXTS, "toxic": [0, 1, 0, 1], "long": [True, True, False, False]}
    expected = [["long"], ["long", "toxic"], [], ["toxic"]]
    for name, source in in_every_form(columns).items():
        table = load_table(source, label_column=["toxic", "long"])
        names = table.features["label"].feature.names
        assert [sorted(names[number] for number in row) for row in table["label"]] == expected, name


def test_several_columns_of_text_are_fields():
    frame = pd.DataFrame({"title": ["Soup", None], "text": ["cold", "warm"], "label": ["a", "b"]})
    assert load_table(frame, text_columns=("title", "text"))["text"][:] == [
        "xxfld 1 Soup xxfld 2 cold",
        "xxfld 1  xxfld 2 warm",
    ]


def test_a_column_that_is_not_there_is_named_with_the_argument_to_write():
    frame = pd.DataFrame({"review": TEXTS, "label": [1, 0, 1, 0], "toxic": [0, 1, 0, 1]})
    with pytest.raises(
        TableError, match="^the table: there is no column 'text'; there are review, label, toxic; text_col"
    ):
        load_table(frame)
    with pytest.raises(TableError, match=r"give them all: label_column=\['label', 'toxic'\]"):
        load_table(frame, text_columns="review", label_column="labels!")
    with pytest.raises(
        TableError, match="there is no column 'lable'; there are .* label_column= names the column of la"
    ):
        load_table(frame[["review", "label"]], text_columns="review", label_column="lable")


def test_columns_of_one_name_are_refused_where_they_are_wanted_and_numbers_are_names():
    frame = pd.DataFrame([["a cold soup", 1, 2]], columns=["text", "label", "label"])
    arrow = pa.table([["a cold soup"], [1], [2]], names=["text", "label", "label"])
    for source in (frame, arrow):
        with pytest.raises(TableError, match="the column name 'label' is there twice; rename one"):
            load_table(source)
        assert len(load_table(source, label_column=None)) == 1
    numbered = pd.DataFrame([["a cold soup", 1]])
    assert rows_of(load_table(numbered, text_columns="0", label_column="1")) == [("a cold soup", 1)]


@pytest.mark.parametrize(
    "empty",
    [
        pd.DataFrame({"text": [], "label": []}),
        pa.table({"text": [], "label": []}),
        Dataset.from_dict({"text": [], "label": []}),
    ],
    ids=lambda table: type(table).__name__,
)
def test_a_table_without_rows_is_refused(empty):
    with pytest.raises(TableError, match="^the table: the table is empty, it has no rows to use$"):
        load_table(empty)


def test_a_table_without_columns_is_refused():
    with pytest.raises(TableError, match="^the table: there is no column 'text'; there are none; text_column= names"):
        load_table(pd.DataFrame(index=range(3)))


def test_a_dataset_with_a_transform_is_refused_and_a_format_makes_no_difference():
    table = Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0]})
    with pytest.raises(TableError, match=r"^the table is a Dataset with a transform, applied only .* data.map"):
        load_table(table.with_transform(lambda rows: {name: values[::-1] for name, values in rows.items()}))
    for kind in ("numpy", "torch", "pandas"):
        assert rows_of(load_table(table.with_format(kind))) == list(zip(TEXTS, [1, 0, 1, 0], strict=True))


def test_tables_and_files_are_put_one_after_the_other(tmp_path):
    path = tmp_path / "more.csv"
    path.write_text("text,label\na third soup,b\n")
    frame = pd.DataFrame({"text": TEXTS[:2], "label": ["a", "b"]})
    table = load_table([frame, path, Dataset.from_dict({"text": ["a last soup"], "label": ["a"]})])
    assert table["text"][:] == [*TEXTS[:2], "a third soup", "a last soup"]


def test_a_long_table_is_read_chunk_by_chunk_in_its_order():
    numbers = range(2 * CHUNK_ROWS + 3)
    frame = pd.DataFrame(
        {"text": [f"soup {number}" for number in numbers], "label": [number % 3 for number in numbers]}
    )
    for source in (frame, pa.Table.from_pandas(frame), Dataset.from_pandas(frame)):
        rows = open_memory_table(source, "train")
        assert [*rows.read(["label", "text"])] == [(number % 3, f"soup {number}") for number in numbers]
        assert [*rows.read(["text"])][-1] == (f"soup {numbers[-1]}",)  # a second time, too
    rows = open_memory_table(Stream(pa.Table.from_pandas(frame)), "train")
    assert (rows.name, rows.in_memory) == ("train", f"Stream of {len(frame):,} rows")


@pytest.mark.parametrize(
    "column",
    [
        ["a", "b"],
        ("a", "b"),
        iter(["a", "b"]),
        np.array(["a", "b"]),
        pd.Index(["a", "b"]),
        pd.Series(["a", "b"], index=[7, 7]),
        pa.array(["a", "b"]),
        pa.chunked_array([["a"], ["b"]]),
        Dataset.from_dict({"x": ["a", "b"]})["x"],
    ],
    ids=lambda column: type(column).__name__,
)
def test_columns_of_any_kind_are_a_table(column):
    rows = open_memory_columns({"text": listed(column), "label": [1, None]}, "train", kind="(texts, labels)")
    assert [*rows.read(["text", "label"])] == [("a", 1), ("b", None)]
    assert rows.in_memory == "(texts, labels) of 2 rows"


@pytest.mark.parametrize("thing", [pd.Series(["a"]), pa.array(["a"]), ["a"], {"text": ["a"]}, 3, None, "a.csv"])
def test_what_is_no_table_is_not_opened(thing):
    assert open_memory_table(thing, "train") is None
