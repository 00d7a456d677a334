"""Prediction in parts by one process: the order of rows, parts that are whole or absent, and going on with them."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.part_tables import read_parts, read_table, write_table
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.settings.prediction import PredictFileSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage.locks import lock
from ulmfit_pipe.text.predict import shards as predict_shards
from ulmfit_pipe.text.predict.columns import PredictedColumns
from ulmfit_pipe.text.predict.files import predict_file
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.predict.shards import plan_parts
from ulmfit_pipe.training.resume.preemption import Preempted, sigterm_raises

TEXTS = [
    "The film was dull, and its ending was duller.",
    'She said "no",\ntwice.',
    "A warm and funny story about three brothers. " * 9,
    "It works; the actors seem to enjoy every minute.",
    "Nobody expected the music to be this good! ",
]
IDS = ["007", "1e3", "", "-0", "NULL"]
COLUMNS = {"id": IDS, "text": TEXTS}
SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


@pytest.fixture(scope="module")
def loaded(tiny_classifier_folder):
    return Predictor.load(tiny_classifier_folder)


@pytest.fixture
def predict(tiny_classifier_folder, loaded, tmp_path, monkeypatch):
    """Return a function that predicts files into a folder, two rows a part; it gives the summary."""
    monkeypatch.setattr(Predictor, "load", lambda *_given, **_named: loaded)

    def run(*sources: Path, output_dir: str | None = "parts", output_file: str | None = None, **settings):
        run.said = said = []
        numbers = PredictFileSettings(
            model=str(settings.pop("model", tiny_classifier_folder)),
            input_file=[str(source) for source in sources],
            output_dir=None if output_dir is None else str(tmp_path / output_dir),
            output_file=None if output_file is None else str(tmp_path / output_file),
            **{"part_rows": 2, "chunk_rows": 2, **settings},
        )
        return predict_file(numbers, context=RunContext(say=said.append))

    return run


@pytest.fixture
def table_csv(tmp_path):
    return write_table(tmp_path / "in.csv", COLUMNS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def failing_at(monkeypatch, call: int, error: BaseException) -> None:
    """Let the prediction of a chunk raise, the first one being 1."""
    original, calls = PredictedColumns.predict, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*arguments)

    monkeypatch.setattr(PredictedColumns, "predict", failing)


@pytest.fixture
def half(predict, table_csv, tmp_path):
    """Return the folder of a prediction that was broken off after two of three parts."""
    with pytest.MonkeyPatch.context() as patch:
        failing_at(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            predict(table_csv)
    return tmp_path / "parts"


# The rows


@pytest.mark.parametrize("written", SUFFIXES)
@pytest.mark.parametrize("given", SUFFIXES)
def test_parts_in_the_order_of_their_names_are_the_rows_that_one_file_holds(predict, tmp_path, given, written):
    source = write_table(tmp_path / f"in{given}", COLUMNS)
    summary = predict(source, part_format=written[1:])
    predict(source, output_dir=None, output_file=f"single{written}", part_rows=None)
    names = [f"part-000000001-000000002{written}", f"part-000000003-000000004{written}"]
    assert sorted(file.name for file in (tmp_path / "parts").iterdir()) == [
        ".records",
        "manifest.json",
        *names,
        f"part-000000005-000000005{written}",
    ]
    assert read_parts(tmp_path / "parts") == read_table(tmp_path / f"single{written}")
    assert (summary.rows, summary.done_before, summary.output_file) == (5, 0, tmp_path / "parts")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_joined_parts_are_the_file_that_one_process_writes(predict, tmp_path, suffix):
    source = write_table(tmp_path / f"in{suffix}", {"a\nname, in two lines": IDS, "text": TEXTS})
    summary = predict(source, output_file=f"joined{suffix}")
    predict(source, output_dir=None, output_file=f"single{suffix}")
    joined, single = tmp_path / f"joined{suffix}", tmp_path / f"single{suffix}"
    assert summary.output_file == joined
    if suffix == ".parquet":
        assert pq.read_table(joined).equals(pq.read_table(single), check_metadata=True)
    else:
        assert joined.read_bytes() == single.read_bytes()


def test_parts_of_escaped_cells_are_joined_with_their_header(predict, tmp_path):
    source = write_table(tmp_path / "in.csv", {"=id": IDS, "text": ["=x", *TEXTS[1:]]})
    predict(source, output_file="joined.csv", escape_formulas=True)
    predict(source, output_dir=None, output_file="single.csv", escape_formulas=True)
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "single.csv").read_bytes()
    assert list(read_table(tmp_path / "joined.csv")[0]) == ["'=id", "text", "label", "score"]
    assert read_table(tmp_path / "joined.csv")[0]["text"] == "'=x"


def test_the_size_of_parts_does_not_change_the_rows(predict, table_csv, tmp_path):
    for part_rows in (1, 3, 5, 99):
        predict(table_csv, output_dir=f"of{part_rows}", part_rows=part_rows, chunk_rows=1)
        assert len(manifest_of(tmp_path / f"of{part_rows}")["parts"]) == -(-5 // part_rows)
    rows = [read_parts(tmp_path / f"of{part_rows}") for part_rows in (1, 3, 5, 99)]
    assert rows == [rows[0]] * 4


def test_by_default_parts_have_1024_rows_or_more_where_there_would_be_many(predict, table_csv, tmp_path, monkeypatch):
    predict(table_csv, part_rows=None)
    assert [part["rows"] for part in manifest_of(tmp_path / "parts")["parts"]] == [5]
    assert (predict_shards.PART_ROWS, predict_shards.MOST_PARTS) == (1024, 1000)
    monkeypatch.setattr(predict_shards, "PART_ROWS", 1)
    monkeypatch.setattr(predict_shards, "MOST_PARTS", 2)
    predict(table_csv, output_dir="few", part_rows=None)
    assert [part["rows"] for part in manifest_of(tmp_path / "few")["parts"]] == [3, 2]


def test_several_files_are_one_table_whose_rows_are_counted_through(predict, tmp_path):
    sources = [write_table(tmp_path / f"{name}.jsonl", COLUMNS) for name in "cab"]
    predict(*sources, output_file="joined.jsonl")
    assert [row["id"] for row in read_table(tmp_path / "joined.jsonl")] == IDS * 3
    entries = manifest_of(tmp_path / "parts")["parts"]
    assert [(entry["first_row"], entry["input"], entry["input_row"]) for entry in entries] == [
        (1, 1, 1),
        (3, 1, 3),
        (5, 1, 5),
        (6, 2, 1),
        (8, 2, 3),
        (10, 2, 5),
        (11, 3, 1),
        (13, 3, 3),
        (15, 3, 5),
    ]
    predict(tmp_path / "[abc].jsonl", output_dir="fitting")
    assert manifest_of(tmp_path / "fitting")["inputs"] == [str(tmp_path / f"{name}.jsonl") for name in "abc"]


def test_names_of_parts_grow_where_rows_have_more_than_nine_digits():
    parts = plan_parts([2_000_000_001], part_rows=2_000_000_000, suffix=".csv")
    assert [part.file for part in parts] == ["part-0000000001-2000000000.csv", "part-2000000001-2000000001.csv"]


def test_json_names_of_all_files_are_columns_of_all_parts(predict, tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"text": "It works.", "n": 1}\n')
    second.write_text('{"text": "So", "n": 1.5, "label": [true]}\n')
    predict(first, second, part_format="parquet", output_file="joined.parquet")
    assert predict.said == ["the input's column 'label' is kept as 'label_given'; 'label' is the prediction"]
    table = pq.read_table(tmp_path / "joined.parquet")
    assert table.column_names == ["text", "n", "label_given", "label", "score"]
    assert table["n"].to_pylist() == [1.0, 1.5] and table["label_given"].to_pylist() == [None, [True]]


def test_the_summary_counts_labels_skipped_rows_and_those_finished_before(predict, tmp_path, loaded):
    source = write_table(tmp_path / "in.csv", {"text": [*TEXTS[:2], "", *TEXTS[2:]]})
    wanted = [row["label"] for row in loaded.predict(TEXTS)]
    for before in (0, 6):
        summary = predict(source, empty_text="skip")
        assert (summary.rows, summary.skipped, summary.done_before) == (6, 1, before)
        assert summary.labels == {name: wanted.count(name) for name in ("bad", "fair", "good")}
    assert str(summary).startswith("6 rows, 1 of them without text, 6 of them finished before in ")
    assert " s (0.00 s predicting, 0 per second)\n" in str(summary)


def test_rows_without_a_label_for_their_low_score_are_counted_over_all_parts(predict, table_csv, tmp_path, loaded):
    scores = sorted(row["score"] for row in loaded.predict(TEXTS))
    summary = predict(table_csv, abstain_below=scores[3] - 1e-6, output_file="all.csv")
    assert (summary.abstained, sum(summary.labels.values())) == (3, 2)
    assert sum(row["label"] == "" for row in read_table(tmp_path / "all.csv")) == 3
    assert predict(table_csv, abstain_below=scores[3] - 1e-6).abstained == 3  # all parts are there already
    with pytest.raises(ArtifactError, match="it differs in settings.abstain_below"):
        predict(table_csv)


def test_the_speed_counts_the_prediction_alone(predict, table_csv, monkeypatch):
    original = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda *given: (time.sleep(0.2), original(*given))[1])
    parts = predict(table_csv)  # three
    single = predict(table_csv, output_dir=None, output_file="single.csv")
    assert 3 * 0.2 <= parts.predicting < parts.seconds
    assert 4 * 0.2 <= single.predicting < single.seconds
    words = f" s ({parts.predicting:.2f} s predicting, {5 / parts.predicting:,.0f} per second)"
    assert words in str(parts).splitlines()[0]


# Going on


def test_a_finished_prediction_is_not_made_again(predict, table_csv, tmp_path, monkeypatch):
    predict(table_csv)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    failing_at(monkeypatch, 1, AssertionError("predicted again"))
    summary = predict(table_csv, output_file="joined.csv")
    assert predict.said == [f"every part is there already, in {tmp_path / 'parts'}"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()} == times
    assert summary.done_before == 5
    assert [row["id"] for row in read_table(tmp_path / "joined.csv")] == IDS


def test_a_broken_off_prediction_ends_as_one_that_was_not(predict, table_csv, half, tmp_path):
    assert len(list(half.glob("part-*"))) == 2
    times = {file: file.stat().st_mtime_ns for file in half.glob("part-*")}
    (half / ".part-x.csv.1234.tmp").write_text("of a process that was killed")
    summary = predict(table_csv)
    assert predict.said == ["2 of 3 parts are there already"]
    assert summary.done_before == 4
    assert {file: file.stat().st_mtime_ns for file in times} == times
    predict(table_csv, output_dir="whole")
    assert contents(half) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("finished", "damage"),
    [
        (False, "cut"),
        (False, "altered"),
        (False, "record gone"),
        (False, "record cut"),
        (True, "cut"),
        (True, "altered"),
    ],
)
def test_a_damaged_part_is_found_and_made_again(predict, table_csv, half, tmp_path, damage, finished):
    if finished:
        predict(table_csv)
    part = half / "part-000000001-000000002.csv"
    content = part.read_bytes()
    if damage == "cut":
        part.write_bytes(content[:-3])
    elif damage == "altered":
        part.write_bytes(content.replace(b"007", b"700"))
    else:
        record = half / ".records" / f"{part.name}.json"
        record.write_text("{") if damage == "record cut" else record.unlink()
    summary = predict(table_csv)
    assert predict.said[0] == (f"{part} was cut short or altered since it was written; it is made again")
    assert part.read_bytes() == content
    assert summary.done_before == (3 if finished else 2)
    predict(table_csv, output_dir="whole")
    assert contents(half) == contents(tmp_path / "whole")


def test_a_missing_part_of_a_finished_prediction_is_made_again(predict, table_csv, tmp_path):
    predict(table_csv)
    before = contents(tmp_path / "parts")
    (tmp_path / "parts" / "part-000000003-000000004.csv").unlink()
    assert predict(table_csv).done_before == 3
    assert contents(tmp_path / "parts") == before


def test_an_input_is_read_once_for_all_its_parts(predict, tmp_path, monkeypatch):
    sources = [write_table(tmp_path / f"{name}.parquet", COLUMNS) for name in "ab"]
    original, read = predict_shards.read_chunks, []

    def noting(source, *given):
        read.append(source)
        return original(source, *given)

    monkeypatch.setattr(predict_shards, "read_chunks", noting)
    predict(*sources)
    assert read == sources
    assert [row["id"] for row in read_parts(tmp_path / "parts")] == IDS * 2


def test_a_changed_input_is_refused_with_the_difference(predict, table_csv, half):
    before = contents(half)
    table_csv.write_text(table_csv.read_text().replace("dull,", "DULL,"))
    words = r"holds the parts of another prediction; it differs in .*in.csv: sha256 \('.* there, '.* now\)\. Choose"
    with pytest.raises(ArtifactError, match=words):
        predict(table_csv)
    with table_csv.open("a") as file:
        file.write("x,One more.\n")
    with pytest.raises(ArtifactError, match=r"in.csv: bytes \(\d+ there, \d+ now\), .*in.csv: sha256"):
        predict(table_csv)
    assert contents(half) == before


def test_another_number_of_inputs_is_refused(predict, table_csv, half):
    with pytest.raises(ArtifactError, match=r"it differs in inputs.2 .*, inputs.number \(1 there, 2 now\)\. Choose"):
        predict(table_csv, table_csv)


def test_an_input_that_was_renamed_is_the_same_one(predict, table_csv, half, tmp_path):
    moved = table_csv.rename(tmp_path / "moved.csv")
    assert predict(moved).done_before == 4


def test_another_model_is_refused(predict, table_csv, half, save_tiny_classifier, tmp_path):
    other = save_tiny_classifier(tmp_path / "other", seed=1)
    words = r"it differs in model \('folder with digest \w+' there, 'folder with digest \w+' now\)"
    with pytest.raises(ArtifactError, match=words):
        predict(table_csv, model=other)


def test_a_backward_model_that_came_later_is_refused(predict, table_csv, save_tiny_classifier, tmp_path):
    model = save_tiny_classifier(tmp_path / "two")
    predict(table_csv, model=model)
    save_tiny_classifier(model / "backward", seed=1)
    with pytest.raises(ArtifactError, match=r"it differs in backward model \(None there, 'folder with digest"):
        predict(table_csv, model=model)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"all_scores": True}, r"settings.all_scores \(False there, True now\)"),
        ({"part_rows": 3}, r"settings.part_rows \(2 there, 3 now\)"),
        ({"part_format": "jsonl"}, r"settings.part_format \('csv' there, 'jsonl' now\)"),
        ({"text_column": ["id"], "empty_text": "error"}, r"settings.empty_text .*, settings.text_column \(\['text'\]"),
    ],
)
def test_other_settings_are_refused(predict, table_csv, half, changed, words):
    with pytest.raises(ArtifactError, match=words):
        predict(table_csv, **changed)


def test_other_versions_are_named_and_gone_on_with(predict, table_csv, half):
    record = manifest_of(half)
    record["versions"]["torch"] = "1.13"
    (half / "manifest.json").write_text(json.dumps(record))
    assert predict(table_csv).rows == 5
    assert predict.said[0].startswith("the parts that are there are of other versions, torch ('1.13' there, ")


# Being stopped


def test_sigterm_ends_it_at_once_and_says_what_is_finished(predict, table_csv, tmp_path, monkeypatch):
    original, calls = PredictedColumns.predict, []

    def told(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch, sigterm_raises("of the recipe"):
        patch.setattr(PredictedColumns, "predict", told)
        with pytest.raises(Preempted) as stopped:
            predict(table_csv)
    assert stopped.value.code == 75
    assert str(stopped.value) == (
        f"stopped by SIGTERM; 1 of 3 parts are finished in {tmp_path / 'parts'}; run the same command again to continue"
    )
    assert sorted(path.name for path in (tmp_path / "parts").glob("*.csv")) == ["part-000000001-000000002.csv"]
    assert predict(table_csv).done_before == 2


class FullDisk:
    """A writer that finds no room."""

    def write(self, _chunk):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
        pass


def test_a_full_disk_leaves_the_parts_that_are_finished(predict, table_csv, half, monkeypatch):
    parts = {name: content for name, content in contents(half).items() if name.startswith("part-")}
    with monkeypatch.context() as patch:
        patch.setattr(predict_shards, "open_writer", lambda path, *_given, **_named: (path.touch(), FullDisk())[1])
        with pytest.raises(
            OSError, match=r"could not write .*part-000000005-000000005.csv: No space left on device; wh"
        ):
            predict(table_csv)
    left = contents(half)
    assert {name: content for name, content in left.items() if name.startswith("part-")} == parts
    assert predict(table_csv).done_before == 4


def test_an_input_that_is_cut_while_it_is_read_is_refused(predict, table_csv, tmp_path, monkeypatch):
    original = predict_shards.ShardedJob._make

    def cut_first(self, *arguments, **named):
        table_csv.write_bytes(table_csv.read_bytes()[:-60])
        original(self, *arguments, **named)

    monkeypatch.setattr(predict_shards.ShardedJob, "_make", cut_first)
    with pytest.raises(TableError, match="in.csv, or another input, changed while it was read; run again"):
        predict(table_csv)


# Bad input: nothing is predicted, nothing is written


def test_an_empty_file_among_others_is_refused(predict, table_csv, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("id,text\n")
    with pytest.raises(TableError, match="empty.csv: the table is empty, it has no rows to predict"):
        predict(table_csv, empty)
    assert not (tmp_path / "parts").exists()


def test_a_bad_row_is_named_before_anything_is_written(predict, table_csv, tmp_path):
    bad = write_table(tmp_path / "bad.csv", {"id": ["1", "2"], "text": ["fine", " "]})
    with pytest.raises(TableError, match=r"bad.csv, row 2 \(header not counted\), column 'text': the text is empty"):
        predict(table_csv, bad, empty_text="error")
    assert not (tmp_path / "parts").exists()


def test_files_with_other_columns_or_types_are_no_one_table(predict, table_csv, tmp_path):
    other = write_table(tmp_path / "other.csv", {"text": ["x"], "id": ["1"]})
    with pytest.raises(TableError, match=r"other.csv has other columns than .*in.csv, .*\(text, id and id, text\)"):
        predict(table_csv, other)
    for name, kind in (("a", pa.int8()), ("b", pa.int16())):
        pq.write_table(pa.table({"n": pa.array([1], kind), "text": ["x"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(TableError, match="b.parquet has other columns than .*a.parquet, or others in type or order"):
        predict(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert predict(tmp_path / "a.parquet", tmp_path / "b.parquet", part_format="csv").rows == 2


def test_json_values_without_a_common_type_are_not_kept_in_parquet(predict, tmp_path):
    for name, value in (("a", '"one"'), ("b", "1")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "x", "n": {value}}}\n')
    with pytest.raises(TableError, match="b.jsonl: .*; Parquet needs one type per column, write .jsonl"):
        predict(tmp_path / "a.jsonl", tmp_path / "b.jsonl", part_format="parquet")


def test_several_kinds_of_input_are_refused(predict, table_csv, tmp_path):
    other = write_table(tmp_path / "in.jsonl", COLUMNS)
    with pytest.raises(
        ValueError, match=r"the input files are of several kinds, .csv, .jsonl; predict each kind by it"
    ):
        predict(table_csv, other)


def test_parts_and_the_joined_file_are_of_one_kind(predict, table_csv):
    with pytest.raises(ValueError, match="parts of part_format jsonl cannot be joined to .*out.csv; leave part_format"):
        predict(table_csv, output_file="out.csv", part_format="jsonl")


def test_parts_of_no_rows_are_refused(predict, table_csv):
    with pytest.raises(ValueError, match="part_rows must be 1 or more, got 0"):
        predict(table_csv, part_rows=0)


def test_the_folder_of_parts_must_be_a_predictions_own(predict, table_csv, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"output_dir .*file is a file; choose another folder"):
        predict(table_csv, output_dir="file")
    (tmp_path / "taken").mkdir()
    for name in ("manifest.json", "notes.txt"):
        (tmp_path / "taken" / name).write_text("{}")
        with pytest.raises(
            ArtifactError,
            match="taken holds files that are not of a prediction, or its manifest.json is damaged; choose",
        ):
            predict(table_csv, output_dir="taken")
    with pytest.raises(ValueError, match=r"the input .*in.csv is in output_dir; choose another folder for the parts"):
        predict(table_csv, output_dir=".")


def test_all_scores_of_a_multi_label_model_are_in_the_parts(table_csv, tmp_path, tiny_multi_label_folder):
    settings = {"part_rows": 2, "all_scores": True, "part_format": "jsonl", "output_dir": str(tmp_path / "parts")}
    predict_file(
        PredictFileSettings(str(tiny_multi_label_folder), [str(table_csv)], **settings),
        context=RunContext(say=[].append),
    )
    wanted = Predictor.load(tiny_multi_label_folder).predict(TEXTS)
    rows = read_parts(tmp_path / "parts")
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    assert list(rows[0])[-4:] == ["score_funny", "score_long", "score_sad", "score_warm"]


# Processes without a place to meet: each has a number and a count


@pytest.fixture
def as_process(monkeypatch):
    """Return a function by which this process is one of several from then on."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)

    def become(rank: int, count: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return become


def noting_parts(monkeypatch) -> list[str]:
    """Note the parts that are made from now on, in their order."""
    made, original = [], predict_shards.ShardedJob._write
    monkeypatch.setattr(
        predict_shards.ShardedJob, "_write", lambda job, part, rows: (made.append(part.file), original(job, part, rows))
    )
    return made


def test_each_process_makes_its_own_parts_then_the_later_half_of_the_others_and_waits_for_the_last_one(
    predict, tmp_path, monkeypatch, as_process
):
    """The other one is gone: its last missing part is waited for, as it may be at it, and made in the end."""
    source = write_table(tmp_path / "in.csv", {"text": TEXTS * 2})
    as_process(1, 2)
    made, waited = noting_parts(monkeypatch), []
    monkeypatch.setattr(predict_shards.time, "sleep", waited.append)
    monkeypatch.setattr(predict_shards, "LEAST_PATIENCE", 0.2)
    summary = predict(source, part_rows=1)
    numbers = [int(name[5:14]) for name in made]
    assert numbers[:5] == [2, 4, 6, 8, 10]  # every second part of ten
    assert numbers[5:] == [5, 7, 9, 3, 1]  # of 1, 3, 5, 7, 9 the later half, of 1, 3 the later half, and 1
    assert set(waited) == {predict_shards.POLL_SECONDS}
    assert (summary.rows, sum(summary.labels.values())) == (10, 10)


@pytest.mark.parametrize(("before", "now"), [(3, 2), (2, 1), (1, 3)])
def test_the_number_of_processes_may_change_and_the_result_is_that_of_one(
    predict, tmp_path, monkeypatch, as_process, before, now
):
    source = write_table(tmp_path / "in.csv", COLUMNS)
    predict(source, output_dir="alone", part_rows=1)
    as_process(before - 1, before)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        failing_at(patch, 2, KeyboardInterrupt())
        predict(source, part_rows=1)
    monkeypatch.setattr(predict_shards, "LEAST_PATIENCE", 0.0)
    as_process(0, now)
    predict(source, part_rows=1)
    assert contents(tmp_path / "parts") == contents(tmp_path / "alone")


def test_a_part_that_another_process_made_meanwhile_is_not_made_again(predict, table_csv, tmp_path, monkeypatch):
    predict(table_csv, output_dir="other")
    made, original = noting_parts(monkeypatch), PredictedColumns.predict

    def other_is_faster(*given):
        for name in ("part-000000005-000000005.csv", ".records/part-000000005-000000005.csv.json"):
            (tmp_path / "parts" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "parts" / name).write_bytes((tmp_path / "other" / name).read_bytes())
        return original(*given)

    monkeypatch.setattr(PredictedColumns, "predict", other_is_faster)
    predict(table_csv)
    assert made == ["part-000000001-000000002.csv", "part-000000003-000000004.csv"]
    assert contents(tmp_path / "parts") == contents(tmp_path / "other")


def test_a_part_that_is_taken_away_while_others_are_made_is_made_again(predict, table_csv, tmp_path, monkeypatch):
    first, original, calls = tmp_path / "parts" / "part-000000001-000000002.csv", PredictedColumns.predict, []

    def taking_away(*given):
        calls.append(1)
        if len(calls) == 3:
            first.unlink()
        return original(*given)

    monkeypatch.setattr(PredictedColumns, "predict", taking_away)
    made = noting_parts(monkeypatch)
    assert predict(table_csv).rows == 5
    assert made[3:] == made[:1] == [first.name]
    assert [row["id"] for row in read_parts(tmp_path / "parts")] == IDS


def test_a_folder_that_another_prediction_has_taken_meanwhile_is_left_to_it(predict, table_csv, tmp_path, monkeypatch):
    original = PredictedColumns.predict

    def taken(*given):
        manifest = manifest_of(tmp_path / "parts")
        manifest["identity"]["model"] = "folder with digest 0123456789abcdef"
        (tmp_path / "parts" / "manifest.json").write_text(json.dumps(manifest))
        return original(*given)

    monkeypatch.setattr(PredictedColumns, "predict", taken)
    with pytest.raises(ArtifactError, match=r"differs in model \('folder with digest 0123456789abcdef' there, "):
        predict(table_csv)
    assert len(list((tmp_path / "parts").glob("part-*"))) == 1


def test_one_file_is_written_by_one_process_however_it_was_started(predict, table_csv, as_process):
    as_process(1, 3)
    with pytest.raises(ValueError, match="one file is written by one process, got 3; give output_dir"):
        predict(table_csv, output_dir=None, output_file="out.csv")


# What is in the folder is not believed


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"rows": 5000, "labels": {"good": 2000}, "skipped": "many", "cut": None},
        {"parts": []},
        {"parts": [{"file": "../victim.txt", "rows": 2, "sha256": "0"}] * 3},
        {"parts": None, "columns": [["text"]], "inputs": None},
    ],
)
def test_a_manifest_that_was_altered_changes_nothing(predict, table_csv, half, tmp_path, change, finished):
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    if finished:
        predict(table_csv)
    wanted = predict(table_csv, output_dir="whole").labels
    (half / "manifest.json").write_text(json.dumps({**manifest_of(half), **change}))
    summary = predict(table_csv)
    assert (summary.rows, summary.skipped, summary.labels) == (5, 0, wanted)
    assert contents(half) == contents(tmp_path / "whole")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("identity", ["missing", None, [], "x"])
def test_a_manifest_without_the_facts_of_its_parts_is_refused_by_name(predict, table_csv, half, identity):
    manifest = manifest_of(half)
    manifest.pop("identity")
    (half / "manifest.json").write_text(
        json.dumps(manifest if identity == "missing" else manifest | {"identity": identity})
    )
    words = "manifest.json does not record the model, settings and input of its parts .no 'identity' in it.: it was"
    with pytest.raises(
        ArtifactError, match=rf"^{half}/{words} damaged or altered. Choose another output_dir, or remove"
    ):
        predict(table_csv)


@pytest.mark.parametrize("change", [{"labels": {"good": 9}}, {"rows": 9, "sha256": None}, {"seal": "0" * 64}])
def test_a_record_that_was_altered_has_its_part_made_again(predict, table_csv, half, tmp_path, change):
    record = half / ".records" / "part-000000001-000000002.csv.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    assert predict(table_csv).done_before == 2
    predict(table_csv, output_dir="whole")
    assert contents(half) == contents(tmp_path / "whole")


def test_a_part_of_another_prediction_is_made_again(predict, table_csv, half, save_tiny_classifier, tmp_path):
    other = save_tiny_classifier(tmp_path / "other_model", seed=1)
    predict(table_csv, model=other, output_dir="other")
    for name in ("part-000000001-000000002.csv", ".records/part-000000001-000000002.csv.json"):
        (half / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert predict(table_csv).done_before == 2
    predict(table_csv, output_dir="whole")
    assert contents(half) == contents(tmp_path / "whole")


def test_nothing_is_read_or_written_through_links(predict, table_csv, half, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    part, last = half / "part-000000001-000000002.csv", half / "part-000000005-000000005.csv"
    part.rename(outside / "part.csv")
    part.symlink_to(outside / "part.csv")
    last.symlink_to(outside / "new.csv")
    before = contents(outside)
    assert predict(table_csv).done_before == 2
    assert contents(outside) == before and not part.is_symlink() and not last.is_symlink()
    (half / ".records").rename(outside / "records")
    (half / ".records").symlink_to(outside / "records")
    with pytest.raises(ArtifactError, match=r"\.records is a link, and nothing is written through one; remove it"):
        predict(table_csv)
    (half / ".records").unlink()
    (half / "manifest.json").rename(outside / "manifest.json")
    (half / "manifest.json").symlink_to(outside / "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest.json is a link, and nothing is written through one; remove it"):
        predict(table_csv)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_part_is_replaced(predict, table_csv, half):
    part = half / "part-000000001-000000002.csv"
    part.unlink()
    os.mkfifo(part)
    assert predict(table_csv).done_before == 2
    assert [row["id"] for row in read_parts(half)] == IDS


@pytest.mark.parametrize("change", [{"format": 1}, {"versions": None}])
def test_a_folder_of_another_version_is_refused_with_advice(predict, table_csv, half, change):
    record = {**manifest_of(half), **change}
    (half / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match="holds the parts of another version of ulmfit_pipe, which cannot be conti"):
        predict(table_csv)


def test_a_damaged_manifest_is_named(predict, table_csv, half):
    (half / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(
        ArtifactError, match="not of a prediction, or its manifest.json is damaged; choose another output"
    ):
        predict(table_csv)


def test_a_file_that_another_process_is_writing_is_left_alone(predict, table_csv, half):
    live, left = half / ".part-000000005-000000005.csv.0123abcd.tmp", half / ".part-000000005-000000005.csv.x.tmp"
    left.write_text("of a process that was killed")
    with lock(live):
        assert predict(table_csv).rows == 5
        assert live.exists() and not left.exists()


def test_an_input_that_is_gone_while_it_is_read_is_told_as_that(predict, table_csv, tmp_path, monkeypatch):
    original = PredictedColumns.predict
    monkeypatch.setattr(PredictedColumns, "predict", lambda *given: (table_csv.unlink(), original(*given))[1])
    with pytest.raises(TableError, match="in.csv cannot be read: No such file or directory; was it moved or deleted"):
        predict(table_csv)
    assert not list((tmp_path / "parts").glob("part-*"))


def test_a_manifest_that_another_process_writes_meanwhile_is_no_foreign_file(predict, table_csv, half, monkeypatch):
    manifest = half / "manifest.json"
    content = manifest.read_bytes()
    for file in half.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    read = predict_shards._json_in
    written = []

    def read_and_written_then(path):
        """Find no manifest at first, and have another process write it right behind the look."""
        found = read(path)
        if path == manifest and not written:
            written.append(manifest.write_bytes(content))
        return found

    monkeypatch.setattr(predict_shards, "_json_in", read_and_written_then)
    assert predict(table_csv).done_before == 0
    assert [row["id"] for row in read_parts(half)] == IDS
