"""Locks keep processes apart while they live, and not a moment longer."""

import errno
import os
import signal
import socket
import time

import pytest

from tests.support.processes.forked_processes import kill, other_process
from ulmfit_pipe.storage import locks
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.storage.locks import held, holder, lock


def test_a_lock_is_free_after_an_error_and_is_waited_for_where_asked(tmp_path, monkeypatch):
    path, said, asked = tmp_path / "locks" / ".lock", [], []

    def busy_at_first(_file, how):
        asked.append(how)
        if len(asked) == 1:
            raise BlockingIOError

    with pytest.raises(KeyError), held(path, wait=False):
        raise KeyError
    with held(path, wait=False) as first:
        assert first
        monkeypatch.setattr(locks.fcntl, "flock", busy_at_first)
        with held(path, wait=True, say=said.append) as second:
            assert second
    assert said == [f"another process holds {path}; waiting for it"]
    assert len(asked) == 2


def test_another_process_is_named_and_its_lock_goes_with_it_though_its_workers_live_on(tmp_path):
    path = tmp_path / "lock"

    def lock_and_fork(say):
        file, worker = lock(path), os.fork()
        if worker:
            say(worker)
        time.sleep(600)
        file.close()  # not before

    with other_process(lock_and_fork) as (other, worker):
        try:
            assert lock(path) is None
            assert holder(path) == f"process {other} on {socket.gethostname()}"
            kill(other)
            os.kill(int(worker), 0)  # it lives
            assert holder(path) is None
            with held(path, wait=False) as mine:
                assert mine
        finally:
            os.kill(int(worker), signal.SIGKILL)


def test_a_lock_of_this_process_is_no_other_ones(tmp_path):
    with held(tmp_path / "lock", wait=False):
        assert lock(tmp_path / "lock") is None
        assert holder(tmp_path / "lock") is None
    assert holder(tmp_path / "none") is None


def test_a_file_that_its_last_holder_took_away_is_locked_where_it_is_now(tmp_path, monkeypatch):
    path, real, asked = tmp_path / "lock", locks.fcntl.flock, []

    def flock(file, how):
        asked.append(how)
        if len(asked) == 1:
            path.unlink()
        real(file, how)

    with monkeypatch.context() as patched:
        patched.setattr(locks.fcntl, "flock", flock)
        file = lock(path)
    assert len(asked) == 2
    assert lock(path) is None
    file.close()


@pytest.mark.parametrize("kind", ["system", "disk"])
def test_where_there_are_no_locks_all_goes_on_without(tmp_path, monkeypatch, kind):
    def unknown(_file, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    if kind == "system":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", unknown)
    for _ in range(2):
        assert lock(tmp_path / "lock") is not None
        assert holder(tmp_path / "lock") is None


def make_link(path, victim):
    path.symlink_to(victim)


def make_hard_link(path, victim):
    path.hardlink_to(victim)


def make_pipe(path, _victim):
    os.mkfifo(path)


def make_folder(path, _victim):
    path.mkdir()


def make_dangling_link(path, victim):
    path.symlink_to(victim.with_name("nothing"))


@pytest.mark.parametrize("make", [make_link, make_hard_link, make_pipe, make_folder, make_dangling_link])
def test_what_is_no_lock_file_is_left_alone_and_named(tmp_path, make):
    victim, path = tmp_path / "victim.txt", tmp_path / "run" / ".records" / "lock"
    victim.write_text("precious")
    path.parent.mkdir(parents=True)
    make(path, victim)
    words = r"run/.records/lock is (not a lock file but a|a link to) .* remove it, or choose another output folder"
    for use in (lock, holder, lambda path: held(path, wait=True).__enter__()):
        with pytest.raises(CheckpointError, match=words):
            use(path)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", [".records", ".classifier.progress"])
def test_a_hidden_folder_of_ours_that_is_a_link_is_refused_and_a_users_own_followed(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*/elsewhere; a run writes there itself"):
        lock(tmp_path / name / "lock")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "scratch").symlink_to(tmp_path / "elsewhere")
    with lock(tmp_path / "scratch" / ".cell.lock") as file:
        assert not file.closed
