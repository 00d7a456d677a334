"""Keeping freed memory changes a property of the whole process, so each case runs in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
# Page faults while the same large block is taken, touched and freed again and again: with memory kept they end once
# the heap has found its shape.
PROGRAM = """
import resource
from ulmfit_pipe.training.compute.process_memory import keep_freed_memory
{first_line}
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(20)
print(faults(5))
"""


def page_faults(first_line, **environment):
    names = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = PROGRAM.format(first_line=first_line)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**names, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_a_freed_block_is_found_again_without_page_faults():
    assert page_faults("assert keep_freed_memory()") < 100
    assert page_faults("") > 5 * 1000  # without it each round maps its pages anew


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_users_own_choice_of_allocation_is_left_alone(name):
    value = "glibc.malloc.mmap_max=65536" if name == "GLIBC_TUNABLES" else "65536"
    assert page_faults("assert not keep_freed_memory()", **{name: value}) > 0


def test_another_c_library_is_left_alone(monkeypatch):
    from ulmfit_pipe.training.compute import process_memory

    monkeypatch.setattr(process_memory.platform, "libc_ver", lambda: ("", ""))
    assert process_memory.keep_freed_memory.__wrapped__() is False
