"""Where rows begin: a span read alone holds the rows that it holds in the whole, and nothing before it is read."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit_pipe.data.row_places import RowPlaces, find_rows
from ulmfit_pipe.data.row_streams import RowSpan, column_values, open_stream
from ulmfit_pipe.data.table_readers import TableError, TextLines

TEXTS = ["plain", 'two\nlines, "quoted"', "wörter\u2028und 漢字", "with\r\nreturn", "a,b\tc", "last"]
NAMES = ["a.csv", "b.tsv", "c.jsonl", "d.parquet", "crlf.csv", "bom.csv", "blank.csv", "crlf.jsonl", "bom.jsonl"]


def write(path: Path, texts: list[str] = TEXTS) -> Path:
    """Write a table with the columns number and text, in the manner that the file's name tells."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"number": list(range(len(texts))), "text": texts}), path, row_group_size=2)
        return path
    end = "\r\n" if "crlf" in path.name else "\n"
    if path.suffix == ".jsonl":
        lines = [json.dumps({"number": row, "text": text}, ensure_ascii=False) for row, text in enumerate(texts)]
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
        lines = [f"number{mark}text", *(f"{row}{mark}{text}" for row, text in enumerate(quoted))]
    between = end + end if "blank" in path.name else end
    path.write_bytes((("\ufeff" if "bom" in path.name else "") + between.join(lines) + end).encode())
    return path


def found(path: Path, *, every: int = 2, **settings) -> RowPlaces:
    steps = find_rows(path, columns=["text"], every=every, check=lambda *_row: None, **settings)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def texts_of(path: Path, span: RowSpan, *, rows: int = 2) -> list[str]:
    return [
        text
        for chunk in open_stream(path, columns=["number", "text"]).chunks(rows, span)
        for text in column_values(chunk["text"])
    ]


@pytest.mark.parametrize("every", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("name", NAMES)
def test_spans_put_together_are_the_whole_table(tmp_path, name, every):
    path = write(tmp_path / name)
    places = found(path, every=every)
    assert (places.rows, places.columns, places.every) == (6, ["number", "text"], every)
    assert len(places.marks) == -(-6 // every)
    read = []
    for index, offset in enumerate(places.marks):
        read += texts_of(path, RowSpan(index * every, every, offset))
    assert read == TEXTS


def test_the_marks_are_the_bytes_at_which_rows_begin(tmp_path):
    path = write(tmp_path / "a.csv")
    content = path.read_bytes()
    places = found(path, every=1)
    assert places.marks[0] == 0  # the top: a reader passes over the header itself
    assert [content[mark : mark + 2] for mark in places.marks[1:]] == [b"1,", b"2,", b"3,", b"4,", b"5,"]


@pytest.mark.parametrize("name", ["a.csv", "c.jsonl"])
def test_nothing_before_a_span_is_read(tmp_path, name):
    path = write(tmp_path / name)
    mark = found(path, every=4).marks[1]
    content = path.read_bytes()
    header = content.index(b"\n") + 1 if name == "a.csv" else 0
    path.write_bytes(content[:header] + b'"' * (mark - header) + content[mark:])
    assert texts_of(path, RowSpan(4, 2, mark)) == TEXTS[4:]


def test_row_groups_before_and_after_a_span_are_not_read(tmp_path):
    path = write(tmp_path / "d.parquet")
    metadata = pq.read_metadata(path)
    starts = [metadata.row_group(group).column(0).dictionary_page_offset or 4 for group in range(3)]
    content = path.read_bytes()
    rest = metadata.row_group(2).column(1).data_page_offset
    path.write_bytes(
        b"PAR1"
        + b"\xff" * (starts[1] - 4)
        + content[starts[1] : starts[2]]
        + b"\xff" * (rest - starts[2])
        + content[rest:]
    )
    assert texts_of(path, RowSpan(2, 2)) == TEXTS[2:4]
    with pytest.raises(TableError, match="d.parquet cannot be read to its end"):
        texts_of(path, RowSpan(0, 6))


@pytest.mark.parametrize(("first", "rows"), [(0, 1), (1, 3), (3, 3), (5, 1), (1, 5)])
def test_a_span_of_parquet_may_begin_and_end_within_row_groups(tmp_path, first, rows):
    path = write(tmp_path / "d.parquet")
    for size in (1, 2, 5):
        assert texts_of(path, RowSpan(first, rows), rows=size) == TEXTS[first : first + rows]


def test_every_row_is_checked_with_its_number(tmp_path):
    seen = []
    for name in ("a.csv", "c.jsonl", "d.parquet"):
        seen.clear()
        for _ in find_rows(
            write(tmp_path / name), columns=["text"], every=2, check=lambda row, at: seen.append((at, row))
        ):
            pass
        assert seen == [(number, (text,)) for number, text in enumerate(TEXTS, start=1)]


def test_a_reading_pauses_now_and_then(tmp_path):
    path = write(tmp_path / "a.csv", [str(row) for row in range(600)])
    assert len(list(find_rows(path, columns=["text"], every=100, check=lambda *_row: None))) == 2


def test_the_second_reading_of_json_for_its_types_pauses_too(tmp_path):
    """Other processes wait for it in a collective, which has a time limit."""
    path = write(tmp_path / "c.jsonl", [str(row) for row in range(4500)])
    settings = {"columns": ["text"], "every": 100, "check": lambda *_row: None}
    first, both = (list(find_rows(path, **settings, typed=typed)) for typed in (False, True))
    assert len(both) - len(first) == 5  # one each thousand rows


def test_names_that_turn_up_late_and_types_are_found(tmp_path):
    path = tmp_path / "late.jsonl"
    path.write_text('{"text": "a", "n": 1}\n{"text": "b", "n": 1.5, "extra": [true]}\n')
    places = found(path, typed=True)
    assert places.columns == ["text", "n", "extra"]
    assert places.schema == pa.schema([("text", pa.string()), ("n", pa.float64()), ("extra", pa.list_(pa.bool_()))])
    assert found(path).schema is None
    assert found(write(tmp_path / "a.csv"), typed=True).schema == pa.schema(
        [("number", pa.string()), ("text", pa.string())]
    )
    assert found(write(tmp_path / "d.parquet"), typed=True).schema == pa.schema(
        [("number", pa.int64()), ("text", pa.string())]
    )


def test_bad_lines_are_named_as_ever(tmp_path):
    (tmp_path / "e.csv").write_text("text,id\nx,1\ny\n")
    with pytest.raises(TableError, match="e.csv, row 2 .* has 1 fields, the header has 2"):
        found(tmp_path / "e.csv")
    (tmp_path / "f.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(TableError, match="f.jsonl, row 2 is not a JSON object on one line"):
        found(tmp_path / "f.jsonl")


def test_lines_are_counted_in_bytes_from_any_line_on(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "é\r\n漢\rx\n".encode())
    lines = TextLines(path)
    assert [(line, lines.offset) for line in lines] == [("é\r\n", 7), ("漢\r", 11), ("x\n", 13)]
    again = TextLines(path, 7)
    assert [(line, again.offset) for line in again] == [("漢\r", 11), ("x\n", 13)]
