"""A prediction in parts that is killed (SIGKILL) before or after anything that changes the disk, and gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from part_tables import read_parts, write_table
from shard_runs import TEXTS

HERE = Path(__file__).parent
IDS = list(range(len(TEXTS)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_classifier_folder):
    """Return the folder in which predictions were killed and gone on with."""
    place = tmp_path_factory.mktemp("killed")
    (place / "model").symlink_to(tiny_classifier_folder)
    write_table(place / "in.jsonl", {"id": IDS, "text": TEXTS})
    paths = os.pathsep.join(map(str, (HERE.parents[1], HERE)))
    done = subprocess.run(
        [sys.executable, HERE / "shard_runs.py", "kill", place],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return place


def test_a_kill_at_any_moment_changes_nothing_about_the_result(folder):
    moments = sorted(folder.glob("left*.json"))
    # the manifest; of each of three parts one or two chunks, the record, the part; the manifest, the records' folder
    assert len(moments) == 2 * (1 + (2 + 2) + (2 + 2) + (1 + 2) + 1 + 1) + 1
    wanted = {file.name: file.read_bytes() for file in (folder / "never").iterdir()}
    assert sorted(wanted)[0] == "manifest.json" and len(wanted) == 4
    assert [row["id"] for row in read_parts(folder / "never")] == IDS
    for number in range(1, len(moments) + 1):
        found = {file.name: file.read_bytes() for file in (folder / f"killed{number}").iterdir()}
        assert found == wanted, f"killed at moment {number}"


def test_finished_parts_are_not_made_again(folder):
    kept = []
    for file in folder.glob("left*.json"):
        left = json.loads(file.read_text())
        again = folder / file.stem.replace("left", "killed")
        for name, time in left["times"].items():
            assert (again / name).stat().st_mtime_ns == time, (file.stem, name)
        kept.append(len(left["times"]))
        assert left["killed"] == (file.stem != f"left{len(list(folder.glob('left*.json')))}")
    assert {0, 1, 2, 3} == set(kept)
