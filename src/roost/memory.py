"""The one setting of the C library's allocator that matters to a daemon that lives for months."""

from __future__ import annotations

import ctypes

LARGE_BYTES = (
    2 * 1024 * 1024
)  # above the pieces files come and go in, whose pages would be faulted in anew each time
KEPT_BYTES = 8 * 1024 * 1024  # at the end of a heap
_M_TRIM_THRESHOLD = -1  # of <malloc.h>
_M_MMAP_THRESHOLD = -3


def give_back_large() -> None:
    """From now on a freed buffer of ``LARGE_BYTES`` or more is the host's again at once.

    glibc begins so, but takes the first large one that is freed for a habit and keeps all later ones of its
    size in heaps that other things then hold open. Other C libraries have no such setting.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
