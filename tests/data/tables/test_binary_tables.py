"""Excel, SQLite and Arrow are tables too, and splits of datasets are chosen by name or by what they are for."""

import datetime
import sqlite3
import sys

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import TableReading
from ulmfit_pipe.data.tables.tables import load_table


@pytest.fixture
def database(tmp_path):
    connection = sqlite3.connect(tmp_path / "a b.db")
    connection.execute('CREATE TABLE "my texts" (text, "the label")')
    connection.executemany('INSERT INTO "my texts" VALUES (?, ?)', [("a", 1), ("b", None)])
    connection.commit()
    connection.close()
    return tmp_path / "a b.db"


def test_a_table_of_a_database_is_read(database):
    rows = open_rows(database)
    assert (rows.columns, list(rows.read(["the label", "text"]))) == (["text", "the label"], [(1, "a"), (None, "b")])
    assert list(open_rows(f"{database}:my texts").read(["text"])) == [("a",), ("b",)]


def test_a_database_of_several_tables_needs_a_name(database):
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(
        TableError, match="is a database with the tables my texts, other; name one after a colon, such as"
    ):
        open_rows(database)
    with pytest.raises(TableError, match="with the tables my texts, other; .*, got 'texts'"):
        open_rows(f"{database}:texts")


def test_a_damaged_database_is_refused(database):
    database.write_bytes(database.read_bytes()[:200])
    with pytest.raises(TableError, match="is not a readable SQLite database"):
        open_rows(database)


@pytest.mark.parametrize("name", ["rows.feather", "rows.arrow"])
def test_arrow_files_are_read(tmp_path, name):
    pa.feather.write_feather(pa.table({"text": ["a", "b"], "label": ["x", None]}), str(tmp_path / name))
    assert list(open_rows(tmp_path / name).read(["label", "text"])) == [("x", "a"), (None, "b")]


def test_class_numbers_in_an_arrow_file_of_datasets_become_names(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "y"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).save_to_disk(tmp_path / "saved")
    rows = open_rows(next((tmp_path / "saved").glob("*.arrow")))
    assert list(rows.read(["text", "label"])) == [("a", "y")]
    assert rows.schema.field("label").type == pa.string()


def test_a_damaged_arrow_file_is_refused(tmp_path):
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(TableError, match="rows.arrow is not a readable Arrow file"):
        open_rows(tmp_path / "rows.arrow")


def test_the_first_version_of_feather_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "old.feather"
    path.write_bytes(b"FEA1" + b"\0" * 20 + b"FEA1")
    with pytest.raises(TableError, match="is a Feather file of version 1; save it in pandas as Parquet"):
        open_rows(path)


def test_parquet_is_known_by_its_content(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows.csv")
    assert list(open_rows(tmp_path / "rows.csv").read(["text"])) == [("a",)]


def test_a_column_that_stands_twice_in_parquet_is_refused_where_it_is_wanted(tmp_path):
    names = ["text", "x", "x", "label"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a", "b"])] * 4, names=names), tmp_path / "rows.parquet")
    assert len(load_table(tmp_path / "rows.parquet")) == 2
    with pytest.raises(TableError, match="the column name 'x' is there twice; rename one of the columns"):
        load_table(tmp_path / "rows.parquet", text_columns=["x"])


# Excel


@pytest.fixture
def workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl (the extra [excel]) is not installed")
    book = openpyxl.Workbook()
    book.active.title = "Data"
    rows = [
        [],
        ["text", "label", "when"],
        ["one", 1, datetime.datetime(2020, 1, 2)],
        ["two\nlines", 0.0],
        [],
        ["x", 1.5],
    ]
    for row in rows:
        book.active.append(row)
    book.create_sheet("Second").append(["a", "b"])
    book.save(tmp_path / "book.xlsx")
    return tmp_path / "book.xlsx"


def test_the_first_sheet_of_a_workbook_is_read_as_text(workbook):
    rows = open_rows(workbook)
    assert rows.columns == ["text", "label", "when"]
    assert list(rows.read(rows.columns)) == [("one", "1", "2020-01-02"), ("two\nlines", "0", ""), ("x", "1.5", "")]
    assert rows.notes == [
        f"{workbook}: of 2 sheets 'Data' is read; {workbook}:SHEET takes another",
        f"{workbook}: 1 blank rows between the others were passed over",
    ]


def test_a_sheet_is_chosen_by_name_and_may_lack_a_header(workbook):
    rows = open_rows(f"{workbook}:Second", reading=TableReading(no_header=True))
    assert list(rows.read(["2", "1"])) == [("b", "a")]
    with pytest.raises(TableError, match="has no sheet 'Third'; there are Data, Second"):
        open_rows(f"{workbook}:Third")


def test_a_damaged_workbook_is_refused(workbook):
    workbook.write_bytes(workbook.read_bytes()[:1000])
    with pytest.raises(TableError, match="book.xlsx is not a readable Excel file"):
        open_rows(workbook)


def test_a_workbook_without_openpyxl_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(TableError, match=r"Excel files need openpyxl, .*: pip install 'ulmfit_pipe\[excel\]', or save"):
        open_rows(tmp_path / "book.xlsx")


def test_an_old_workbook_is_refused(tmp_path):
    (tmp_path / "book.xls").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99))
    with pytest.raises(TableError, match="book.xls is an Excel file of the old kind .* save it as .xlsx or CSV"):
        open_rows(tmp_path / "book.xls")


# Splits


@pytest.fixture
def saved(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test", "dev")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_split_is_chosen_by_name_or_by_what_it_is_for(saved):
    assert list(open_rows(f"{saved}:test").read(["text"])) == [("test",)]
    assert list(open_rows(saved, usual_splits=("validation", "dev")).read(["text"])) == [("dev",)]
    assert list(open_rows(f"{saved}:test", usual_splits=("train",)).read(["text"])) == [("test",)]
    with pytest.raises(TableError, match="has the splits train, test, dev; name one after a colon, .*, got 'val'"):
        open_rows(f"{saved}:val")


def test_a_path_that_exists_wins_over_a_colon_in_its_name(tmp_path):
    (tmp_path / "a:train").write_text("x")
    (tmp_path / "a:b.csv").write_text("text\nx\n")
    assert list(open_rows(tmp_path / "a:b.csv").read(["text"])) == [("x",)]


def test_a_part_of_what_has_none_is_refused(tmp_path, saved):
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(
        TableError, match="a.csv is one table and has no part 'train'; leave out what follows the colon"
    ):
        open_rows(f"{tmp_path / 'a.csv'}:train")
    with pytest.raises(TableError, match="has no splits, so there is no 'train'"):
        open_rows(f"{saved / 'train'}:train")


@pytest.mark.parametrize("name", ["text", "csv", "JSON", "parquet", "imagefolder", "arrow", "webdataset", "text:train"])
def test_a_reader_of_datasets_is_never_asked_for_the_working_folder(monkeypatch, name):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked"))
    with pytest.raises(TableError, match="since it is one of the readers of datasets itself; give the path of a file"):
        open_rows(name)
