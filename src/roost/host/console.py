"""A machine's console: a FIFO that outlives whoever reads it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_KEPT = 16 << 10
_READ = 64 << 10  # a pipe's whole content


class Console:
    """The last of what PID 1 and the runtime wrote. Drained now and then, so that a guest which floods it
    waits for us rather than filling the host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._kept = b""

    def open_for_machine(self) -> int:
        """For its standard output: for both ways, so that it never breaks, and never our own descriptor,
        whose O_NONBLOCK the machine could take away and have the daemon wait for it."""
        return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._kept = (self._kept + os.read(self._fd, _READ))[-_KEPT:]

    def tail(self) -> str:
        self.drain()
        return self._kept.decode("utf-8", "replace")

    def close(self) -> None:
        os.close(self._fd)
