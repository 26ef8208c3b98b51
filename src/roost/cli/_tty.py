"""The user's terminal during ``roost shell``: raw while it lasts, restored whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable, Iterator

DETACH = b"~."


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key goes through as it is. Does nothing where ``fd`` is no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def on_resize(call: Callable[[int, int], None]) -> Iterator[None]:
    """``call(cols, rows)`` after each change of the window's size."""
    old = signal.signal(signal.SIGWINCH, lambda *_: call(*window()))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, old)


@contextlib.contextmanager
def as_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through ``finally`` blocks instead of leaving a raw terminal behind."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    old = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def window() -> tuple[int, int]:
    """(cols, rows)."""
    for fd in (1, 0, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.columns and size.lines:
                return size.columns, size.lines
    return 80, 24


class Escape:
    """Finds ``~.`` at the start of a line, as ssh does; ``~~`` is one ``~``."""

    def __init__(self) -> None:
        self._fresh = True
        self._tilde = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to send, and whether to detach (then the rest is dropped)."""
        out = bytearray()
        for byte in data:
            if self._tilde:
                self._tilde = False
                if byte == 0x2E:
                    return bytes(out), True
                if byte != 0x7E:
                    out.append(0x7E)
                out.append(byte)
            elif self._fresh and byte == 0x7E:
                self._tilde = True
                continue
            else:
                out.append(byte)
            self._fresh = byte in b"\r\n"
        return bytes(out), False
