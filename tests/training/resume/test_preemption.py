"""SIGTERM: noted while a training runs, raised elsewhere, and the exit code that says try again later."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ulmfit_pipe.training.resume import preemption
from ulmfit_pipe.training.resume.preemption import (
    EXIT_PREEMPTED,
    Preempted,
    noting_sigterm,
    sigterm_raises,
    sigterm_when_launcher_ends,
)

ROOT = Path(__file__).parents[3]


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_sets_a_flag_and_does_nothing_else_before_the_block_ends():
    reached = []
    with pytest.raises(Preempted, match="after the last step"), sigterm_raises("after the last step"):
        with noting_sigterm() as came:
            assert not came()
            terminate()
            assert came()
            terminate()
            assert came()
            reached.append("the end of the block")
        reached.append("what comes after it")
    assert reached == ["the end of the block"]


SIGNALS_WITHIN_THE_HANDLER = """
import os, signal, sys
from ulmfit_pipe.training.resume.preemption import noting_sigterm

def again(frame, event, _argument):
    if event == "line" and len(sent) < 50:
        sent.append(frame.f_lineno)
        os.kill(os.getpid(), signal.SIGTERM)
    return again

sent = []
signal.signal(signal.SIGTERM, lambda _number, _frame: None)
with noting_sigterm() as came:
    sys.settrace(again)  # of every function that is called from here on: of the handler, and what it calls
    os.kill(os.getpid(), signal.SIGTERM)
    sys.settrace(None)
    assert came()
    assert sent
"""


def test_another_signal_at_any_line_of_the_handler_does_not_hang():
    done = subprocess.run([sys.executable, "-c", SIGNALS_WITHIN_THE_HANDLER], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_a_signal_that_was_acted_on_is_not_raised_again():
    with sigterm_raises("after the last step"), pytest.raises(Preempted, match="saved at once"):
        with noting_sigterm() as came:
            terminate()
            if came():
                raise Preempted("saved at once")


def test_the_handler_of_before_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError):
        with noting_sigterm():
            raise KeyError
    with sigterm_raises("stop"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_elsewhere_the_signal_raises_also_after_a_training_that_would_have_noted_it():
    with pytest.raises(Preempted, match="told to stop") as caught:
        with sigterm_raises("told to stop"):
            with noting_sigterm() as came:
                assert not came()
            terminate()
    assert caught.value.code == EXIT_PREEMPTED


def test_other_threads_hear_of_no_signal():
    heard = []

    def work():
        with noting_sigterm() as came, sigterm_raises("stop"):
            heard.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]


def test_a_program_that_does_not_catch_it_ends_with_code_75():
    lines = ["from ulmfit_pipe.training.resume.preemption import Preempted", "try:", "    raise Preempted('x')"]
    lines += ["except Exception:", "    pass"]  # it is none: no handler of errors swallows it
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=False)
    assert done.returncode == 75


def test_a_launcher_that_ended_meanwhile_is_as_good_as_its_signal(monkeypatch):
    asked, parents = [], iter([123, 1])
    monkeypatch.setattr(preemption, "_is_launcher", lambda process: process == 123)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(preemption.sys, "platform", "linux")
    monkeypatch.setattr(
        preemption.ctypes, "CDLL", lambda _none: SimpleNamespace(prctl=lambda *call: asked.append(call))
    )
    with pytest.raises(Preempted, match="told to stop"), sigterm_raises("told to stop"):
        sigterm_when_launcher_ends()
    assert asked == [(1, signal.SIGTERM)]


@pytest.mark.parametrize(("system", "words"), [("linux", [b"bash", b"run.sh"]), ("darwin", [b"torchrun", b"x.py"])])
def test_what_no_launcher_started_asks_for_no_signal(monkeypatch, system, words):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(Path, "read_text", lambda _path, **_options: b"\0".join(words).decode())
    monkeypatch.setattr(preemption.sys, "platform", system)
    monkeypatch.setattr(preemption.ctypes, "CDLL", None)
    sigterm_when_launcher_ends()


def test_launchers_are_known_by_their_command_lines(monkeypatch):
    lines = {
        "/venv/bin/python /venv/bin/torchrun recipe.py": True,
        "python -m accelerate.commands.launch recipe.py": True,
        "/sbin/init": False,
        "bash -c accelerate_everything recipe.py": False,
    }
    for line, is_one in lines.items():
        monkeypatch.setattr(Path, "read_text", lambda _path, line=line, **_options: line.replace(" ", "\0"))
        assert preemption._is_launcher(123) == is_one
    monkeypatch.undo()
    assert not preemption._is_launcher(0)  # outside of this container
