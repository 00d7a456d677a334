"""A file in, the same rows out with label and score: every kind of file, bounded memory, nothing half-written."""

import csv
import errno
import gzip
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from tests.support.part_tables import read_parts, read_table, write_table
from ulmfit_pipe.data.tables import plain_copies
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.settings.prediction import PredictFileSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.atomic import OutputError, whole_file
from ulmfit_pipe.text.predict import files as predict_files
from ulmfit_pipe.text.predict.files import SHOWN_LABELS, PredictSummary, predict_file
from ulmfit_pipe.text.predict.predictor import Predictor

TEXTS = [
    "The film was dull, and its ending was duller.",
    'She said "no",\ntwice.',
    "A warm and funny story about three brothers. " * 30,
    "It works; the actors seem to enjoy every minute.",
    "Nobody expected the music to be this good! " * 9,
]
IDS = ["007", "1e3", "", "-0", "NULL"]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


@pytest.fixture(scope="module")
def expected(tiny_classifier_folder):
    return Predictor.load(tiny_classifier_folder).predict(TEXTS)


@pytest.fixture
def predict(tiny_classifier_folder, tmp_path):
    """Return a function that predicts a file into another one; it gives the rows of the result."""

    def run(source: Path, name: str = "out.csv", *, model: Path = tiny_classifier_folder, **settings) -> list[dict]:
        target = tmp_path / name
        said: list[str] = []
        numbers = PredictFileSettings(
            model=str(model), input_file=str(source), output_file=str(target), **{"chunk_rows": 2, **settings}
        )
        run.summary = predict_file(numbers, context=RunContext(say=said.append))
        run.said = said
        return read_table(target)

    return run


@pytest.fixture
def table_csv(tmp_path):
    return write_table(tmp_path / "in.csv", {"id": IDS, "text": TEXTS})


# The rows


@pytest.mark.parametrize("count", [2, SHOWN_LABELS, SHOWN_LABELS + 1, 5_000])
def test_the_summary_is_as_short_with_thousands_of_labels(count):
    labels = {f"label {number}": number for number in range(count + 1)}  # the first was never given
    text = str(PredictSummary(9, 0, 1.0, 1.0, labels, Path("o.csv")))
    line = next(line for line in text.splitlines() if line.startswith("labels: "))
    listed = line.count("label ")
    if count <= SHOWN_LABELS:
        assert listed == count
        assert line.startswith("labels: label 1 1, label 2 2")
    else:
        assert listed == SHOWN_LABELS - 1
        assert line.startswith(f"labels: label {count} {count:,}, label {count - 1} ")
        assert line.endswith(f", and {count - listed:,} more, down to 1")


@pytest.mark.parametrize("written", SUFFIXES)
@pytest.mark.parametrize("given", SUFFIXES)
def test_the_same_rows_come_out_in_order_with_label_and_score(predict, expected, tmp_path, given, written):
    source = write_table(tmp_path / f"in{given}", {"id": IDS, "text": TEXTS})
    rows = predict(source, f"out{written}")
    assert [list(row) for row in rows] == [["id", "text", "label", "score"]] * 5
    assert [row["id"] for row in rows] == IDS
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-5)


def test_the_pieces_in_which_a_file_is_read_do_not_change_it(predict, table_csv):
    one_by_one, together = (predict(table_csv, f"{rows}.csv", chunk_rows=rows) for rows in (1, 2048))
    for alone, among_others in zip(one_by_one, together, strict=True):
        # float32 rounds by the company a row is computed in, on some processors in the sixth digit
        assert float(alone.pop("score")) == pytest.approx(float(among_others.pop("score")), rel=1e-5)
        assert alone == among_others


@pytest.mark.parametrize("written", SUFFIXES)
def test_a_label_below_the_score_asked_for_is_empty_and_counted(predict, expected, tmp_path, written):
    source = write_table(tmp_path / "in.jsonl", {"text": [*TEXTS, ""]})
    cut = sorted(row["score"] for row in expected)[2] - 1e-6
    rows = predict(source, f"out{written}", abstain_below=cut)
    none = "" if written in (".csv", ".tsv") else None
    assert [row["label"] for row in rows] == [row["label"] if row["score"] > cut else none for row in expected] + [none]
    assert [float(row["score"]) for row in rows[:-1]] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert (predict.summary.rows, predict.summary.skipped, predict.summary.abstained) == (6, 1, 2)
    assert "; 2 rows left without one, their score is too low\n" in str(predict.summary)


@pytest.mark.parametrize("written", SUFFIXES)
def test_all_scores_adds_a_column_for_every_label(predict, table_csv, expected, written):
    rows = predict(table_csv, f"out{written}", all_scores=True)
    assert list(rows[0])[2:] == ["label", "score", "score_bad", "score_fair", "score_good"]
    for row, wanted in zip(rows, expected, strict=True):
        found = {name: float(row[f"score_{name}"]) for name in ("bad", "fair", "good")}
        assert found == pytest.approx(wanted["scores"], abs=1e-5)


def test_scores_are_numbers_with_six_digits_where_the_file_knows_numbers(predict, table_csv):
    (row, *_) = predict(table_csv, "out.parquet")
    assert isinstance(row["score"], float)
    assert row["score"] == float(f"{row['score']:.6g}")
    (line, *_) = predict(table_csv, "out.jsonl")
    assert line["score"] == row["score"]


def test_json_rows_stay_as_they_were_written_and_get_two_more_names(predict, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"n": 1.10, "text": "It works."}\n{"text":"So","extra":[1,  2]}\n', encoding="utf-8")
    predict(source, "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('{"n": 1.10, "text": "It works.", "label": "')
    assert lines[1].startswith('{"text": "So", "extra": [1,  2], "label": "')


def test_parquet_columns_keep_their_types(predict, tmp_path):
    kinds = {"id": pa.array([3, None], pa.int8()), "text": pa.array(["a", "b"], pa.large_string())}
    pq.write_table(pa.table(kinds), tmp_path / "in.parquet")
    predict(tmp_path / "in.parquet", "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert dict(zip(schema.names, schema.types, strict=True)) == {
        "id": pa.int8(),
        "text": pa.large_string(),
        "label": pa.string(),
        "score": pa.float64(),
    }


def test_parquet_written_by_datasets_is_still_read_by_datasets(predict, tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 0, 1, 1]}, features=features)
    table.to_parquet(tmp_path / "in.parquet")
    predict(tmp_path / "in.parquet", "out.parquet")
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded["label_given"][:] == [0, 1, 0, 1, 1]
    assert set(loaded["label"]) <= {"bad", "fair", "good"}


def test_several_text_columns_are_joined_as_in_training(predict, tiny_classifier_folder, tmp_path):
    source = write_table(tmp_path / "in.csv", {"title": ["Dull", ""], "body": ["The film.", "It works."]})
    rows = predict(source, text_column=["title", "body"])
    joined = ["xxfld 1 Dull xxfld 2 The film.", "xxfld 1  xxfld 2 It works."]
    wanted = Predictor.load(tiny_classifier_folder).predict(joined)
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    assert [float(row["score"]) for row in rows] == pytest.approx([row["score"] for row in wanted], abs=1e-5)


def test_the_summary_counts_rows_and_labels(predict, table_csv, expected):
    predict(table_csv)
    summary = predict.summary
    counts = {name: sum(row["label"] == name for row in expected) for name in ("bad", "fair", "good")}
    assert (summary.rows, summary.skipped, summary.labels) == (5, 0, counts)
    assert str(summary).startswith("5 rows in ")
    assert str(summary).endswith(f"written to {summary.output_file}")


# Multi-label


def test_multi_label_gives_lists_in_json_and_parquet_and_joined_names_in_csv(
    predict, table_csv, tiny_multi_label_folder
):
    wanted = [row["label"] for row in Predictor.load(tiny_multi_label_folder).predict(TEXTS)]
    assert any(len(labels) > 1 for labels in wanted)
    for name in ("out.jsonl", "out.parquet"):
        assert [row["label"] for row in predict(table_csv, name, model=tiny_multi_label_folder)] == wanted
    for name in ("out.csv", "out.tsv"):
        rows = predict(table_csv, name, model=tiny_multi_label_folder)
        assert [row["label"] for row in rows] == ["|".join(labels) for labels in wanted]
    assert predict.summary.labels["warm"] == sum("warm" in labels for labels in wanted)


def test_labels_that_hold_the_separator_are_not_joined(predict, table_csv, save_tiny_classifier, tmp_path):
    model = save_tiny_classifier(tmp_path / "m", labels=("a|b", "c"), problem_type="multi_label_classification")
    with pytest.raises(ValueError, match=r"a label holds '\|', which parts the labels of a row in .csv; write .jsonl"):
        predict(table_csv, model=model)
    assert len(predict(table_csv, "out.jsonl", model=model)) == 5


# Tables of other kinds


def other_kinds(folder: Path) -> dict[str, Path]:
    """The same rows, in files that prediction does not stream as they are."""
    rows = [dict(zip(("id", "text"), row, strict=True)) for row in zip(IDS, TEXTS, strict=True)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    cells = write_table(folder / "cells.csv", {"id": IDS, "text": TEXTS}).read_text(encoding="utf-8")
    contents = {
        "rows.csv.gz": gzip.compress(cells.encode()),
        "utf16.csv": cells.encode("utf-16"),
        "rows.jsonl.gz": gzip.compress(lines.encode()),
        "rows.json": json.dumps(rows).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with (folder / "semi.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("id", "text"), *zip(IDS, TEXTS, strict=True)])
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    pa.feather.write_feather(pa.table({"id": IDS, "text": TEXTS}), str(folder / "rows.feather"))
    with sqlite3.connect(folder / "rows.db") as database:
        database.execute("CREATE TABLE t (id, text)")
        database.executemany("INSERT INTO t VALUES (?, ?)", zip(IDS, TEXTS, strict=True))
    names = ["rows.csv.gz", "utf16.csv", "semi.csv", "rows.jsonl.gz", "rows.json", "saved", "rows.feather", "rows.db"]
    return {name: folder / name for name in names}


def test_tables_of_other_kinds_give_the_same_predictions_and_leave_no_copy(predict, expected, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    for name, path in other_kinds(tmp_path).items():
        for written in (".csv", ".parquet"):
            rows = predict(path, f"out{written}")
            assert [(row["id"], row["text"]) for row in rows] == list(zip(IDS, TEXTS, strict=True)), name
            assert [row["label"] for row in rows] == [row["label"] for row in expected], name
    assert list((tmp_path / "scratch").iterdir()) == []


def test_quotes_of_the_text_swallow_no_rows_in_prediction(predict, tmp_path, caplog):
    texts = ["a", '"b', "c", 'd"', "e"]
    (tmp_path / "in.tsv").write_text("".join(f"{text}\tx\n" for text in ["text", *texts]))
    assert [row["text"] for row in predict(tmp_path / "in.tsv")] == texts
    assert "in.tsv: its quotes belong to the text" in caplog.text


def test_an_option_of_reading_is_taken_in_prediction(predict, tmp_path):
    (tmp_path / "in.csv").write_text('1,"two\n2,lines"\n', encoding="cp1252")
    rows = predict(tmp_path / "in.csv", no_header=True, quote="none", text_column=["2"])
    assert [(row["1"], row["2"]) for row in rows] == [("1", '"two'), ("2", 'lines"')]


def test_a_copied_table_is_named_as_the_user_named_it(predict, tmp_path):
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"text,id\na,1\n ,2\n"))
    with pytest.raises(TableError, match=rf"^{tmp_path}/in.csv.gz, row 2 .*, column 'text': the text is empty"):
        predict(tmp_path / "in.csv.gz", empty_text="error")


def test_a_table_of_one_column_keeps_its_empty_texts(predict, tmp_path):
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b'text\na\n""\nb\n'))
    assert [row["text"] for row in predict(tmp_path / "in.csv.gz", empty_text="skip")] == ["a", "", "b"]


def test_columns_without_a_name_are_kept_under_their_number(predict, tmp_path):
    (tmp_path / "in.csv").write_text("text,,\na,x,y\n")
    assert list(predict(tmp_path / "in.csv")[0]) == ["text", "2", "3", "label", "score"]


def test_a_full_disk_for_copies_is_named(predict, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plain_copies, "open_writer", full)
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(b"text,id\na,1\n"))
    with pytest.raises(TableError, match="in.csv.gz could not be copied to .*No space left on device.*set TMPDIR"):
        predict(tmp_path / "in.csv.gz", empty_text="error")


def test_bytes_in_a_database_are_refused(predict, tmp_path):
    with sqlite3.connect(tmp_path / "rows.db") as database:
        database.execute("CREATE TABLE t (text, image)")
        database.execute("INSERT INTO t VALUES ('a', x'00ff')")
    with pytest.raises(TableError, match="rows.db:t: column 'image' holds bytes, which has no text form; leave it out"):
        predict(tmp_path / "rows.db")


def test_a_table_of_thousands_of_columns_is_predicted(predict, tmp_path):
    names = ["text", *(f"c{number}" for number in range(20_000))]
    (tmp_path / "in.csv").write_text("\n".join(",".join(row) for row in (names, ["a film"] + ["1"] * 20_000)) + "\n")
    assert list(predict(tmp_path / "in.csv")[0]) == [*names, "label", "score"]


# Columns that are called like ours


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_given_labels_and_scores_are_kept_under_another_name_and_it_is_said(predict, tmp_path, expected, suffix):
    columns = {"label": ["x", "y", "z", "x", "y"], "text": TEXTS, "score": ["1", "2", "3", "4", "5"]}
    rows = predict(write_table(tmp_path / f"in{suffix}", columns), f"out{suffix}")
    assert list(rows[0]) == ["label_given", "text", "score_given", "label", "score"]
    assert [row["label_given"] for row in rows] == columns["label"]
    assert [row["score_given"] for row in rows] == columns["score"]
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    assert predict.said == [
        "the input's column 'label' is kept as 'label_given'; 'label' is the prediction",
        "the input's column 'score' is kept as 'score_given'; 'score' is the prediction",
    ]


def test_a_name_that_would_stand_twice_is_refused(predict, tmp_path):
    source = write_table(tmp_path / "in.csv", {"label": ["x"], "label_given": ["y"], "text": ["It works."]})
    with pytest.raises(TableError, match="output would have two columns 'label_given'; rename the input's"):
        predict(source)


def test_a_json_name_that_turns_up_late_is_renamed_too(predict, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "It works."}\n{"text": "So", "label": 5}\n', encoding="utf-8")
    first, second = predict(source, "out.jsonl")
    assert list(first) == ["text", "label", "score"]
    assert list(second) == ["text", "label_given", "label", "score"]
    assert second["label_given"] == 5


# Formulas of spreadsheets

RISKY = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(1)", "\tx", "\rx", "a=b", "'=x"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_labels_and_texts_that_a_spreadsheet_would_run_are_escaped_if_asked(
    predict, save_tiny_classifier, tmp_path, suffix
):
    model = save_tiny_classifier(tmp_path / "m", labels=("=cmd", "+1"))
    columns = {"text": RISKY, "n": ["-1.5", "+2", "-x", "@a", "1", "=1", "", "-0"]}
    source = write_table(tmp_path / "in.jsonl", columns)
    settings = {"model": model, "all_scores": True}
    plain = predict(source, f"plain{suffix}", **settings)
    assert [row["text"] for row in plain] == RISKY
    assert {row["label"] for row in plain} <= {"=cmd", "+1"}
    assert predict.said == [
        "note: the label '=cmd' begins like a formula, which a spreadsheet would run; --escape_formulas true writes an "
        "apostrophe before it, and before such texts"
    ]
    rows = predict(source, f"out{suffix}", escape_formulas=True, **settings)
    assert predict.said == []
    assert [row["text"] for row in rows] == [*(f"'{text}" for text in RISKY[:6]), "a=b", "'=x"]
    assert [row["n"] for row in rows] == ["-1.5", "+2", "'-x", "'@a", "1", "'=1", "", "-0"]
    assert [row["label"] for row in rows] == [f"'{row['label']}" for row in plain]
    assert [row["score"] for row in rows] == [row["score"] for row in plain]
    assert list(rows[0])[-2:] == ["score_=cmd", "score_+1"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files_that_no_spreadsheet_opens_keep_their_cells(predict, save_tiny_classifier, tmp_path, suffix):
    model = save_tiny_classifier(tmp_path / "m", labels=("=cmd", "+1"))
    source = write_table(tmp_path / "in.csv", {"text": RISKY})
    rows = predict(source, f"out{suffix}", model=model, escape_formulas=True)
    assert [row["text"] for row in rows] == RISKY
    assert predict.said == []


# Bad input: nothing is predicted, nothing is written


def bad_file(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "id,txet\n1,x\n", "there is no column 'text'; there are id, txet; did you mean 'txet'"),
        ("d.csv", b"text\n\xc3\xa4\ncaf\xe9\n", r"d.csv is not UTF-8: byte 11 \(line 3\)"),
        ("e.csv", "text,id\nx,1\ny\n", "e.csv, row 2 .* has 1 fields, the header has 2"),
        ("f.csv", 'text,id\n"x" y, z,1\na,2\n', "f.csv, row 1 .* is not valid CSV: .*look for an unmatched quote"),
        ("g.csv", "text,text\nx,y\n", "the column name 'text' is there twice; rename one of the columns"),
        ("h.csv", "text,id\n", "h.csv: the table is empty, it has no rows to predict"),
        ("i.jsonl", "", "i.jsonl is empty: it has no header and no rows"),
        ("j.jsonl", '{"text": "x"}\n{"text": [5]}\n', "j.jsonl, row 2 .*the text must be a string, got list"),
        ("k.jsonl", '{"text": "x"}\n[1]\n', "k.jsonl, row 2 must be a JSON object"),
        ("l.jsonl", '{"text": "x"}\n{"text": \n', "l.jsonl, row 2 is not a JSON object on one line"),
        ("m.jsonl", '{"text": "x", "text": "y"}\n', "m.jsonl, row 1 .* the name 'text' is there twice"),
        ("n.csv", "text\nx\0y\n", "n.csv, row 1 .*'text': the text holds a NUL byte at character 1; remove it"),
        ("o.jsonl", '{"text": "x\\ud800"}\n', "o.jsonl, row 1 .*: character 1 of the text is half of a surrogate pair"),
        ("p.parquet", "PAR1 cut", "p.parquet is not a readable Parquet file"),
        ("q.docx", "", "q.docx: unknown extension '.docx'; known are .csv, .tsv, .jsonl, .json, .parquet, .arrow"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_row_and_column(predict, tmp_path, name, content, words):
    path = bad_file(tmp_path, name, content)
    with pytest.raises(TableError, match=words):
        predict(path)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "content"), [("b.csv", "text,id\nx,1\n ,2\n"), ("c.jsonl", '{"text": "x"}\n{"id": 1}\n')]
)
def test_the_first_row_without_text_is_named_if_asked_for(predict, tmp_path, name, content):
    words = rf"{name}, row 2 \(header not counted\), column 'text': the text is empty; .* or set empty_text to skip"
    with pytest.raises(TableError, match=words):
        predict(bad_file(tmp_path, name, content), empty_text="error")
    with pytest.raises(ValueError, match="empty_text must be one of error, skip, got 'skipp'; did you mean 'skip'?"):
        predict(bad_file(tmp_path, name, content), empty_text="skipp")


def test_numbers_count_as_their_text_and_are_reported(predict, tmp_path, tiny_classifier_folder):
    source = bad_file(tmp_path, "in.jsonl", '{"text": 5}\n{"text": "x"}\n{"text": 1.5}\n{"text": null}\n')
    rows = predict(source, "out.jsonl")
    wanted = Predictor.load(tiny_classifier_folder).predict(["5", "x", "1.5"])
    assert [row["label"] for row in rows] == [*(row["label"] for row in wanted), None]
    assert [row["score"] for row in rows[:3]] == pytest.approx([row["score"] for row in wanted], abs=1e-5)
    assert any(line.startswith("note: 2 of 4 texts of ") and "are numbers" in line for line in predict.said)
    assert "note: 1 of 4 rows have no text; their label and score are empty" in predict.said


def test_a_missing_file_is_named(predict, tmp_path):
    with pytest.raises(TableError, match="there is no file .*nowhere.csv"):
        predict(tmp_path / "nowhere.csv")


def test_a_row_that_is_wrong_at_the_end_of_the_file_is_found_before_anything_is_predicted(
    predict, tmp_path, monkeypatch
):
    path = bad_file(tmp_path, "in.csv", "text,id\n" + "It works.,1\n" * 20 + "x,1,2\n")
    monkeypatch.setattr(Predictor, "predict", lambda self, texts: pytest.fail("a text was predicted"))
    with pytest.raises(TableError, match="row 21 .* has 3 fields, the header has 2"):
        predict(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_without_text_can_be_skipped_and_keep_their_place(predict, tmp_path, suffix):
    source = write_table(tmp_path / "in.csv", {"id": ["1", "2", "3"], "text": ["", "It works.", " \n"]})
    rows = predict(source, f"out{suffix}", all_scores=True)
    nothing = "" if suffix in (".csv", ".tsv") else None
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    assert [row["label"] == nothing for row in rows] == [True, False, True]
    assert [row["score_fair"] == nothing for row in rows] == [True, False, True]
    assert (predict.summary.rows, predict.summary.skipped) == (3, 2)
    assert str(predict.summary).startswith("3 rows, 2 of them without text in ")


def test_text_that_csv_cannot_hold_is_refused_and_nothing_is_left(predict, tmp_path):
    source = bad_file(tmp_path, "in.jsonl", '{"text": "x", "note": "\\ud800"}\n')
    with pytest.raises(TableError, match=r"in.jsonl: half of a surrogate pair is in 'x,.*, which .csv cannot keep"):
        predict(source, "out.csv")
    with pytest.raises(
        TableError, match=r"column 'note' cannot be kept in Parquet \(.*surrogates not allowed\); write"
    ):
        predict(source, "out.parquet")
    assert sorted(tmp_path.iterdir()) == [source]
    assert predict(source, "out.jsonl")[0]["note"] == "\ud800"


def test_a_file_that_changes_between_the_two_readings_is_refused(predict, table_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_files, "_count_rows", lambda *_args, **_settings: 4)
    with pytest.raises(TableError, match="in.csv changed while it was read: 4 rows, then 5; run again"):
        predict(table_csv)
    assert sorted(tmp_path.iterdir()) == [table_csv]


# Settings that contradict one another


def test_the_input_is_not_overwritten(predict, table_csv, tmp_path):
    before = table_csv.read_bytes()
    (tmp_path / "link.csv").symlink_to(table_csv)
    for name in ("in.csv", "link.csv"):
        with pytest.raises(ValueError, match="the input file, .*in.csv; give another name, the input is never"):
            predict(table_csv, name)
    assert table_csv.read_bytes() == before


def test_an_output_of_unknown_suffix_is_refused(predict, table_csv):
    with pytest.raises(TableError, match=r"out.xlsx: unknown suffix '.xlsx'"):
        predict(table_csv, "out.xlsx")


def test_an_output_that_is_a_folder_is_refused(predict, table_csv, tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(ValueError, match=r"output_file .*out.csv is a folder; give a file's name in it"):
        predict(table_csv)


def test_chunks_of_no_rows_are_refused(predict, table_csv):
    with pytest.raises(ValueError, match="chunk_rows must be 1 or more, got 0"):
        predict(table_csv, chunk_rows=0)


def test_no_text_column_is_refused(predict, table_csv):
    with pytest.raises(ValueError, match="text_column is empty; name at least one column"):
        predict(table_csv, text_column=[])


def test_several_processes_do_not_write_one_file(predict, table_csv, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(ValueError, match="one file is written by one process, got 2; give output_dir, a folder of par"):
        predict(table_csv)


def test_several_files_are_not_written_to_one_without_parts(tiny_classifier_folder, table_csv, tmp_path):
    settings = PredictFileSettings(str(tiny_classifier_folder), [str(table_csv)] * 2, str(tmp_path / "out.csv"))
    with pytest.raises(ValueError, match="2 files are predicted into a folder of parts; give output_dir, and beside"):
        predict_file(settings)


def test_somewhere_to_write_must_be_named(tiny_classifier_folder, table_csv):
    with pytest.raises(ValueError, match="no output is named; give output_file, or output_dir for a folder"):
        predict_file(PredictFileSettings(str(tiny_classifier_folder), [str(table_csv)]))


def test_no_input_and_a_pattern_that_fits_no_file_are_refused(tiny_classifier_folder, tmp_path):
    with pytest.raises(ValueError, match="input_file is empty; name at least one file"):
        predict_file(PredictFileSettings(str(tiny_classifier_folder), [], "out.csv"))
    with pytest.raises(TableError, match=r"no file fits the pattern .*nothing-\*.csv"):
        predict_file(PredictFileSettings(str(tiny_classifier_folder), [str(tmp_path / "nothing-*.csv")], "out.csv"))


@pytest.mark.parametrize("folder", ["plain", "run [1]", "a*b"])
def test_a_pattern_is_looked_for_in_a_folder_whose_name_has_marks_of_patterns(predict, table_csv, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "one.csv").write_bytes(table_csv.read_bytes())
    assert [row["text"] for row in predict(tmp_path / folder / "*.csv")] == TEXTS


# The output is whole or as it was


class FullDisk:
    """A writer that fails on its second chunk."""

    def __init__(self, writer):
        self.writer, self.chunks = writer, 0

    def write(self, chunk):
        self.chunks += 1
        if self.chunks == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.writer.write(chunk)

    def close(self):
        self.writer.close()


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "out.csv")
    with pytest.raises(
        OutputError, match=r"could not write: .*out.csv is a pipe; what is written is complete or absent"
    ):
        with whole_file(tmp_path / "out.csv"):
            raise AssertionError("nothing is to be done")
    assert (tmp_path / "out.csv").is_fifo()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_earlier_output_as_it_was(predict, table_csv, tmp_path, monkeypatch, suffix):
    (tmp_path / f"out{suffix}").write_text("earlier")
    whole = predict_files.open_writer
    monkeypatch.setattr(predict_files, "open_writer", lambda *given, **named: FullDisk(whole(*given, **named)))
    with pytest.raises(
        OSError, match="could not write .*: No space left on device; what was there before is untouched"
    ):
        predict(table_csv, f"out{suffix}")
    assert (tmp_path / f"out{suffix}").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", f"out{suffix}"]


def test_the_output_has_its_name_only_when_it_is_whole(predict, table_csv, tmp_path, monkeypatch):
    seen: list[bool] = []
    original = Predictor.predict

    def watching(self, texts):
        seen.append((tmp_path / "deep" / "out.csv").exists())
        return original(self, texts)

    monkeypatch.setattr(Predictor, "predict", watching)
    predict(table_csv, "deep/out.csv")
    assert seen == [False] * 4  # the columns' types, and three pieces
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.csv"]


# Memory

MEASURE = """
import sys
import psutil
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.predict.files import PredictFileSettings, predict_file

sizes = []

def predict(self, texts):
    sizes.append(psutil.Process().memory_info().rss)
    return [{"label": "bad", "score": 0.5, "scores": {}} for _ in texts]

Predictor.predict = predict
model, folder, chunk_rows = sys.argv[1:]
for suffix in (".csv", ".jsonl", ".parquet"):
    for output, name in (("output_file", f"_out{suffix}"), ("output_dir", f"_parts{suffix}")):
        peaks = []
        for size in ("small", "large"):
            sizes.clear()
            files = {"input_file": f"{folder}/{size}{suffix}", output: f"{folder}/{size}{name}"}
            predict_file(PredictFileSettings(model=model, chunk_rows=int(chunk_rows), **files))
            peaks.append(max(sizes))
        print(peaks[1] - peaks[0])
"""


def test_a_large_file_takes_no_more_memory_than_a_small_one(tiny_classifier_folder, tmp_path):
    text = "The film was dull, and its ending was duller. " * 40
    for size, count in (("small", 500), ("large", 10_000)):
        for suffix in (".csv", ".jsonl", ".parquet"):
            write_table(tmp_path / f"{size}{suffix}", {"text": [f"{row} {text}" for row in range(count)]})
    command = [sys.executable, "-c", MEASURE, tiny_classifier_folder, tmp_path, "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = [int(line) for line in done.stdout.split()]
    assert len(grown) == 3 * 2  # a file, and a folder of parts
    for suffix in (".csv", ".jsonl", ".parquet"):
        assert len(read_table(tmp_path / f"large_out{suffix}")) == 10_000
        assert len(read_parts(tmp_path / f"large_parts{suffix}")) == 10_000
    assert max(grown) < 9_000_000  # bytes; each large file holds 18 MB of text


def test_what_a_killed_prediction_left_goes_and_what_is_the_users_stays(tmp_path):
    for name in (".out.csv.12345678.tmp", ".out.csv.mybackup.tmp", ".other.csv.12345678.tmp"):
        (tmp_path / name).write_text("half")
    with whole_file(tmp_path / "out.csv") as temporary:
        temporary.write_text("new")
        with whole_file(tmp_path / "out.csv") as other:  # leaves what a living one writes alone
            other.write_text("other")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "out.csv": "new",
        ".out.csv.mybackup.tmp": "half",
        ".other.csv.12345678.tmp": "half",
    }


@pytest.mark.parametrize("name", ["file/out.csv", "file/below/out.csv"])
def test_a_result_below_a_file_is_refused_by_what_stands_in_its_way(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    words = (
        rf"could not write {tmp_path / name}: Not a directory; .* A part of the path is a file, not a folder: rename it"
    )
    with pytest.raises(OutputError, match=words):
        with whole_file(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_an_input_that_is_gone_is_not_blamed_on_the_output(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match="in.csv") as caught:
        with whole_file(tmp_path / "out" / "out.csv"):
            (tmp_path / "in" / "in.csv").open()
    assert "could not write" not in str(caught.value)
    with pytest.raises(
        OSError, match="File name too long; what was there before.*take a shorter one or choose another output file"
    ):
        with whole_file(tmp_path / ("a" * 256)):
            pass


# Labels in the type that they were given in


@pytest.fixture(scope="module")
def models_of_types(tmp_path_factory, save_tiny_classifier):
    """Return classifiers of integers, of bools, of text that looks like integers, and of several integers a row."""
    top = tmp_path_factory.mktemp("types")

    def saved(name, labels, kind, **settings):
        return save_tiny_classifier(top / name, labels=labels, ulmfit_pipe={"label_type": kind}, **settings)

    several = {"problem_type": "multi_label_classification", "thresholds": [0.0, 1.0, 0.0]}
    return {
        "int": saved("int", ("0", "1", "10"), "int"),
        "bool": saved("bool", ("False", "True"), "bool"),
        "text": save_tiny_classifier(top / "text", labels=("0", "1", "10")),
        "several": saved("several", ("0", "1", "10"), "int", **several),
    }


def types_of(rows, name):
    return {type(row[name]) for row in rows}


@pytest.mark.parametrize("source", [".jsonl", ".parquet"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("model", "given", "kind"),
    [
        ("int", [0, 1, 10], int),
        ("bool", [True, False, None], bool),
        ("text", ["0", "1", "10"], str),
        ("text", [0, 1, 10], int),  # an older model, which does not know the type of its labels
        ("int", ["0", "1", "10"], str),
        ("int", [None, None, None], int),
    ],
)
def test_the_label_has_the_type_of_the_label_given(
    predict, tmp_path, models_of_types, source, suffix, model, given, kind
):
    path = tmp_path / f"in{source}"
    table = pa.table({"text": TEXTS[:3], "label": given})
    if source == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    rows = predict(path, f"out{suffix}", model=models_of_types[model], all_scores=True)
    assert types_of(rows, "label") == {kind}
    assert [row["label_given"] for row in rows] == given
    scores = {"bool": ("score_False", "score_True")}.get(model, ("score_0", "score_1", "score_10"))
    for row in rows:
        assert row[f"score_{row['label']}"] == max(row[name] for name in scores) == row["score"]


def test_a_parquet_file_has_one_type_of_labels_whatever_the_first_rows_hold(predict, tmp_path, models_of_types):
    path = tmp_path / "in.jsonl"
    given = [None, None, None, 1, 0]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, given, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = predict(path, "out.parquet", model=models_of_types["text"], chunk_rows=2)
    assert types_of(found, "label") == {int}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_cells_of_csv_are_text_and_so_are_the_labels_beside_them(predict, tmp_path, models_of_types, suffix):
    with_labels = write_table(tmp_path / "in.csv", {"text": TEXTS[:2], "label": ["0", "1"]})
    without = write_table(tmp_path / "bare.csv", {"text": TEXTS[:2]})
    rows = predict(with_labels, f"a{suffix}", model=models_of_types["int"])
    assert types_of(rows, "label") == types_of(rows, "label_given") == {str}
    assert types_of(predict(without, f"b{suffix}", model=models_of_types["int"]), "label") == {int}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_several_integers_a_row_are_a_list_of_integers(predict, tmp_path, models_of_types, suffix):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": [0, 10]}) + "\n" for text in TEXTS))
    rows = predict(path, f"out{suffix}", model=models_of_types["several"])
    assert all(row["label"] == row["label_given"] == [0, 10] for row in rows)


@pytest.mark.parametrize("source", [".jsonl", ".parquet"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_several_labels_given_are_joined_as_the_predicted_ones(predict, tmp_path, models_of_types, source, suffix):
    given = [["0", "10"], [], None]
    path = tmp_path / f"in{source}"
    if source == ".parquet":
        pq.write_table(pa.table({"text": TEXTS[:3], "label": given}), path)
    else:
        rows = [{"text": text, "label": label} for text, label in zip(TEXTS[:3], given, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = predict(path, f"out{suffix}", model=models_of_types["several"])
    assert [row["label"] for row in rows] == ["0|10"] * 3
    assert [row["label_given"] for row in rows] == ["0|10", "", ""]
