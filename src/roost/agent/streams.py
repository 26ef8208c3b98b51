"""Streams that go both ways: a terminal's viewer and a connection into the machine."""

from __future__ import annotations

from typing import Any

from roost.agent.calls import Calls, cut, push
from roost.agent.v1 import agent_pb2 as pb

PIECE = 256 * 1024


class TerminalStream:
    """One viewer of a terminal. One task may write while another reads."""

    def __init__(self, calls: Calls, call: Any, terminal_id: str, scrollback: bool) -> None:
        self._calls = calls
        self._call = call
        self._first = pb.TerminalInput(terminal_id=terminal_id, no_scrollback=not scrollback)
        self._id = terminal_id

    async def open(self) -> None:
        await _write(self._call, self._first)

    async def send(self, data: bytes) -> None:
        for part in cut(data, PIECE):
            await _write(self._call, pb.TerminalInput(data=part))

    async def resize(self, cols: int, rows: int) -> None:
        size = pb.ResizeRequest(terminal_id=self._id, cols=cols, rows=rows)
        await _write(self._call, pb.TerminalInput(resize=size))

    async def read(self) -> pb.TerminalOutput | None:
        """None at the end. Raises RoostError: TERMINAL_NOT_FOUND, LIMIT_EXCEEDED (too slow), AGENT_LOST."""
        return await self._calls.next("AttachTerminal", self._call)

    def close(self) -> None:
        """The viewer leaves; the terminal stays."""
        self._call.cancel()


class DialStream:
    """A TCP connection inside the machine. One task may write while another reads."""

    def __init__(self, calls: Calls, call: Any, port: int, host: str) -> None:
        self._calls = calls
        self._call = call
        self._first = pb.DialFrame(port=port, host=host)

    async def open(self) -> None:
        await _write(self._call, self._first)

    async def write(self, data: bytes) -> None:
        for part in cut(data, PIECE):
            await _write(self._call, pb.DialFrame(data=part))

    async def write_eof(self) -> None:
        await _write(self._call, pb.DialFrame(eof=True))

    async def read(self) -> bytes:
        """Empty at the end. Raises RoostError: PORT_CLOSED when nothing listens there."""
        while (frame := await self._calls.next("Dial", self._call)) is not None:
            if frame.data:
                return bytes(frame.data)
            if frame.eof:
                break
        return b""

    def close(self) -> None:
        self._call.cancel()


async def _write(call: Any, message: Any) -> None:
    await push(call, message.SerializeToString())
