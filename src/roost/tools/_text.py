"""Text for models: bounded, numbered, edited. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from roost.tools._errors import ToolFailure

OUTPUT_CHARS = 30_000
LINE_CHARS = 2_000


class Clip:
    """Bytes as they come, of which the first and the last ``limit // 2`` are kept: memory stays flat."""

    def __init__(self, limit: int = OUTPUT_CHARS) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def cut(self) -> int:
        """Bytes left out in the middle."""
        return max(0, self.size - 2 * self._half)

    def text(self, instead: str = "[... {cut} bytes left out here ...]") -> str:
        """What was kept, with a line of its own where something is missing; U+FFFD where it is not UTF-8."""
        if not self.cut:
            return bytes(self._head + self._tail).decode("utf-8", "replace")
        head = bytes(self._head).decode("utf-8", "replace")
        tail = bytes(self._tail[-self._half :]).decode("utf-8", "replace")
        return f"{head}\n{instead.format(cut=self.cut)}\n{tail}"


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines of a text. ``following``: the first line that is not in it; None: it goes to the end."""

    lines: list[str]
    first: int
    following: int | None

    @property
    def last(self) -> int:
        return self.first + len(self.lines) - 1


class Pager:
    """Takes a text in pieces and keeps the lines from ``first`` to ``last`` (None: the end), at most ``limit``
    characters of them; of a line at most ``LINE_CHARS`` of them. ``feed`` says whether more is wanted."""

    def __init__(self, first: int = 1, last: int | None = None, limit: int = OUTPUT_CHARS) -> None:
        self._first, self._last, self._left = first, last, limit
        self._line = 1
        self._rest = b""
        self._long = 0  # bytes of the present line that are not in ``_rest``
        self._lines: list[str] = []
        self._full = False

    def feed(self, data: bytes) -> bool:
        if b"\0" in data:
            raise ToolFailure("This is no text file: it has NUL bytes. Look at it with a command.")
        start = 0
        while not self._full and (end := data.find(b"\n", start)) >= 0:
            self._take(data[start:end])
            start = end + 1
        if not self._full:
            self._keep(data[start:])
        return not self._full

    def end(self) -> Page:
        if not self._full and (self._rest or self._long):
            self._take(b"")
        total = self._line - 1
        if self._first > max(total, 1) and not self._full:
            raise ToolFailure(f"There is no line {self._first}: the file has {total}.")
        return Page(self._lines, self._first, self._line if self._full else None)

    def _keep(self, data: bytes) -> None:
        room = 4 * LINE_CHARS - len(self._rest)
        self._rest += data[:room]
        self._long += len(data[room:])

    def _take(self, data: bytes) -> None:
        self._keep(data)
        raw, long = self._rest, self._long
        self._rest, self._long = b"", 0
        if self._line < self._first:
            self._line += 1
            return
        if self._last is not None and self._line > self._last:
            self._full = True
            return
        text = raw.removesuffix(b"\r").decode("utf-8", "replace")
        if len(text) > LINE_CHARS or long:
            text = f"{text[:LINE_CHARS]} [line cut: {len(raw) + long} bytes]"
        self._left -= len(text) + 1
        if self._left < 0 and self._lines:
            self._full = True
            return
        self._lines.append(text)
        self._line += 1


def numbered(lines: list[str], first: int = 1) -> str:
    """As ``cat -n`` shows them."""
    return "\n".join(f"{number:6d}\t{line}" for number, line in enumerate(lines, first))


def replaced(text: str, old: str, new: str, *, every: bool = False) -> tuple[str, int, int]:
    """``text`` with ``old`` replaced, how often, and the line it first stood in. Raises ToolFailure unless it is in
    there, and just once where not ``every``."""
    if not old:
        raise ToolFailure("The text to replace is empty.")
    if old == new:
        raise ToolFailure("The text and what would replace it are the same.")
    count = text.count(old)
    if not count:
        hint = ""
        if "\r\n" in text and "\r\n" not in old:
            hint = " Its lines end with CR LF."
        raise ToolFailure(
            "The text to replace is not in the file: it must match exactly, with all blanks." + hint
        )
    if count > 1 and not every:
        where = ", ".join(str(line) for line in _first(_places(text, old), 10))
        raise ToolFailure(
            f"The text to replace is in the file {count} times (lines {where}): give more of what surrounds it."
        )
    line = text.count("\n", 0, text.index(old)) + 1
    return text.replace(old, new), count, line


def inserted(text: str, line: int, new: str) -> str:
    """``text`` with ``new`` after that line; 0: at the beginning. Raises ToolFailure where there is no such line."""
    lines = text.splitlines(keepends=True)
    if not 0 <= line <= len(lines):
        raise ToolFailure(
            f"There is no line {line}: the file has {len(lines)} (0: at its beginning)."
        )
    ending = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if not new.endswith("\n"):
        new += ending
    if line and not lines[line - 1].endswith("\n"):
        lines[line - 1] += ending
    return "".join([*lines[:line], new, *lines[line:]])


def around(text: str, line: int, count: int, margin: int = 4) -> str:
    """Those ``count`` lines from ``line`` on and what stands beside them, numbered."""
    lines = text.splitlines()
    first = max(1, line - margin)
    shown = [each[:LINE_CHARS] for each in lines[first - 1 : line + min(count, 100) - 1 + margin]]
    return numbered(shown, first)


def _places(text: str, old: str) -> Iterator[int]:
    at, line, seen = text.find(old), 1, 0
    while at >= 0:
        line += text.count("\n", seen, at)
        seen = at
        yield line
        at = text.find(old, at + len(old))


def _first(found: Iterator[int], count: int) -> Iterator[int]:
    for _, each in zip(range(count), found, strict=False):
        yield each
