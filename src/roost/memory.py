"""How the C library's allocator is set for a daemon that lives for months and moves much."""

from __future__ import annotations

import ctypes

LARGE_BYTES = 2 * 2**20  # more than the pieces files and output move in, made anew all the time
_SETTINGS = {  # of <malloc.h>
    -3: LARGE_BYTES,  # M_MMAP_THRESHOLD
    -1: LARGE_BYTES,  # M_TRIM_THRESHOLD
    -8: 1,  # M_ARENA_MAX
}


def give_back() -> None:
    """From now on memory that was freed is the host's again: a buffer of more than ``LARGE_BYTES`` at once,
    the rest but for as much.

    glibc would take the first large buffer that is freed for a habit, and keep a heap for every thread, which
    small things then hold open. Other C libraries have no such settings. Call before the first thread starts.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for name, value in _SETTINGS.items():
            libc.mallopt(name, value)
