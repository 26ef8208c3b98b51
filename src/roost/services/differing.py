"""What differs between two trees, from two listings of them in the same order. No I/O.

    feed(0, entries) / feed(1, entries) / end(side) --> pairs --> judge: same | what differs | LOOK (into the files)

What nobody wrote to since the two were one has the same times of change, to the nanosecond, and is not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from roost.agent import check
from roost.agent.failures import lied
from roost.agent.v1 import agent_pb2 as pb

_MAX_NS = 253_402_300_799_999 * 1_000_000  # the end of year 9999
_FILE, _DIRECTORY = pb.FILE_KIND_FILE, pb.FILE_KIND_DIRECTORY
_SYMLINK = pb.FILE_KIND_SYMLINK
Pair = tuple[pb.TreeEntry | None, pb.TreeEntry | None]


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"  # what is in it, or where it leads
    TYPE = "type"  # a file became a directory, a link, ...
    MODE = "mode"  # its permissions or owner alone


@dataclass(frozen=True, slots=True)
class Look:
    """Only their contents can tell: the change unless they are the same, and if they are."""

    otherwise: Change | None


class Merge:
    """Two listings side by side. Raises MACHINE_FAILED for one that is not in order."""

    def __init__(self) -> None:
        self._have: tuple[deque[pb.TreeEntry], deque[pb.TreeEntry]] = (deque(), deque())
        self._last: list[bytes | None] = [None, None]
        self._over = [False, False]
        self._cut = [False, False]
        self.cut = False  # one of them is not whole, and what it lacks was reached

    def feed(self, side: int, entries: Sequence[pb.TreeEntry]) -> None:
        last = self._last[side]
        for entry in entries:
            at = order(entry.path)
            if len(at) > check.MAX_PATH or entry.size > check.MAX_COUNT:
                raise lied("Survey", "a path or size is impossible")
            if last is not None and at <= last:
                raise lied("Survey", "its entries are not in order")
            last = at
        self._last[side] = last
        self._have[side].extend(entries)

    def end(self, side: int, cut: bool = False) -> None:
        """``cut``: it is not whole."""
        self._over[side] = True
        self._cut[side] = cut

    def wants(self) -> list[int]:
        """The sides without which it does not go on; none at its end."""
        if self.cut:
            return []
        return [side for side in (0, 1) if not self._have[side] and not self._over[side]]

    def pairs(self) -> Iterator[Pair]:
        """As far as can be told."""
        before, after = self._have
        while not self.wants() and (before or after):
            if self._stops(0) or self._stops(1):
                self.cut = True
                return
            if not after or (before and order(before[0].path) < order(after[0].path)):
                yield before.popleft(), None
            elif not before or order(after[0].path) < order(before[0].path):
                yield None, after.popleft()
            else:
                yield before.popleft(), after.popleft()
        if not self.wants() and (self._stops(0) or self._stops(1)):
            self.cut = True

    def _stops(self, side: int) -> bool:
        """It ended before its tree did: nothing can be said of what the other has from here on."""
        return not self._have[side] and self._cut[side]


def order(path: bytes) -> bytes:
    """A directory's entries come right after it: no name's byte is below the one between names."""
    return path.replace(b"/", b"\0")


def judge(before: pb.TreeEntry | None, after: pb.TreeEntry | None) -> Change | Look | None:
    """None: nothing differs."""
    if before is None or after is None:
        return Change.ADDED if before is None else Change.REMOVED
    if before.kind != after.kind:
        return Change.TYPE
    owned = (before.mode, before.uid, before.gid) == (after.mode, after.uid, after.gid)
    otherwise = None if owned else Change.MODE
    if before.kind == _FILE:
        if before.size != after.size:
            return Change.CHANGED
        written = (before.mtime_unix_ns, before.ctime_unix_ns)
        if before.size and written != (after.mtime_unix_ns, after.ctime_unix_ns):
            return Look(otherwise)
    elif before.kind == _SYMLINK:
        if before.link_target != after.link_target:
            return Change.CHANGED
        return None if (before.uid, before.gid) == (after.uid, after.gid) else Change.MODE
    elif before.kind != _DIRECTORY and before.device != after.device:
        return Change.CHANGED
    return otherwise


def time_ns(said: int) -> int:
    """A file system may hold any time."""
    return said if -_MAX_NS <= said <= _MAX_NS else 0
