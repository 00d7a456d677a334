"""Opening tables of every kind, and saying clearly why one cannot be opened."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit_pipe.data.tables import saved_datasets
from ulmfit_pipe.data.tables.readers import TableError, open_rows

ROWS = [("good film", "pos"), ("bad, long\nfilm", "neg"), ('a "so so" film', "pos")]


def write_csv(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def read_all(source, columns=("text", "label"), **kwargs):
    return list(open_rows(source, **kwargs).read(columns))


def make_table(folder, kind):
    records = [{"text": text, "label": label} for text, label in ROWS]
    path = folder / f"table.{kind}"
    if kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        lines = [f"label{comma}text"]
        lines += [label + comma + '"' + text.replace('"', '""') + '"' for text, label in ROWS]
        return write_csv(path, "\ufeff" + "\r\n".join(lines) + "\r\n\r\n")
    if kind == "jsonl":
        return write_csv(path, "\n".join(json.dumps(record) for record in records) + "\n\n")
    if kind == "json":
        return write_csv(path, json.dumps(records))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    datasets.Dataset.from_list(records).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "folder"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    assert read_all(make_table(tmp_path, kind)) == ROWS


def test_a_json_file_with_an_object_per_line_is_read_too(tmp_path):
    path = write_csv(tmp_path / "lines.json", '{"text": "a"}\n{"text": "b"}\n')
    assert read_all(path, ["text"]) == [("a",), ("b",)]


def test_reading_twice_gives_the_rows_twice(tmp_path):
    rows = open_rows(make_table(tmp_path, "csv"))
    assert list(rows.read(["label"])) == list(rows.read(["label"])) == [("pos",), ("neg",), ("pos",)]


def test_class_numbers_of_a_saved_dataset_become_names(tmp_path):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["n", "y"]),
            "tags": datasets.List(datasets.ClassLabel(names=["a", "b", "c"])),
        }
    )
    rows = {"text": ["one", "two"], "label": [1, -1], "tags": [[2, 0], []]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    assert read_all(tmp_path / "saved", ["label", "tags"]) == [("y", ["c", "a"]), (None, [])]


def test_a_split_of_a_saved_dataset_is_chosen_by_name(tmp_path):
    parts = {"train": datasets.Dataset.from_dict({"text": ["a"]}), "test": datasets.Dataset.from_dict({"text": ["b"]})}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert read_all(tmp_path / "saved", ["text"], split="test") == [("b",)]
    with pytest.raises(
        TableError, match="has the splits train, test; name one after a colon, such as .*saved:train, got none"
    ):
        open_rows(tmp_path / "saved")


def test_no_file_lists_the_near_ones(tmp_path):
    write_csv(tmp_path / "train.csv", "text\na\n")
    write_csv(tmp_path / "other.parquet", "")
    with pytest.raises(TableError, match=r"there is no file .*trian.csv; the folder .* holds train.csv"):
        open_rows(tmp_path / "trian.csv")
    with pytest.raises(TableError, match="holds other.parquet, train.csv"):
        open_rows(tmp_path / "zzzzzz.jsonl")
    with pytest.raises(TableError, match="there is no folder .*nowhere either"):
        open_rows(tmp_path / "nowhere" / "train.csv")
    (tmp_path / "bare").mkdir()
    with pytest.raises(TableError, match="bare holds no table"):
        open_rows(tmp_path / "bare" / "train.csv")


def test_an_unknown_extension_is_refused(tmp_path):
    path = write_csv(tmp_path / "table.docx", "x")
    with pytest.raises(TableError, match=r"unknown extension '.docx'; known are .csv, .tsv, .jsonl, .json, .parquet"):
        open_rows(path)


@pytest.mark.parametrize("extension", ["csv", "jsonl", "json"])
def test_text_that_is_utf8_but_for_one_byte_is_refused_by_its_place(tmp_path, extension):
    path = tmp_path / f"latin.{extension}"
    start = "text\nä\nö\nü\n" if extension == "csv" else '{"text": "ä"}\n' * 3
    path.write_bytes(start.encode() + b"caf\xe9 au lait\n")
    line = start.count("\n") + 1
    words = rf"is not UTF-8: byte {len(start.encode()) + 3} \(line {line}\).*fix it there, or name the .* --encoding"
    with pytest.raises(TableError, match=words):
        read_all(path, ["text"])


def test_a_character_cut_between_blocks_is_found_where_it_starts(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("text\nü".encode() + b"a" * ((1 << 20) - 8) + b"\xe9" + b"a\n")
    with pytest.raises(TableError, match=rf"byte {(1 << 20) - 1} \(line 2\)"):
        read_all(path, ["text"])


def test_a_row_with_too_many_fields_is_named(tmp_path):
    path = write_csv(tmp_path / "ragged.csv", "text,label\nfine,pos\nwell, not so,neg\n")
    with pytest.raises(TableError, match=r"row 2 \(header not counted\) has 3 fields, the header has 2; put a field"):
        read_all(path)


@pytest.mark.parametrize("rows", ["1,fine,pos\n2,bad,neg\n", "fine,pos,\nbad,neg,\n"])
def test_a_header_that_lacks_the_name_of_a_column_is_told(tmp_path, rows):
    path = write_csv(tmp_path / "r.csv", "text,label\n" + rows)
    with pytest.raises(TableError, match=r"r.csv: each row seems to have one field more than the header.* add a name"):
        read_all(path)


def test_a_comma_in_the_first_row_is_no_column_without_a_name(tmp_path):
    path = write_csv(tmp_path / "r.csv", "text,label\nwell, not so,neg\n")
    with pytest.raises(TableError, match="row 1 .* has 3 fields, the header has 2; put a field"):
        read_all(path)


def test_an_unmatched_quote_is_named(tmp_path):
    path = write_csv(tmp_path / "quote.csv", 'text,label\nfine,pos\n"never" closed, no,neg\nbad,neg\n')
    words = r"row 2 \(header not counted\), line 3, byte 20, is not valid CSV: .*unmatched quote, or --quote none"
    with pytest.raises(TableError, match=words):
        read_all(path)


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl"])
def test_an_empty_file_is_refused(tmp_path, extension):
    with pytest.raises(TableError, match="is empty"):
        open_rows(write_csv(tmp_path / f"empty.{extension}", ""))


def test_an_empty_json_list_is_refused(tmp_path):
    with pytest.raises(TableError, match="is empty: it has no rows"):
        open_rows(write_csv(tmp_path / "empty.json", "[]"))


@pytest.mark.parametrize(
    "content",
    [
        {"version": 1, "data": [{"text": "a", "label": "x"}]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
        {"columns": ["text", "label"], "index": [0], "data": [["a", "x"]]},
    ],
)
def test_a_json_object_that_holds_the_table_is_refused_with_what_to_write(tmp_path, content):
    path = write_csv(tmp_path / "table.json", json.dumps(content, indent=1))
    with pytest.raises(TableError, match="is one JSON object that holds a table; write .* orient='records'"):
        open_rows(path)


def test_a_json_object_that_is_a_row_is_one_row(tmp_path):
    path = write_csv(tmp_path / "row.json", '{"text": "a", "label": ["x", "y"]}')
    assert read_all(path) == [("a", ["x", "y"])]


def test_broken_json_is_named_by_row(tmp_path):
    path = write_csv(tmp_path / "broken.jsonl", '{"text": "a"}\n\n{"text": \n')
    with pytest.raises(TableError, match="row 2 is not a JSON object on one line"):
        read_all(path, ["text"])
    path = write_csv(tmp_path / "list.jsonl", '{"text": "a"}\n["b"]\n')
    with pytest.raises(TableError, match=r"row 2 must be a JSON object of column names and values, got \['b'\]"):
        read_all(path, ["text"])


def test_a_name_that_stands_twice_in_a_json_row_is_refused(tmp_path):
    path = write_csv(tmp_path / "twice.jsonl", '{"text": "a", "text": "b"}\n')
    with pytest.raises(TableError, match="row 1 .*the name 'text' is there twice"):
        open_rows(path)


def test_a_parquet_file_cut_short_is_refused(tmp_path):
    path = make_table(tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match="is not a readable Parquet file"):
        open_rows(path)


def test_a_parquet_file_damaged_inside_is_refused(tmp_path):
    path = make_table(tmp_path, "parquet")
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the first page; the footer, read on opening, is whole
    path.write_bytes(content)
    with pytest.raises(TableError, match=rf"{path.name} cannot be read to its end \(cut short\?\)"):
        read_all(path)


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    column = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "latin.parquet")
    with pytest.raises(TableError, match="holds text that is not UTF-8"):
        read_all(tmp_path / "latin.parquet", ["text"])


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(
        TableError, match="was not saved by datasets .*holds no folder of .txt files per class; give a file"
    ):
        open_rows(tmp_path)


def test_a_hub_name_without_network_says_what_was_tried(monkeypatch):
    class NoNetwork:
        def dataset_info(self, name, timeout):
            assert timeout <= 5
            raise ConnectionError("Name or service not known\nlong story")

    monkeypatch.setattr(saved_datasets, "HfApi", NoNetwork)
    monkeypatch.setattr(saved_datasets, "is_offline_mode", lambda: False)
    words = "no file or folder 'owner/reviews', so it was tried as a dataset on the Hugging Face hub; .*path of a .csv"
    with pytest.raises(TableError, match=words + ".*ConnectionError: Name or service not known$"):
        open_rows("owner/reviews")


def test_a_hub_name_in_offline_mode_says_so(monkeypatch):
    def not_cached(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(saved_datasets, "is_offline_mode", lambda: True)
    monkeypatch.setattr(saved_datasets.datasets, "load_dataset", not_cached)
    with pytest.raises(TableError, match="HF_HUB_OFFLINE is set and it is not in the cache"):
        open_rows("reviews")


def test_a_hub_dataset_is_read_like_a_saved_one(monkeypatch):
    loaded = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))
    monkeypatch.setattr(saved_datasets, "is_offline_mode", lambda: True)
    monkeypatch.setattr(saved_datasets.datasets, "load_dataset", lambda name: loaded)
    assert read_all("owner/reviews", ["text"]) == [("a",)]
