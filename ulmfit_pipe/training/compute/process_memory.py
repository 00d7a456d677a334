"""Keep the memory that a training step frees, so that the next step finds it.

A step's largest tensors (a language model's logits: tens of MB) are freed at its end. glibc gives blocks of that size
back to the kernel at once and asks for them again a moment later; every page is then zeroed and mapped anew. That was
half of the time of a language model's step on a CPU: `recipes/benchmark_training.py` measures it.
"""

import ctypes
import functools
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
KEPT_BYTES = 2**31 - 1  # mallopt takes an int
GROWTH_BYTES = 64 * 2**20  # the heap grows by so much at a time


@functools.cache
def keep_freed_memory() -> bool:
    """Make glibc keep what is freed; the process then holds its peak until it ends.

    Does nothing where there is no glibc, or where the user has set one of malloc's own environment variables
    (MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES).

    Returns:
        Whether it was done.
    """
    names = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in names):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, GROWTH_BYTES))
    done = [mallopt(option, value) for option, value in options]  # 1 is success
    return done == [1] * len(options)
