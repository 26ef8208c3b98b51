"""Streams that go both ways: a terminal's viewer, a connection into the machine, and what its programs ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc

from roost.agent import check
from roost.agent.calls import Calls, cut, push
from roost.agent.v1 import agent_pb2 as pb

PIECE = 256 * 1024
SILENT_S = 1.0  # an agent of contract 1.2 says nothing before the port does


class TerminalStream:
    """One viewer of a terminal. One task may write while another reads.

    ``resume``: the byte of its output to go on from, instead of the scrollback."""

    def __init__(
        self, calls: Calls, call: Any, terminal_id: str, scrollback: bool, resume: int | None = None
    ) -> None:
        self._calls = calls
        self._call = call
        self._first = pb.TerminalInput(
            terminal_id=terminal_id, no_scrollback=not scrollback, resume_offset=resume
        )
        self._id = terminal_id
        self._shown = check.Shown()
        self._writing = asyncio.Lock()
        self._ended = asyncio.Event()
        self.left = False  # nothing is sent any more; the rest of what it was shown can be read

    async def open(self) -> None:
        await self._write([self._first])

    async def send(self, data: bytes) -> bool:
        """False where it has ``left``: then nothing of it was sent."""
        return await self._write([pb.TerminalInput(data=part) for part in cut(data, PIECE)])

    async def resize(self, cols: int, rows: int) -> bool:
        """As ``send``."""
        size = pb.ResizeRequest(terminal_id=self._id, cols=cols, rows=rows)
        return await self._write([pb.TerminalInput(resize=size)])

    async def _write(self, messages: Sequence[pb.TerminalInput]) -> bool:
        async with self._writing:
            if self.left:
                return False
            for message in messages:
                await _write(self._call, message)
            return True

    async def read(self) -> pb.TerminalOutput | None:
        """None at the end. Raises RoostError: TERMINAL_NOT_FOUND, LIMIT_EXCEEDED (too slow), AGENT_LOST."""
        try:
            frame = await self._calls.next("AttachTerminal", self._call)
            if frame is not None:
                self._shown.take(frame)
        except BaseException:
            self._ended.set()
            raise
        if frame is None:
            self._ended.set()
        return frame

    async def leave(self) -> None:
        """To come back: what was typed has been taken, and what was shown up to then read, on return; the agent
        keeps the place for some seconds. As long as that takes."""
        self.left = True
        async with self._writing:
            if self._call is not None:
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await self._call.done_writing()
        await self._ended.wait()

    def close(self) -> None:
        """The viewer leaves for good; the terminal stays."""
        self.left = True
        self._ended.set()
        if self._call is not None:
            self._call.cancel()
            self._call = None  # a call holds its connection


class DialStream:
    """A TCP connection inside the machine. One task may write while another reads."""

    def __init__(self, calls: Calls, call: Any, port: int, host: str) -> None:
        self._calls = calls
        self._call = call
        self._first = pb.DialFrame(port=port, host=host)
        self._ahead: asyncio.Task[Any] | None = None

    async def open(self) -> None:
        await self._send(self._first)

    async def connected(self) -> None:
        """Returns once the port has answered: the agent says so with an empty frame. Raises RoostError: PORT_CLOSED when
        nothing listens there."""
        await self._calls.one("Dial", self._call.initial_metadata())
        self._ahead = asyncio.ensure_future(self._calls.next("Dial", self._call))
        await asyncio.wait({self._ahead}, timeout=SILENT_S)
        # In no variable of this frame: a failure would hold the call by it.
        if self._ahead is not None and self._ahead.done():
            self._ahead.result()

    async def write(self, data: bytes) -> None:
        for part in cut(data, PIECE):
            await self._send(pb.DialFrame(data=part))

    async def write_eof(self) -> None:
        await self._send(pb.DialFrame(eof=True))

    async def read(self) -> bytes:
        """Empty at the end. Raises RoostError: PORT_CLOSED when nothing listens there."""
        while (frame := await self._next()) is not None:
            if frame.data:
                return bytes(frame.data)
            if frame.eof:
                break
        return b""

    async def _next(self) -> Any:
        if self._call is None:
            return None
        ahead, self._ahead = self._ahead, None
        return await (ahead if ahead is not None else self._calls.next("Dial", self._call))

    async def _send(self, message: pb.DialFrame) -> None:
        if self._call is not None:
            await _write(self._call, message)

    def close(self) -> None:
        """At once, both ways. Idempotent."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        if self._call is not None:
            self._call.cancel()
            self._call = None  # a call holds its connection


class InsideStream:
    """What the machine's programs ask their daemon. One task reads; any number answer."""

    def __init__(self, calls: Calls, call: Any) -> None:
        self._calls = calls
        self._call = call
        self._writing = asyncio.Lock()
        self._ended = asyncio.Event()
        self.left = False  # nothing is answered any more

    async def read(self) -> pb.InsideRequest | None:
        """None at the end. Raises RoostError: UNSUPPORTED (an agent of before contract 1.4), AGENT_LOST,
        MACHINE_FAILED."""
        try:
            asked = await self._calls.next("Inside", self._call) if self._call is not None else None
            if asked is not None:
                return check.asked(asked)
        except BaseException:
            self._ended.set()
            raise
        self._ended.set()
        return None

    async def answer(self, request_id: int, status: int, body: bytes) -> None:
        """Nothing where it has ``left``."""
        async with self._writing:
            if not self.left and self._call is not None:
                said = pb.InsideAnswer(id=request_id, status=status, body=body)
                await _write(self._call, said)

    async def leave(self) -> None:
        """What was answered has been taken, and what still waits was told that no answer comes, on return. As long as
        that takes."""
        self.left = True
        async with self._writing:
            if self._call is not None:
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await self._call.done_writing()
        await self._ended.wait()

    def close(self) -> None:
        """At once. Idempotent."""
        self.left = True
        self._ended.set()
        if self._call is not None:
            self._call.cancel()
            self._call = None  # a call holds its connection


async def _write(call: Any, message: Any) -> None:
    await push(call, message.SerializeToString())
