"""The daemon's end of the control socket: calls and their answers."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roost.egress import control
from roost.egress.splice import readable, writable
from roost.errors import InternalError, UnavailableError

CALL_S = 10.0
_READ_BYTES = 256 * 1024


class Link:
    """``closed`` is set once the process has gone, or broke off."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._serial = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._turn = asyncio.Lock()
        self.closed = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def open(cls, path: Path) -> Link:
        """Raises OSError where nobody listens."""
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def call(self, name: str, fds: Sequence[int] = (), **args: Any) -> Any:
        """Raises UnavailableError where no answer comes or the process has no such slot (yet: a new one is given all of
        them), InternalError where it says why not. ``fds`` may be closed once this returns, sent or not."""
        serial = next(self._serial)
        data = control.frame({"id": serial, "call": name, **args})
        answer = asyncio.get_running_loop().create_future()
        self._waiting[serial] = answer
        try:
            async with asyncio.timeout(CALL_S):
                # A frame that was begun is ended whoever is no longer interested.
                await asyncio.shield(
                    asyncio.ensure_future(self._send(data, [os.dup(fd) for fd in fds]))
                )
                said = await answer
        except (OSError, TimeoutError) as exc:
            raise UnavailableError(
                "The process that proves names does not answer; it is being replaced. Try again.",
                details={"call": name},
            ) from exc
        finally:
            self._waiting.pop(serial, None)
        if said.get("strange"):
            raise UnavailableError(
                "The process that proves names was started anew and does not know the slot yet. Try again.",
                details={"call": name},
            )
        if "error" in said:
            raise InternalError(f"The process that proves names refused {name}: {said['error']}.")
        return said.get("result")

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        """Closes ``fds``."""
        try:
            async with self._turn:
                if self.closed.is_set():
                    raise ConnectionResetError
                if fds:  # with the first byte
                    await writable(self._sock)
                    data = data[socket.send_fds(self._sock, [data], list(fds)) :]
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
        finally:
            for fd in fds:
                os.close(fd)

    async def _read(self) -> None:
        frames = control.Frames()
        try:
            while data := await self._receive():
                for message in frames.feed(data):
                    waiting = self._waiting.get(message.get("id", 0))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
        except (OSError, control.ProtocolError):
            pass
        finally:
            self.closed.set()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the egress process has gone"))
            self._sock.close()

    async def _receive(self) -> bytes:
        await readable(self._sock)
        return self._sock.recv(_READ_BYTES)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
