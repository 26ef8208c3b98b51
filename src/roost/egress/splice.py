"""Bytes from one socket to another, moved by the kernel (splice(2)).

A direction has a pipe only while bytes are under way in it: idle connections, of which there are many, hold none.
What the far side does not take stays in the pipe, and nothing more is read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket

PIPE_BYTES = 2**20  # the most that the kernel gives users
_KEPT_PIPES = 16
_AT_ONCE = 4  # pieces, before others have their turn
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipes:
    """Empty ones to be used again. The kernel gives one user so many pages of them; beyond that they are small."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int]:
        if self._idle:
            return self._idle.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return pipe

    def give(self, pipe: tuple[int, int], *, empty: bool) -> None:
        if empty and len(self._idle) < _KEPT_PIPES:
            self._idle.append(pipe)
        else:
            for end in pipe:
                os.close(end)


_pipes = Pipes()


class Flow:
    """One direction, to its end or ``limit`` bytes. ``moved`` grows meanwhile."""

    def __init__(
        self, source: socket.socket, target: socket.socket, limit: int | None = None
    ) -> None:
        self._source, self._target = source.fileno(), target.fileno()
        self._left = limit
        self._held = 0  # bytes in the pipe
        self._pipe: tuple[int, int] | None = None
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._reads = self._writes = False
        self.moved = 0

    async def run(self) -> bool:
        """False where the source ended before ``limit``. Raises OSError. Both sockets stay open."""
        try:
            self._pump()
            await self._done
        finally:
            self._watch(read=False, write=False)
            self._return_pipe()
        return not self._left

    def _pump(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                if not self._held and not self._fill():
                    return
                assert self._pipe is not None
                sent = os.splice(self._pipe[0], self._target, self._held, flags=_FLAGS)
                self._held -= sent
                self.moved += sent
        except BlockingIOError:
            self._watch(read=not self._held, write=bool(self._held))
        except OSError as exc:
            self._end(exc)
        else:
            if self._left == 0 and not self._held:
                self._end(None)  # nothing more need come of the source, not even its end
            else:  # the loop comes back as soon as the others had their turn
                self._watch(read=not self._held, write=bool(self._held))

    def _fill(self) -> bool:
        """False where there is nothing to send now, or never will be."""
        if self._left == 0:
            self._end(None)
            return False
        if self._pipe is None:
            self._pipe = _pipes.take()
        want = PIPE_BYTES if self._left is None else min(PIPE_BYTES, self._left)
        try:
            self._held = os.splice(self._source, self._pipe[1], want, flags=_FLAGS)
        except BlockingIOError:
            self._return_pipe()
            self._watch(read=True, write=False)
            return False
        if not self._held:
            self._end(None)
            return False
        if self._left is not None:
            self._left -= self._held
        return True

    def _watch(self, *, read: bool, write: bool) -> None:
        if read != self._reads:
            self._reads = read
            if read:
                self._loop.add_reader(self._source, self._pump)
            else:
                self._loop.remove_reader(self._source)
        if write != self._writes:
            self._writes = write
            if write:
                self._loop.add_writer(self._target, self._pump)
            else:
                self._loop.remove_writer(self._target)

    def _return_pipe(self) -> None:
        if self._pipe is not None:
            pipe, self._pipe = self._pipe, None
            _pipes.give(pipe, empty=not self._held)

    def _end(self, exc: OSError | None) -> None:
        self._watch(read=False, write=False)
        if self._done.done():
            return
        if exc is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(exc)


class Tunnel:
    """Both directions between two sockets, each to its own end, which the other side is told of."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self._flows = (Flow(one, other), Flow(other, one))
        self._ends = (other, one)

    @property
    def moved(self) -> int:
        return self._flows[0].moved + self._flows[1].moved

    async def run(self) -> None:
        """Raises OSError where either side breaks off."""
        ways = [
            asyncio.ensure_future(_one_way(flow, target))
            for flow, target in zip(self._flows, self._ends, strict=True)
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _one_way(flow: Flow, target: socket.socket) -> None:
    await flow.run()
    target.shutdown(socket.SHUT_WR)


async def readable(sock: socket.socket) -> None:
    """Until there is something to read, an end or an error among it."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()
    loop.add_reader(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(sock: socket.socket) -> None:
    """Until there is room, or an error."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = sock.fileno()
    loop.add_writer(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
