"""Predictions in parts by two processes (and, among the slow tests, by three): one start, many looks at it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.part_tables import read_parts, read_table, write_table
from tests.support.processes.forked_processes import run_in_processes
from tests.support.processes.shard_runs import SUFFIXES, TEXTS, of_several_processes, predict
from ulmfit_pipe.text.predict.columns import PredictedColumns

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "predict.py"
IDS = [f"{row:03d}" for row in range(len(TEXTS))]

pytestmark = pytest.mark.two_process


def launched(script: Path, *words: object, processes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, str(script), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def folder(request, tmp_path_factory, tiny_classifier_folder, save_tiny_classifier):
    """Return the folder in which several processes have predicted everything."""
    place = tmp_path_factory.mktemp("shards")
    (place / "model").symlink_to(tiny_classifier_folder)
    save_tiny_classifier(place / "other_model", seed=1)
    for suffix in SUFFIXES:
        write_table(place / f"in{suffix}", {"id": IDS, "text": TEXTS})
        write_table(place / f"one{suffix}", {"id": ["one"], "text": ["It works."]})
    write_table(place / "bad.csv", {"id": ["a", "b"], "text": ["It works.", ""]})
    stopped_half_way(place)
    found = run_in_processes(lambda: of_several_processes(place), place / "found", processes=request.param)
    (place / "found.json").write_text(json.dumps(found))
    return place


def stopped_half_way(place: Path) -> None:
    """Leave a folder with two of six parts that one process made."""
    original, calls = PredictedColumns.predict, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictedColumns, "predict", failing)
        with pytest.raises(KeyboardInterrupt):
            predict(place, ["in.csv"], "half")
    times = {file.name: file.stat().st_mtime_ns for file in (place / "half").glob("part-*")}
    assert len(times) == 2
    (place / "half.json").write_text(json.dumps(times))


@pytest.fixture(scope="module")
def found(folder):
    """What each process found."""
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def one(folder):
    """What one process finds in all formats; its parts lie in folders of their own."""
    return {suffix: predict(folder, [f"in{suffix}"], f"of_one{suffix}") for suffix in SUFFIXES}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_processes_write_the_parts_of_one_byte_for_byte(folder, found, one, suffix):
    many = {file.name: file.read_bytes() for file in (folder / f"parts{suffix}").glob("*.*") if file.is_file()}
    assert many == {file.name: file.read_bytes() for file in (folder / f"of_one{suffix}").glob("*.*") if file.is_file()}
    assert len(many) == 6 + 1
    assert [row["id"] for row in read_parts(folder / f"parts{suffix}")] == IDS
    assert read_table(folder / f"joined{suffix}") == read_parts(folder / f"parts{suffix}")
    for result in found:
        assert result[suffix]["labels"] == one[suffix]["labels"]
        assert (result[suffix]["rows"], result[suffix]["before"]) == (11, 0)


def test_fewer_rows_than_processes_are_predicted(folder, found):
    assert [row["id"] for row in read_parts(folder / "one_row")] == ["one"]
    assert all(sum(result["one row"]["labels"].values()) == 1 for result in found)


def test_several_files_are_one_table(folder, found):
    assert [row["id"] for row in read_parts(folder / "three_files")] == [*IDS, "one", *IDS]
    assert all(result["three files"]["rows"] == 23 for result in found)


def test_another_number_of_processes_goes_on_and_leaves_finished_parts_alone(folder, found, one):
    before = json.loads((folder / "half.json").read_text())
    assert {name: (folder / "half" / name).stat().st_mtime_ns for name in before} == before
    for file in (folder / "of_one.csv").glob("*.csv"):
        assert (folder / "half" / file.name).read_bytes() == file.read_bytes()
    assert all(result["resumed"]["before"] == 4 for result in found)
    assert found[0]["resumed"]["said"] == ["2 of 6 parts are there already"]


def test_parts_that_a_process_does_not_come_to_are_made_by_the_others(folder, found):
    assert [row["id"] for row in read_parts(folder / "stuck")] == IDS
    assert all(sum(result["one has no time"]["labels"].values()) == 11 for result in found)


def test_another_model_or_setting_on_one_process_ends_all_before_anything_is_written(folder, found):
    for result in found:
        words = "ProcessError: process 1 is not about to do what process 0 is; it differs in "
        assert result["other model"].startswith(f"{words}model ('folder with digest ")
        assert re.search(r" on process 0, 'folder with digest \w+' on process 1\): start all p", result["other model"])
        assert result["other settings"].startswith(f"{words}output_dir (")
        assert ", settings.chunk_rows (3 on process 0, 4 on process 1): start all" in result["other settings"]
    assert not list(folder.glob("other[01]")) and not (folder / "other").exists()


def test_a_bad_row_that_one_process_finds_ends_all(found):
    words = "bad.csv, row 2 (header not counted), column 'text': the text is empty"
    assert found[1]["bad row"].startswith("TableError: ") and words in found[1]["bad row"]
    assert found[0]["bad row"].startswith("ProcessError: process 1 stopped: ") and words in found[0]["bad row"]


def test_one_file_is_not_written_by_several_processes(found):
    words = f"ValueError: one file is written by one process, got {len(found)}; give output_dir"
    assert all(result["one file"].startswith(words) for result in found)


def test_only_the_main_process_says_what_is_there_already(found):
    assert [len(result["resumed"]["said"]) for result in found] == [1, *[0] * (len(found) - 1)]


@pytest.mark.slow
def test_a_killed_process_ends_the_recipe_and_one_process_goes_on(tmp_path, tiny_classifier_folder):
    count = 800
    write_table(
        tmp_path / "in.csv",
        {"id": [str(row) for row in range(count)], "text": [TEXTS[row % 11] for row in range(count)]},
    )
    words = ["--model", tiny_classifier_folder, "--input_file", tmp_path / "in.csv", "--part_rows", 5]
    process = launched(RECIPE, *words, "--output_dir", tmp_path / "parts", processes=2)
    try:
        until = time.monotonic() + 300
        while len(list((tmp_path / "parts").glob("part-*"))) < 5 and time.monotonic() < until:
            time.sleep(0.02)
        times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "parts").glob("part-*")}
        workers = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
        os.kill(workers[-1].pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "stopped by SIGTERM; " in errors and " of 160 parts are finished in " in errors
    assert 5 <= len(times) < 160
    done = subprocess.run(
        [sys.executable, RECIPE, *map(str, words), "--output_dir", tmp_path / "parts"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "of 160 parts are there already" in done.stdout
    assert {name: (tmp_path / "parts" / name).stat().st_mtime_ns for name in times} == times
    assert [row["id"] for row in read_parts(tmp_path / "parts")] == [str(row) for row in range(count)]
