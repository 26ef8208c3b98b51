"""Who has which blocks of the pool: each block counts once, for the oldest that has it.

Blocks are shared by reflinks alone, so by the files of one family (a machine, its snapshots, its forks and theirs)
and by what everybody starts from, which is free. What only one file has is its owner's, whatever it came from.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from pathlib import Path

from roost.host import fiemap

Range = tuple[int, int]  # first byte, byte after the last


class Ranges:
    """Disjoint ranges of a disk, in order."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted(ranges):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    @property
    def bytes(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def without(self, others: Ranges) -> Ranges:
        left: list[Range] = []
        for start, end in zip(self._starts, self._ends, strict=True):
            i = bisect.bisect_right(others._ends, start)
            while start < end and i < len(others._starts) and others._starts[i] < end:
                if others._starts[i] > start:
                    left.append((start, others._starts[i]))
                start = others._ends[i]
                i += 1
            if start < end:
                left.append((start, end))
        return Ranges(left)

    def joined(self, others: Ranges) -> Ranges:
        return Ranges(
            [
                *zip(self._starts, self._ends, strict=True),
                *zip(others._starts, others._ends, strict=True),
            ]
        )


def look(paths: Iterable[Path]) -> tuple[int, Ranges]:
    """Bytes that one of these files alone has, and where those lie that others have, too. A file that is gone has
    none."""
    alone, shared = 0, []
    for path in paths:
        try:
            found = fiemap.extents(path)
        except FileNotFoundError:
            continue
        for extent in found:
            if extent.shared:
                shared.append((extent.start, extent.start + extent.length))
            else:
                alone += extent.length
    return alone, Ranges(shared)


def shares(family: Sequence[tuple[str, Sequence[Path]]], free: Ranges) -> dict[str, int]:
    """Bytes each of a family, oldest first, has to answer for."""
    taken = Ranges()
    found = {}
    for name, paths in family:
        alone, shared = look(paths)
        own = shared.without(free).without(taken)
        found[name] = alone + own.bytes
        taken = taken.joined(own)
    return found
