"""A channel that is a TCP connection to the machine's own loopback (``ssh -L``, ``ssh -D``)."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, Any, ClassVar

import asyncssh

from roost.errors import RoostError, discreet
from roost.services.doors import Stream
from roost.ssh.pipe import PACKET, WINDOW, Pipe
from roost.ssh.visit import Visit

if TYPE_CHECKING:
    from roost.ssh.connection import Connection, Ended


class Forward(asyncssh.SSHTCPSession[bytes]):
    CHANNEL: ClassVar[dict[str, Any]] = {"window": WINDOW, "max_pktsize": PACKET}

    def __init__(self, stream: Stream, connection: Connection, ended: Ended) -> None:
        self._stream = stream
        self._pipe = Pipe(connection)
        self._ended = ended
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, visit: Visit, connection: Connection, host: str, port: int, ended: Ended
    ) -> Forward:
        """Connected. Raises ChannelOpenError."""
        try:
            if not is_loopback(host):
                raise asyncssh.ChannelOpenError(
                    asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
                    "only the machine's own 127.0.0.1, ::1 and localhost can be forwarded to",
                )
            try:
                stream = await visit.inside.doors.loopback(
                    visit.tenant, visit.machine_id, port, host
                )
            except RoostError as failure:
                failure = discreet(failure)
                visit.note("ssh_forward", failure.code)
                raise asyncssh.ChannelOpenError(
                    asyncssh.OPEN_CONNECT_FAILED, failure.message
                ) from failure
            if connection.is_closed():  # meanwhile: asyncssh drops what we return, and tells nobody
                stream.close()
                raise asyncssh.ChannelOpenError(
                    asyncssh.OPEN_CONNECT_FAILED, "the connection is closed"
                )
            visit.note("ssh_forward")
            return cls(stream, connection, ended)
        except BaseException:
            ended()
            raise

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        self._pipe.attach(chan)

    def session_started(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._carry())

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.close()
        self._stream.close()
        self._ended()
        task, self._task = self._task, None
        if (
            task is not None
        ):  # not kept: its cancellation holds all it was at, down to the agent's connection
            task.cancel()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._pipe.feed(data)

    def eof_received(self) -> bool:
        self._pipe.feed_eof()
        return True

    def pause_writing(self) -> None:
        self._pipe.pause()

    def resume_writing(self) -> None:
        self._pipe.resume()

    async def _carry(self) -> None:
        """Both ways, each at its reader's pace; closed when both have ended or one broke. No error is kept, nor a group
        of them: what it was caught in holds the connection that a capture waits to see closed."""

        async def into() -> None:
            try:
                while data := await self._pipe.read():
                    await self._stream.write(data)
                await self._stream.write_eof()
            except (RoostError, OSError):
                self._end()

        async def out() -> None:
            try:
                while data := await self._stream.read():
                    await self._pipe.write(data)
                self._pipe.write_eof()
            except (RoostError, OSError):
                self._end()

        await asyncio.gather(into(), out())
        self._end()

    def _end(self) -> None:
        if self._channel is not None and not self._pipe.lost:
            self._channel.close()


def is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
