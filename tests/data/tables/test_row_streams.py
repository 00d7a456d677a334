"""Rows keep what they hold from file to file: cells, number texts, Arrow types; what cannot be kept is refused."""

import csv
import datetime
import decimal
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit_pipe.data.tables import row_streams
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.data.tables.row_streams import check_suffix, column_values, open_stream, open_writer, split_object


def copy(source: Path, target: Path, *, rows: int = 2) -> Path:
    """Stream a file into another one, a few rows at a time."""
    stream = open_stream(source)
    schema = stream.schema() if target.suffix == ".parquet" else pa.schema([(n, pa.string()) for n in stream.columns()])
    writer = open_writer(target, schema, suffix=target.suffix)
    for chunk in stream.chunks(rows):
        writer.write(chunk)
    writer.close()
    return target


def read_cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))


CELLS = [
    ["id", "text", "note"],
    ["007", 'she said "no", twice', ""],
    ["1e3", "two\nlines", " spaces "],
    ["-0", "a lone\rreturn", "tab\there"],
    ["", "café 🙂", "NULL"],
]


@pytest.fixture
def cells_csv(tmp_path):
    path = tmp_path / "cells.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(CELLS)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_csv_cells_stay_the_same_strings(cells_csv, tmp_path, suffix):
    copied = copy(cells_csv, tmp_path / f"out{suffix}")
    assert read_cells(copied) == CELLS
    assert read_cells(copy(copied, tmp_path / "again.csv")) == CELLS


def test_csv_cells_become_strings_in_json_and_parquet(cells_csv, tmp_path):
    rows = [dict(zip(CELLS[0], cells, strict=True)) for cells in CELLS[1:]]
    lines = copy(cells_csv, tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert pq.read_table(copy(cells_csv, tmp_path / "out.parquet")).to_pylist() == rows


LINES = [
    '{"id": 007e0, "text": "x"}'.replace("007e0", "1.10"),
    '{"text":"caf\\u00e9 \\ud83d\\ude42", "id" : 123456789012345678901234567890, "more": [1.50, {"a": null}]}',
    '{"id": 1e400, "text": null, "other": true}',
]


@pytest.fixture
def json_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(LINES) + "\n", encoding="utf-8")
    return path


def test_json_values_keep_their_own_text_and_rows_keep_their_own_names(json_lines, tmp_path):
    assert copy(json_lines, tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == [
        '{"id": 1.10, "text": "x"}',
        '{"id": 123456789012345678901234567890, "text": "caf\\u00e9 \\ud83d\\ude42", "more": [1.50, {"a": null}]}',
        '{"id": 1e400, "text": null, "other": true}',
    ]


def test_json_values_become_cells_with_a_column_for_every_name(json_lines, tmp_path):
    assert read_cells(copy(json_lines, tmp_path / "out.csv")) == [
        ["id", "text", "more", "other"],
        ["1.10", "x", "", ""],
        ["123456789012345678901234567890", "café 🙂", '[1.50, {"a": null}]', ""],
        ["1e400", "", "", "true"],
    ]


def test_json_values_become_parquet_of_one_type_for_the_whole_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": null, "x": 1}\n{"n": null, "x": 2}\n{"n": "a", "x": 2.5}\n', encoding="utf-8")
    table = pq.read_table(copy(path, tmp_path / "out.parquet", rows=1))
    assert table.schema.types == [pa.string(), pa.float64()]
    assert table.to_pylist() == [{"n": None, "x": 1.0}, {"n": None, "x": 2.0}, {"n": "a", "x": 2.5}]


@pytest.mark.parametrize("second", ['"b"', "[1]", "123456789012345678901234567890"])
def test_json_values_of_several_types_are_refused_by_parquet(tmp_path, second):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"mixed": 1}}\n{{"mixed": {second}}}\n', encoding="utf-8")
    with pytest.raises(TableError, match=r"column 'mixed' cannot be kept in Parquet .* write .jsonl"):
        copy(path, tmp_path / "out.parquet")


def test_json_types_that_change_late_in_the_file_are_refused_by_parquet(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"mixed": 1}\n' * 1000 + '{"mixed": "a"}\n', encoding="utf-8")
    with pytest.raises(TableError, match=r"rows.jsonl: .*mixed.*; Parquet needs one type per column, write .jsonl"):
        copy(path, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("{}", {}),
        ('{"a":1}', {"a": "1"}),
        ('  { "a" : [1, 2] ,\t"b{},:": "}," }  \n', {"a": "[1, 2]", "b{},:": '"},"'}),
        ('{"\\u0061": -0.0}', {"a": "-0.0"}),
    ],
)
def test_an_object_is_split_into_names_and_the_text_of_their_values(line, fields):
    assert split_object(line) == fields


@pytest.fixture
def typed_parquet(tmp_path):
    table = pa.table(
        {
            "int": pa.array([1, None, 3], pa.int16()),
            "float": pa.array([0.1, 1.0, float("nan")], pa.float32()),
            "day": pa.array([datetime.date(2020, 2, 29), None, None]),
            "price": pa.array([decimal.Decimal("1.50"), None, None]),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "tags": pa.array([["x"], [], None], pa.list_(pa.string())),
            "yes": pa.array([True, False, None]),
        }
    ).replace_schema_metadata({"note": "kept"})
    pq.write_table(table, tmp_path / "typed.parquet")
    return tmp_path / "typed.parquet"


def test_parquet_columns_keep_their_types_and_the_file_its_metadata(typed_parquet, tmp_path):
    before, after = pq.read_table(typed_parquet), pq.read_table(copy(typed_parquet, tmp_path / "out.parquet"))
    assert after.schema.equals(before.schema, check_metadata=True)
    assert str(after.to_pylist()) == str(before.to_pylist())


def test_a_parquet_file_damaged_inside_is_refused(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["good film", "bad film"]}), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the first page; the footer, read on opening, is whole
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"in\.parquet cannot be read to its end \(cut short\?\)"):
        list(open_stream(path).chunks(2))


def test_parquet_values_become_cells(typed_parquet, tmp_path):
    assert read_cells(copy(typed_parquet, tmp_path / "out.csv")) == [
        ["int", "float", "day", "price", "kind", "tags", "yes"],
        ["1", "0.1", "2020-02-29", "1.50", "a", '["x"]', "true"],
        ["", "1.0", "", "", "b", "[]", "false"],
        ["3", "", "", "", "a", "", ""],
    ]


def test_parquet_values_become_json(typed_parquet, tmp_path):
    lines = copy(typed_parquet, tmp_path / "out.jsonl").read_text().splitlines()
    assert lines[0] == (
        '{"int": 1, "float": 0.1, "day": "2020-02-29", "price": "1.50", "kind": "a", "tags": ["x"], "yes": true}'
    )
    assert json.loads(lines[2]) == {
        "int": 3,
        "float": None,
        "day": None,
        "price": None,
        "kind": "a",
        "tags": None,
        "yes": None,
    }


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_bytes_are_refused_outside_parquet(tmp_path, suffix):
    pq.write_table(pa.table({"picture": [b"\xff"]}), tmp_path / "in.parquet")
    with pytest.raises(TableError, match="column 'picture' holds bytes, which only Parquet can keep; write .parquet"):
        copy(tmp_path / "in.parquet", tmp_path / f"out{suffix}")


def test_a_type_without_a_text_form_is_refused_outside_parquet(tmp_path):
    spans = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    writer = open_writer(tmp_path / "out.csv", pa.schema([("took", pa.string())]), suffix=".csv")
    with pytest.raises(TableError, match=r"column 'took' holds month_day_nano_interval, which has no text form"):
        writer.write({"took": spans})
    writer.close()


def test_nested_values_without_a_json_form_are_written_as_text(tmp_path):
    struct = {"day": datetime.date(2020, 2, 29), "x": float("inf"), "deep": [{"n": 1}]}
    pq.write_table(pa.table({"s": [struct]}), tmp_path / "in.parquet")
    line = copy(tmp_path / "in.parquet", tmp_path / "out.jsonl").read_text()
    assert json.loads(line) == {"s": {"day": "2020-02-29", "x": None, "deep": [{"n": 1}]}}


def test_half_a_surrogate_pair_stays_an_escape_in_json(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"half": "\\ud800"}\n', encoding="utf-8")
    copied = copy(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert copied.read_text(encoding="utf-8") == '{"half": "\\ud800"}\n'


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_chunks_have_the_rows_asked_for_in_order(tmp_path, cells_csv, suffix):
    path = copy(cells_csv, tmp_path / f"in{suffix}")
    chunks = list(open_stream(path).chunks(3))
    assert [column_values(chunk["id"]) for chunk in chunks] == [["007", "1e3", "-0"], [""]]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_chunks_of_long_texts_have_fewer_rows(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(row_streams, "CHUNK_CHARACTERS", 1000)
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "".join(f"{number:0400}\n" for number in range(5)), encoding="utf-8")
    chunks = list(open_stream(copy(source, tmp_path / f"long{suffix}")).chunks(5))
    assert [int(text) for chunk in chunks for text in column_values(chunk["text"])] == [0, 1, 2, 3, 4]
    assert max(len(column_values(chunk["text"])) for chunk in chunks) <= 3


def test_a_parquet_file_of_one_large_row_group_is_not_held_whole(tmp_path):
    texts = [random.Random(row).randbytes(1000).hex() for row in range(10_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet", row_group_size=10_000)
    assert (tmp_path / "in.parquet").stat().st_size > 10_000_000
    del texts
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in open_stream(tmp_path / "in.parquet").chunks(100)]
    assert len(held) >= 100
    assert max(held) < 6_000_000


@pytest.mark.parametrize("name", ["table.xlsx", "table", "table.json"])
def test_an_unknown_suffix_names_those_that_stream(name):
    with pytest.raises(
        TableError, match=r"unknown suffix '.*'; rows are streamed from and to .csv, .tsv, .jsonl, .par"
    ):
        check_suffix(Path(name))
