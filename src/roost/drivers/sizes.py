"""Sizes that bakes are made for; beyond the last of each, its multiples."""

from __future__ import annotations

from dataclasses import replace

from roost.drivers.interface import Size

MEMORY_MIB = (256, 512, 1024, 2048, 3072, 4096)
STORAGE_GIB = (1, 2, 5, 10, 20, 50, 100)


def rounded(size: Size) -> Size:
    """No smaller: what is in a snapshot knows how much memory and disk it has. Its share of CPUs is the host's to
    bound."""
    return replace(
        size,
        memory_mib=_next(size.memory_mib, MEMORY_MIB),
        storage_gib=_next(size.storage_gib, STORAGE_GIB),
    )


def _next(wanted: int, sizes: tuple[int, ...]) -> int:
    largest = sizes[-1]
    return next((each for each in sizes if each >= wanted), -(-wanted // largest) * largest)
