"""SIGTERM: noted while a training runs, raised elsewhere, and the exit code that says try again later."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ulmfit_pipe.training.preemption import EXIT_PREEMPTED, Preempted, noting_sigterm, sigterm_raises

ROOT = Path(__file__).parents[2]


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
    lines = ["from ulmfit_pipe.training.preemption import Preempted", "try:", "    raise Preempted('x')"]
    lines += ["except Exception:", "    pass"]  # it is none: no handler of errors swallows it
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=False)
    assert done.returncode == 75
