"""Logs of builds: a file of events, one a line, that is followed while it grows and read again later.

An event's place in the file is its id, so whoever was cut off goes on where it was. What programs say is bounded;
what the build says of itself is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from roost.services.redaction import Redaction

MAX_BYTES = 16 << 20  # of what programs say
TAIL_LINES = 20
TAIL_BYTES = 4096
PIECE = 64 * 1024
_LINE = 1 << 20  # no event is longer

Event = dict[str, Any]


class BuildLog:
    """Of a build under way. ``close`` it."""

    def __init__(self, path: Path, redaction: Redaction) -> None:
        self.path = path
        self._redaction = redaction
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._written = 0
        self._full = False
        self.changed = asyncio.Event()
        self.ended = False

    def add(self, event: str, **data: Any) -> None:
        line = json.dumps({"event": event, **data}, separators=(",", ":")) + "\n"
        os.write(self._fd, line.encode())
        self._wake()

    def text(self, step: int, stream: str, text: str) -> None:
        """What a program said; no more once there was too much."""
        self._written += len(text)
        if self._written <= MAX_BYTES:
            self.add("log", step=step, stream=stream, text=text)
        elif not self._full:
            self._full = True
            self.add("log", step=step, stream="note", text="(the rest of the output is not kept)\n")

    def output(self, step: int) -> Output:
        return Output(self, step, self._redaction)

    def close(self) -> None:
        self.ended = True
        os.close(self._fd)
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Output:
    """What one step's programs say: redacted, as text, and its last lines for whoever asks why it failed."""

    def __init__(self, log: BuildLog, step: int, redaction: Redaction) -> None:
        self._log = log
        self._step = step
        self._redactors = {name: redaction.stream() for name in ("stdout", "stderr", "note")}
        self._rest = dict.fromkeys(self._redactors, b"")
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._open = ""  # the last line, which may go on

    def say(self, stream: str, data: bytes) -> None:
        redactor = self._redactors[stream]
        self._put(stream, data if redactor is None else redactor.feed(data))

    def end(self) -> None:
        for stream, redactor in self._redactors.items():
            if redactor is not None:
                self._put(stream, redactor.end())
            if rest := self._rest[stream]:
                self._rest[stream] = b""
                self._text(stream, rest.decode(errors="replace"))

    def _put(self, stream: str, data: bytes) -> None:
        data = self._rest[stream] + data
        cut = _whole(data)
        self._rest[stream] = data[cut:]
        for at in range(0, cut, PIECE):
            self._text(stream, data[at : min(cut, at + PIECE)].decode(errors="replace"))

    def _text(self, stream: str, text: str) -> None:
        self._log.text(self._step, stream, text)
        *lines, self._open = (self._open + text).replace("\r", "\n").split("\n")
        self._open = self._open[-TAIL_BYTES:]
        self._tail.extend(line[-TAIL_BYTES:] for line in lines if line.strip())

    @property
    def tail(self) -> str:
        """The last lines, 4 KiB at most."""
        lines = [*self._tail, self._open] if self._open.strip() else list(self._tail)
        return "\n".join(lines[-TAIL_LINES:])[-TAIL_BYTES:]


def _whole(data: bytes) -> int:
    """How much of it ends with a whole character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) if back >= length else len(data) - back
    return len(data)


async def follow(
    path: Path, log: BuildLog | None, after: int = 0
) -> AsyncGenerator[tuple[int, Event], None]:
    """Events from that place on, each with the place behind it. ``log``: of a build under way; the last event is
    then waited for. A place that is none (in the midst of a line) begins at the next line."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        at = max(0, min(after, os.fstat(fd).st_size))
        if at and os.pread(fd, 1, at - 1) != b"\n":
            at = await asyncio.to_thread(_next_line, fd, at)
        rest = b""
        while True:
            changed = None if log is None else log.changed
            ended = log is None or log.ended
            data = os.pread(fd, PIECE, at + len(rest))
            if data:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    at += len(line) + 1
                    with contextlib.suppress(ValueError):
                        yield at, json.loads(line)
                if len(rest) > _LINE:
                    return
                continue
            if ended or changed is None:
                return
            await changed.wait()
    finally:
        os.close(fd)


def _next_line(fd: int, at: int) -> int:
    while data := os.pread(fd, PIECE, at):
        if (end := data.find(b"\n")) >= 0:
            return at + end + 1
        at += len(data)
    return at
