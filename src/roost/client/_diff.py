"""What differs between two machines' files, and how that reads as a patch. No I/O.

Names and contents come from machines: nothing of them is trusted, and a patch is bounded in what it costs to make.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Any, Literal, Self

from roost.client._types import parse_time

PATCH_BYTES = 256 << 10  # of a file; a larger one is said to differ
PATCH_FILES = 100
_PATCH_LINES = (
    3000  # between what both begin and end with: comparing costs up to the square of them
)
_Code = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]
_SIGNS = {"added": "+", "removed": "-", "changed": "M", "type": "T", "mode": "m"}


@dataclass(frozen=True, slots=True)
class DiffSide:
    """The entry as one of the two machines has it."""

    kind: str  # file, directory, symlink, other
    size: int  # bytes
    mode: int  # permission bits
    uid: int
    gid: int
    mtime: datetime
    link_target: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Self | None:
        if data is None:
            return None
        return cls(
            kind=data["kind"],
            size=int(data["size"]),
            mode=int(str(data["mode"]), 8),
            uid=int(data["uid"]),
            gid=int(data["gid"]),
            mtime=parse_time(data["mtime"]) or datetime.fromtimestamp(0, UTC),
            link_target=data.get("link_target"),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """``unsure``: written to since, and too large to be compared; it may hold the same. ``patch``: where asked for."""

    path: str
    change: (
        str  # added, removed, changed, type (of another kind), mode (permissions or owner alone)
    )
    before: DiffSide | None
    after: DiffSide | None
    unsure: bool = False
    path_bytes: bytes | None = None  # where the path is not UTF-8
    patch: str | None = None

    @property
    def sign(self) -> str:
        """One letter: + - M T m."""
        return _SIGNS.get(self.change, "?")

    @property
    def size(self) -> int:
        """How many bytes it grew; negative: shrank."""
        return (self.after.size if self.after else 0) - (self.before.size if self.before else 0)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        exact = data.get("path_b64")
        return cls(
            path=data["path"],
            change=data["change"],
            before=DiffSide.from_json(data["before"]),
            after=DiffSide.from_json(data["after"]),
            unsure=bool(data["unsure"]),
            path_bytes=base64.b64decode(exact) if exact else None,
        )


@dataclass(frozen=True, slots=True)
class Diff:
    """From one machine to another: "added" is what the other alone has. Iterates over its items, by path.

    ``counts``: of all, by change. ``truncated``: why there may be more, "entries" (trees too large), "items" (a longer
    list), "time"; None: this is all.
    """

    machine_id: str
    other: str
    items: tuple[Difference, ...]
    counts: Mapping[str, int]
    truncated: str | None

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.items)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __bool__(self) -> bool:
        return len(self) > 0

    def of(self, change: str) -> list[str]:
        """The paths of "added", "removed", "changed", "type" or "mode"."""
        return [each.path for each in self.items if each.change == change]

    @property
    def added(self) -> list[str]:
        return self.of("added")

    @property
    def removed(self) -> list[str]:
        return self.of("removed")

    @property
    def changed(self) -> list[str]:
        """Other contents, another kind, or other permissions."""
        return [each.path for each in self.items if each.change not in ("added", "removed")]

    @property
    def patch(self) -> str:
        """Of all that was asked for with ``patch=True``, as one text."""
        return "".join(each.patch for each in self.items if each.patch)

    def summary(self) -> str:
        """For example "+3 -1 M2"."""
        shown = [f"{_SIGNS[k]}{v}" for k, v in self.counts.items() if v and k in _SIGNS]
        more = " ..." if self.truncated in ("entries", "time") else ""
        return (" ".join(shown) or "none") + more

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            machine_id=data["machine_id"],
            other=data["other"],
            items=tuple(Difference.from_json(each) for each in data["items"]),
            counts=dict(data["counts"]),
            truncated=data["truncated"],
        )


def patchable(difference: Difference) -> bool:
    """Whether its contents are worth reading: a file, on both sides or the one it is on."""
    sides = [each for each in (difference.before, difference.after) if each is not None]
    if difference.change == "mode":
        return False
    return all(each.kind == "file" and each.size <= PATCH_BYTES for each in sides)


def unified(path: str, before: bytes | None, after: bytes | None) -> str:
    """As ``diff -u``; None: there is no such file."""
    name = path.lstrip("/")
    old = "/dev/null" if before is None else f"a/{name}"
    new = "/dev/null" if after is None else f"b/{name}"
    try:
        texts = [_lines(each) for each in (before, after)]
    except UnicodeDecodeError:
        return f"Binary files {old} and {new} differ\n"
    first, second = texts
    head = _common(first, second)
    tail = _common(first[head:][::-1], second[head:][::-1])
    if max(len(first), len(second)) - head - tail > _PATCH_LINES:
        return f"Files {old} and {new} differ in too many lines to show\n"
    if head == len(first) == len(second):
        return ""
    said = [f"--- {old}\n", f"+++ {new}\n"]
    for hunk in _Between(first, second, head, tail).get_grouped_opcodes(3):
        begin, end = hunk[0], hunk[-1]
        said.append(f"@@ -{_span(begin[1], end[2])} +{_span(begin[3], end[4])} @@\n")
        for kind, a, b, c, d in hunk:
            if kind == "equal":
                said += [f" {line}" for line in first[a:b]]
            else:
                said += [f"-{line}" for line in first[a:b]]
                said += [f"+{line}" for line in second[c:d]]
    return "".join(said)


class _Between(SequenceMatcher[str]):
    """Compares what is between the ends that are the same, which stay aligned: a hunk that ends before its context does
    would be taken for one at the end of the file."""

    def __init__(self, first: list[str], second: list[str], head: int, tail: int) -> None:
        self._head = head
        self._ends = len(first), len(second)
        self._tail = tail
        super().__init__(None, first[head : len(first) - tail], second[head : len(second) - tail])

    def get_opcodes(self) -> list[_Code]:
        head, tail, (a, b) = self._head, self._tail, self._ends
        codes: list[_Code] = [("equal", 0, head, 0, head)] if head else []
        for kind, i, j, k, m in super().get_opcodes():
            codes.append((kind, i + head, j + head, k + head, m + head))
        return [*codes, ("equal", a - tail, a, b - tail, b)] if tail else codes


def _span(start: int, end: int) -> str:
    """Lines from ``start`` (from 0) to before ``end``, as POSIX's unified format has them."""
    count = end - start
    if count == 1:
        return str(start + 1)
    return f"{start + 1 if count else start},{count}"


def _lines(data: bytes | None) -> list[str]:
    """Raises UnicodeDecodeError for what is no text."""
    if data is None:
        return []
    if b"\0" in data:
        raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "no text")
    lines = data.decode().split("\n")
    last = lines.pop()
    whole = [f"{line}\n" for line in lines]
    return [*whole, f"{last}\n\\ No newline at end of file\n"] if last else whole


def _common(first: list[str], second: list[str]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
