import json
import math
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ulmfit_pipe.storage import atomic
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training.resume import checkpoint_store
from ulmfit_pipe.training.resume.checkpoint_store import (
    checkpoint_path,
    checkpoints_in,
    drop_all_but,
    load_part,
    newest_whole,
    read_checkpoint,
    read_state,
    tidy,
    write_checkpoint,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "_sync", lambda _path: None)


def write(folder, step, state=None, **tensors):
    path = checkpoint_path(folder, step)
    parts = {"model.safetensors": tensors or {"a": torch.arange(3.0)}}
    write_checkpoint(path, {"step": step, **(state or {})}, tensors=parts, contents={"rank-0": b"bytes"})
    return path


def test_what_was_written_is_read_also_numbers_that_json_does_not_know(tmp_path):
    state = {"values": [1 / 3, math.inf, -math.inf, math.nan], "deep": {"none": None, "pair": (1, 2.5)}, "text": "é"}
    path = write(tmp_path, 7, state)
    found = read_checkpoint(path)
    assert path.name == "step-00000007"
    assert found["values"][:3] == [1 / 3, math.inf, -math.inf] and math.isnan(found["values"][3])
    assert (found["deep"], found["text"], found["step"]) == ({"none": None, "pair": [1, 2.5]}, "é", 7)
    assert list(found["files"]) == ["model.safetensors", "rank-0"]
    assert "NaN" not in (path / "state.json").read_text()
    assert load_part(path, "model.safetensors")["a"].tolist() == [0.0, 1.0, 2.0]


def test_tensors_that_share_memory_or_are_parts_of_others_are_written_alone(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    path = write(tmp_path, 1, whole=whole, again=whole.view(6), column=whole[:, 1], turned=whole.T)
    found = load_part(path, "model.safetensors")
    assert found["again"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["column"].tolist() == [1, 4]
    assert torch.equal(found["turned"], whole.T)


def test_a_changed_state_is_known_by_its_digest(tmp_path):
    path = write(tmp_path, 1, {"epoch": 2})
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"epoch": 2', '"epoch": 3'))
    with pytest.raises(CheckpointError, match="state.json was altered: its SHA-256 differs"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"state": {}})])
def test_a_state_that_is_no_whole_record_cannot_be_read(tmp_path, content):
    path = write(tmp_path, 1)
    (path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state.json cannot be read \("):
        read_checkpoint(path)


def test_the_newest_whole_one_counts(tmp_path):
    said = []
    assert newest_whole(tmp_path, said.append) is None
    first, second, third = (write(tmp_path, step) for step in (2, 30, 4))
    assert checkpoints_in(tmp_path) == [first, third, second]
    assert newest_whole(tmp_path, said.append)[0] == second
    (second / "rank-0").write_bytes(b"byte")
    assert newest_whole(tmp_path, said.append)[0] == third
    assert said == [
        f"checkpoint step-00000030 is damaged and left out, the one before it is taken: {second / 'rank-0'} was cut "
        "short or altered: its SHA-256 differs"
    ]


def test_the_state_alone_is_read_without_a_look_at_the_other_files(tmp_path):
    path = write(tmp_path, 3)
    (path / "model.safetensors").unlink()
    assert read_state(path)["step"] == 3
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        read_checkpoint(path)


def test_tensors_that_were_read_do_not_follow_their_file(tmp_path):
    path = write(tmp_path, 1, a=torch.arange(50_000.0))
    found = load_part(path, "model.safetensors")["a"]
    size = (path / "model.safetensors").stat().st_size
    with (path / "model.safetensors").open("r+b") as file:  # in place: a mapped file would show it
        file.write(b"\xff" * size)
    assert torch.equal(found, torch.arange(50_000.0))


def test_the_last_are_kept_and_those_of_a_future_given_up_are_not(tmp_path):
    paths = {step: write(tmp_path, step) for step in (1, 2, 3, 9)}
    drop_all_but(paths[3], keep=2)
    assert checkpoints_in(tmp_path) == [paths[2], paths[3]]
    drop_all_but(paths[3], keep=5)
    assert checkpoints_in(tmp_path) == [paths[2], paths[3]]
    drop_all_but(paths[3], keep=1)
    assert checkpoints_in(tmp_path) == [paths[3]]


def test_tidying_puts_back_what_was_between_two_names(tmp_path):
    path, other = write(tmp_path, 1), write(tmp_path, 2)
    path.rename(tmp_path / ".step-00000001.abcdef01.old")
    (tmp_path / ".step-00000002.abcdef01.old").mkdir()
    (tmp_path / ".step-00000003.abcdef01.tmp").mkdir()
    tidy(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, other.name]
    assert read_checkpoint(path)["step"] == 1


FILLING = """
import sys
from pathlib import Path
import torch
from ulmfit_pipe.training.resume import checkpoint_store as store

folder = Path(sys.argv[1])
for step in (1, 2, 3):
    tensors = {"model.safetensors": {"a": torch.full((200_000,), float(step))}}
    try:
        store.write_checkpoint(store.checkpoint_path(folder, step), {"step": step}, tensors=tensors, contents={})
    except store.CheckpointError as error:
        print(error)
print(sorted(path.name for path in folder.iterdir()), store.newest_whole(folder, print)[1]["step"])
"""


def test_a_disk_that_really_is_full_leaves_the_checkpoints_of_before(tmp_path):
    """A file system of 2 MiB of memory, which takes two checkpoints of 800 kB."""
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=2m none "$0"'
    if shutil.which("unshare") is None or subprocess.run([*inside, mount, str(tmp_path)], check=False).returncode:
        pytest.skip("no file system can be mounted here: unshare --mount --map-root-user is refused")
    command = [*inside, mount + ' && exec "$@"', str(tmp_path), sys.executable, "-c", FILLING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message.startswith(f"could not save checkpoint {tmp_path}/step-00000003: ")
    assert "No space left on device" in message
    assert "; it takes about 1 MB and 0 MB are free; the one before, step-00000002, remains. The disk" in message
    assert left == "['step-00000001', 'step-00000002'] 2"


def test_a_writer_that_is_refused_in_the_middle_of_a_file_leaves_nothing_behind(tmp_path):
    path = write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            CheckpointError,
            match="File too large.*; it takes about.*; the one before, step-00000001, remains. The file is l",
        ):
            write(tmp_path, 2, a=torch.zeros(100_003))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert read_checkpoint(path)["step"] == 1


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            OSError(30, "Read-only file system"),
            "Read-only file system; there is none before it. The disk is read-only",
        ),
        (OSError(13, "Permission denied"), "denied; there is none before it. This account has no permission there: c"),
        (OSError(122, "Disk quota exceeded"), "it takes about 1 MB and [0-9,]+ MB are free; .*quota of this account"),
        (
            SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)"),
            "os error 30.; there is none before it. The disk is read-only: make it writable, then run the same command",
        ),
    ],
)
def test_a_checkpoint_that_a_disk_refuses_says_why(tmp_path, monkeypatch, reason, words):
    def refuse(*_args, **_options):
        raise reason

    monkeypatch.setattr(checkpoint_store, "save_file", refuse)
    with pytest.raises(CheckpointError, match=f"could not save checkpoint {tmp_path}/.*{words}.*with --resume true$"):
        write(tmp_path, 1)


def test_no_room_says_how_much_is_needed(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_store, "save_file", full)
    big = torch.zeros(1_000_001, dtype=torch.float32)
    with pytest.raises(
        CheckpointError, match="No space left on device; it takes about 5 MB and [0-9,]+ MB are free; t"
    ):
        write(tmp_path / "deep", 1, a=big)
    assert not (tmp_path / "deep" / "step-00000001").exists()
