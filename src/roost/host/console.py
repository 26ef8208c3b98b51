"""A machine's console: a FIFO that both ends hold open, so that it outlives either."""

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
        if not path.exists():
            os.mkfifo(path, 0o600)
        # Opened for both, so that opening never waits and the FIFO never reports its end.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._kept = b""

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._kept = (self._kept + os.read(self.fd, _READ))[-_KEPT:]

    def tail(self) -> str:
        self.drain()
        return self._kept.decode("utf-8", "replace")

    def close(self) -> None:
        os.close(self.fd)
