"""A prediction in parts that is killed (SIGKILL) before or after anything that changes the disk, and resumed."""

import json

import pytest

from tests.support.part_tables import read_parts, write_table
from tests.support.processes.shard_runs import TEXTS, kill_everywhere

IDS = list(range(len(TEXTS)))


MOMENTS = 2 * (1 + (2 + 2) + (3 + 2) + (1 + 2) + 1)  # before and after the manifest; of each of three parts one to
# three chunks, the record, the part itself; and the manifest again


@pytest.fixture(scope="module", params=[7, pytest.param(1, marks=pytest.mark.slow)])
def folder(request, tmp_path_factory, tiny_classifier_folder):
    """Return the folder in which predictions were killed, at one moment out of so many, and resumed."""
    place = tmp_path_factory.mktemp("killed")
    (place / "model").symlink_to(tiny_classifier_folder)
    write_table(place / "in.jsonl", {"id": IDS, "text": TEXTS})
    kill_everywhere(place, request.param)
    return place


def contents(place):
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_a_kill_at_any_moment_changes_nothing_about_the_result(folder):
    wanted = contents(folder / "never")
    assert sorted(wanted)[3] == "manifest.json" and len(wanted) == 3 + 1 + 3
    assert [row["id"] for row in read_parts(folder / "never")] == IDS
    for again in folder.glob("killed*"):
        assert contents(again).keys() == wanted.keys(), again.name
        assert contents(again) == wanted, again.name


def test_finished_parts_are_not_made_again(folder):
    kept = []
    for file in folder.glob("left*.json"):
        left, moment = json.loads(file.read_text()), int(file.stem.removeprefix("left"))
        assert left["killed"] == (moment <= MOMENTS)
        for name, time in left["times"].items():
            assert (folder / f"killed{moment}" / name).stat().st_mtime_ns == time, (file.stem, name)
        kept.append(len(left["times"]))
    assert set(kept) == {0, 1, 2, 3}
