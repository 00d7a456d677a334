import errno
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.support.folder_contents import files_of, no_space
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.storage.atomic import (
    CheckpointError,
    atomic_folder,
    contents_of,
    progress_folder,
    recover_folder,
    write_atomic,
)
from ulmfit_pipe.storage.json_files import read_json, write_json
from ulmfit_pipe.storage.tensor_files import load_tensors, save_tensors


def test_a_folder_takes_its_place_when_the_block_ends(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "deep" / "run") as folder:
            (folder / "file").write_text(text)
            assert folder.parent == tmp_path / "deep"
    assert files_of(tmp_path) == {"deep/run/file": b"two"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("no space left")])
def test_a_full_disk_leaves_the_previous_folder_as_it_was(tmp_path, error):
    path = tmp_path / "run"
    with atomic_folder(path) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(
        CheckpointError,
        match=r"could not save to .*run: [Nn]o space left.*; what was there before is untouched. The disk is full: ",
    ):
        with atomic_folder(path) as folder:
            (folder / "file").write_text("half of the n")
            raise error
    assert files_of(tmp_path) == {"run/file": b"old"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_block_leaves_the_previous_folder_as_it_was(tmp_path, stop):
    path = tmp_path / "run"
    with atomic_folder(path) as folder:
        (folder / "file").write_text("old")
    with pytest.raises(stop):
        with atomic_folder(path):
            raise stop
    assert files_of(tmp_path) == {"run/file": b"old"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_an_interruption_between_the_two_renames_loses_nothing(tmp_path, monkeypatch, stop):
    path = tmp_path / "run"
    with atomic_folder(path) as folder:
        (folder / "file").write_text("old")
    rename = Path.rename

    def interrupted(self, target):
        if self.name.endswith(".tmp"):
            raise stop
        return rename(self, target)

    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)  # as where the system has no such thing
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        with atomic_folder(path) as folder:
            (folder / "file").write_text("new")
    assert files_of(tmp_path) == {"run/file": b"old"}


def test_a_folder_left_aside_by_a_killed_process_is_put_back(tmp_path):
    path = tmp_path / "run"
    with atomic_folder(path) as folder:
        (folder / "file").write_text("old")
    path.rename(tmp_path / ".run.12345678.old")
    recover_folder(path)
    assert files_of(tmp_path) == {"run/file": b"old"}
    recover_folder(path)
    shutil.copytree(path, tmp_path / ".run.12345678.old")
    recover_folder(path)
    assert (path / "file").read_text() == "old"


def test_what_killed_processes_left_is_taken_away_by_the_next_one_that_writes(tmp_path):
    for name in (".run.12345678.tmp", ".run.12345678.old", ".run.abcdefab.tmp", ".run.more.12345678.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("new")
    assert files_of(tmp_path) == {
        ".run.more.12345678.tmp/file": b".run.more.12345678.tmp",  # another folder's
        "run/file": b"new",
    }


def test_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced, rename = [], Path.rename

    def noted(self, target):
        synced.append(f"renamed to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", noted)
    monkeypatch.setattr(atomic, "_sync", lambda path: synced.append(path))
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("new")
    expected = [folder / "deep", folder / "deep" / "file", folder, "renamed to run", tmp_path]
    assert synced == expected


def test_a_full_disk_leaves_the_previous_file_as_it_was(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", b"old")
    monkeypatch.setattr(atomic, "_sync", no_space)
    with pytest.raises(CheckpointError, match="save to .*file: No space left on device; what was there before"):
        write_atomic(tmp_path / "file", b"new")
    assert files_of(tmp_path) == {"file": b"old"}


def test_a_file_that_fails_inside_a_folder_is_reported_under_the_folders_name(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_sync", no_space)
    with pytest.raises(CheckpointError) as caught:
        with atomic_folder(tmp_path / "run") as folder:
            write_json(folder / "a.json", {})
    assert str(tmp_path / "run" / "a.json") in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_away_while_it_is_replaced(tmp_path, monkeypatch):
    path, away = tmp_path / "run", []
    for text in ("old", "new"):
        with atomic_folder(path) as folder:
            (folder / "file").write_text(text)
            if text == "new":
                for name in ("rename", "replace"):
                    rename = getattr(Path, name)
                    monkeypatch.setattr(
                        Path, name, lambda self, to, rename=rename: (rename(self, to), away.append(not path.exists()))
                    )
    assert files_of(tmp_path) == {"run/file": b"new"}
    assert not any(away)


def test_a_folder_of_a_living_process_is_left_alone_and_several_can_write_one_name(tmp_path):
    path = tmp_path / "run"
    with atomic_folder(path) as first:
        (first / "file").write_text("first")
        with atomic_folder(path) as second:
            (second / "file").write_text("second")
        assert files_of(tmp_path) == {"run/file": b"second", f"{first.name}/file": b"first"}
    assert files_of(tmp_path) == {"run/file": b"first"}


def test_the_users_own_hidden_files_are_not_taken_for_left_overs(tmp_path):
    for name in (".a.json.mybackup.tmp", ".a.json.12345678.tmp.gz", ".b.json.12345678.tmp", ".a.json.deadbeef.old"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".a.json.0badcafe.tmp").symlink_to(tmp_path / ".b.json.12345678.tmp")
    before = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / ".a.json.12345678.tmp").write_text("half of what a killed proc")
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "a.json"])


def test_a_name_that_just_fits_the_disk_can_be_written(tmp_path):
    write_json(tmp_path / ("a" * 250), 1)
    with atomic_folder(tmp_path / ("b" * 250)) as folder:
        (folder / "file").write_text("new")
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [250, 250]
    with pytest.raises(
        CheckpointError,
        match=r"could not save to .*aaa: File name too long.*too long for the disk: take a shorter one or choose",
    ):
        write_json(tmp_path / ("a" * 256), 1)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EROFS, "The disk is read-only: make it writable or choose another output folder, then run again"),
        (errno.EACCES, "This account has no permission there: change the permissions (chmod, chown) or choose ano"),
        (errno.EPERM, "This account has no permission there: change"),
        (
            errno.EDQUOT,
            "The disk quota of this account is used up: delete files of yours, have it raised or",
        ),
        (errno.EMFILE, "This process has too many files open: raise the limit (ulimit -n) or choose another output"),
        (errno.ENOLCK, "The disk failed: look after it or choose another output folder, then run again"),
    ],
)
def test_a_place_that_refuses_is_told_by_its_reason_although_nothing_can_be_cleaned_up(
    tmp_path, monkeypatch, number, advice
):
    def refuse(self, *_args, **_options):
        raise OSError(number, os.strerror(number), str(self))

    for name in ("write_bytes", "unlink", "mkdir"):
        monkeypatch.setattr(Path, name, refuse)
    words = f"could not save to .*: {os.strerror(number)}; what was there before is untouched. {re.escape(advice)}"
    with pytest.raises(CheckpointError, match=words):
        write_atomic(tmp_path / "file", b"new")
    with pytest.raises(CheckpointError, match=words):
        with atomic_folder(tmp_path / "run"):
            pass


def test_a_path_below_a_file_is_told_what_is_the_matter(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(CheckpointError, match="Not a directory.*A part of the path is a file, not a folder: rename"):
        write_json(tmp_path / "file" / "deep" / "a.json", {})


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(CheckpointError, match=f"could not save: {path} is {kind}; what is written is complete or"):
            write_json(path, {})
        with pytest.raises(CheckpointError, match=f"could not save: {path} is {kind}; .*: give a name for one"):
            with atomic_folder(path):
                raise AssertionError("nothing is to be done")
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


# ---- folders that have to stay where they are


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A folder that behaves as the mount point of a disk."""
    path, rename, exchange = tmp_path / "volume", Path.rename, atomic._exchange
    path.mkdir()
    (path / "lost+found").mkdir()

    def busy(self, target):
        if path in (self, Path(target)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(atomic, "_exchange", lambda *two: path not in two and exchange(*two))
    return path


@pytest.mark.parametrize("known", [True, False], ids=["known as a mount", "found out by EBUSY"])
def test_a_mounted_folder_gets_its_files_and_loses_the_old_ones(mounted, monkeypatch, known):
    monkeypatch.setattr(os.path, "ismount", lambda path: known and Path(path) == mounted)
    for text in ("old", "new"):
        with atomic_folder(mounted) as folder:
            for name in ("stage.json", f"only {text}", "deep/file"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
            assert not known or folder.parent == mounted  # the disk that has the room
    assert files_of(mounted) == {"stage.json": b"new", "only new": b"new", "deep/file": b"new"}
    assert sorted(os.listdir(mounted)) == ["deep", "lost+found", "only new", "stage.json"]
    assert os.listdir(mounted.parent) == ["volume"]


@pytest.mark.parametrize("name", ["a.json", "b.json", "stage.json"])
def test_a_kill_while_a_mounted_folder_is_filled_loses_nothing(mounted, monkeypatch, name):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    replace = Path.replace

    def killed(self, target):
        if self.name == name:
            raise KeyboardInterrupt
        return replace(self, target)

    with atomic_folder(mounted) as folder:
        (folder / "old").write_text("old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        with atomic_folder(mounted) as folder:
            for each in ("a.json", "b.json", "stage.json"):
                (folder / each).write_text(each)
    recover_folder(mounted)
    assert files_of(mounted) == {each: each.encode() for each in ("a.json", "b.json", "stage.json")}


def test_progress_of_a_mounted_folder_is_on_its_disk_and_does_not_count_as_its_contents(mounted, monkeypatch):
    assert progress_folder(mounted) == mounted.parent / ".volume.progress"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == mounted)
    assert progress_folder(mounted) == mounted / ".volume.progress"
    progress_folder(mounted).mkdir()
    assert contents_of(mounted) == []
    (mounted / "own").write_text("")
    assert contents_of(mounted) == ["own"]


def test_a_folder_whose_parent_is_not_writable_is_filled_where_it_is(tmp_path, monkeypatch):
    path = tmp_path / "locked" / "run"
    path.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path.parent)
    with atomic_folder(path) as folder:
        (folder / "file").write_text("new")
    assert folder.parent == path
    assert files_of(tmp_path) == {"locked/run/file": b"new"}


def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "scratch").mkdir()
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "scratch")
    for text in ("old", "new"):
        with atomic_folder(link) as folder:
            (folder / "file").write_text(text)
    assert link.is_symlink()
    assert files_of(tmp_path / "scratch") == {"file": b"new"}
    assert sorted(os.listdir(tmp_path)) == ["run", "scratch"]
    assert progress_folder(link) == tmp_path / ".scratch.progress"


def test_json_comes_back_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "é"})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None], "a": "é"}


def test_json_that_is_missing_or_cut_short_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.json does not exist; give the folder"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": [1, 2')
    with pytest.raises(CheckpointError, match=r"a\.json is not a whole JSON file .*cut short: save it again"):
        read_json(tmp_path / "a.json")


def test_tensors_come_back_bit_identical(tmp_path):
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(5), "c": torch.randn(3, 2).T}
    digest = save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors", sha256=digest)
    assert sorted(loaded) == ["a", "b", "c"] and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_tensors_cut_short_altered_or_missing_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    digest = save_tensors(path, {"a": torch.randn(2, 3)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="cannot be read .* it was cut short; take an earlier save"):
        load_tensors(path)
    path.write_bytes(whole[:-1] + b"\x00" if whole[-1] else whole[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="is not the file that was saved .its SHA-256 differs"):
        load_tensors(path, sha256=digest)
    with pytest.raises(CheckpointError, match=r"missing\.safetensors does not exist"):
        load_tensors(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("name", ["m.pkl", "m.pickle", "m.pth", "m.pt", "m.bin", "m.ckpt", "m.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_pickles_are_refused_by_name_and_by_content(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "torch":
        torch.save({"a": torch.ones(1)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="is a pickled checkpoint, which can run code when read, so"):
        load_tensors(path)


def test_saved_files_have_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    with atomic_folder(tmp_path / "saved") as folder:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)
    assert (tmp_path / "saved" / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode
