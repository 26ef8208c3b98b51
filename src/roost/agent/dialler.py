"""A unix socket for byte streams that grpcio cannot dial: virtio-serial, FIFOs, anything that may hold stale bytes.

```
grpcio --unix socket--> Dialler --open()--> the stream --> the agent
            first bytes |  HMAC(token, "roost-dial-v1") + nonce -->
                        |  <-- (anything stale) nonce + HMAC(token, nonce)
                        '- relay both ways, each side at the other's pace
```

A connection that says nothing dials nothing. One session at a time: a new connection ends the one before it,
and every session starts with a fresh nonce. A greeting that nobody answers is given up and the stream opened anew, for
QEMU (10.0) may hold back all that a guest says on a port where a write met the end of the dialler before, until the
port is closed once more (hw/char/virtio-console.c: the port is throttled after it was told of the close).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import structlog

from roost.errors import MachineError

log = structlog.get_logger(__name__)

NONCE_BYTES = 16
MAC_BYTES = 32
DISCARD_BYTES = 64 * 2**20
CHUNK = 64 * 1024
HANDSHAKE_S = 5.0
PATIENCE_S = 1.0  # with the first greeting; twice as long with each one after it


class ByteStream(Protocol):
    async def read(self) -> bytes:
        """Some bytes; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Returns once there is room for more."""

    async def close(self) -> None: ...


Open = Callable[[], Awaitable[ByteStream]]


class Handshake:
    """The dialler's half of one handshake, without I/O."""

    def __init__(self, token: str, nonce: bytes | None = None) -> None:
        key = token.encode()
        self.nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        self.hello = hmac.digest(key, b"roost-dial-v1", "sha256") + self.nonce
        self._echo = self.nonce + hmac.digest(key, self.nonce, "sha256")
        self._kept = b""
        self.dropped = 0

    def feed(self, data: bytes) -> bytes | None:
        """What follows the echo once it has come whole, else None: all else is dropped, an echo with a wrong
        MAC too. Raises MACHINE_FAILED after too many bytes that are not it."""
        self._kept += data
        at = self._kept.find(self._echo)
        if at >= 0:
            self.dropped += at
            rest, self._kept = self._kept[at + len(self._echo) :], b""
            return rest
        surplus = len(self._kept) - (len(self._echo) - 1)
        if surplus > 0:
            self._kept = self._kept[surplus:]
            self.dropped += surplus
        if self.dropped > DISCARD_BYTES:
            raise MachineError(
                "The machine's agent answers the handshake with noise.", code="MACHINE_FAILED"
            )
        return None


class Dialler:
    """Serves one machine's stream on ``path``; gRPC dials ``target``."""

    def __init__(
        self,
        path: Path,
        token: str,
        open_stream: Open,
        handshake_s: float = HANDSHAKE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.path = path
        self._token = token
        self._open = open_stream
        self._handshake_s = handshake_s
        self._patience_s = patience_s
        self._server: asyncio.Server | None = None
        self._session: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def target(self) -> str:
        return f"unix:{self.path}"

    def use_token(self, token: str) -> None:
        """For sessions from now on."""
        self._token = token

    async def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._server = await asyncio.start_unix_server(self._accept, self.path, limit=CHUNK)
        os.chmod(self.path, 0o600)

    async def knock(self) -> None:
        """Returns once the agent has answered a handshake, which may take until it is up; the stream is then free
        again. Raises OSError, MachineError."""
        async with self._turn:
            await self._end_session()
            stream, _ = await self._dial()
            await stream.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._end_session()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    async def _end_session(self) -> None:
        session = self._session
        if session is not None and session is not asyncio.current_task():
            session.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await session

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(CHUNK)
            if not first:
                return
            async with self._turn:
                await self._end_session()
                self._session = asyncio.get_running_loop().create_task(
                    self._serve(first, reader, writer)
                )
            await asyncio.wait({self._session})
        finally:
            writer.close()

    async def _serve(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(self._handshake_s):
                stream, rest = await self._dial()
        except (MachineError, TimeoutError, OSError) as failure:
            log.warning("dialler.handshake", path=str(self.path), error=repr(failure)[:200])
            return
        try:
            await self._relay(stream, first, rest, reader, writer)
        finally:
            await stream.close()

    async def _dial(self) -> tuple[ByteStream, bytes]:
        """An open stream whose agent has answered, and what it said after that. Raises OSError, MachineError."""
        patience = self._patience_s
        while True:
            stream = await self._open()
            try:
                async with asyncio.timeout(patience):
                    return stream, await self._shake(stream)
            except TimeoutError:
                await stream.close()
                patience *= 2
            except BaseException:
                await stream.close()
                raise

    async def _shake(self, stream: ByteStream) -> bytes:
        handshake = Handshake(self._token)
        await stream.write(handshake.hello)
        while True:
            data = await stream.read()
            if not data:
                raise MachineError("The stream ended in the handshake.")
            rest = handshake.feed(data)
            if rest is not None:
                return rest

    async def _relay(
        self,
        stream: ByteStream,
        first: bytes,
        rest: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        async def down() -> None:
            data = first
            while data:
                await stream.write(data)
                data = await reader.read(CHUNK)

        async def up() -> None:
            data = rest or await stream.read()
            while data:
                writer.write(data)
                await writer.drain()
                data = await stream.read()

        loop = asyncio.get_running_loop()
        both = {loop.create_task(down()), loop.create_task(up())}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task


class SocketStream:
    """A stream behind a unix socket, as QEMU's chardevs offer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> SocketStream:
        """Raises OSError."""
        reader, writer = await asyncio.open_unix_connection(path, limit=CHUNK)
        writer.transport.set_write_buffer_limits(high=CHUNK)
        return cls(reader, writer)

    async def read(self) -> bytes:
        return await self._reader.read(CHUNK)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()


class FifoStream:
    """A pair of FIFOs: one that the agent writes, one that it reads. Opening waits for nobody."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        source: asyncio.BaseTransport,
        hold: int,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._source = source
        self._hold = hold

    @classmethod
    async def open(cls, from_agent: Path, to_agent: Path) -> FifoStream:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        flags = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        # Read and write: neither end then waits for the other, nor sees an end of file between sessions.
        source = os.fdopen(os.open(from_agent, os.O_RDWR | flags), "rb", buffering=0)
        try:
            hold = os.open(to_agent, os.O_RDWR | flags)  # without it a writer needs a reader first
        except OSError:
            source.close()
            raise
        sink = os.fdopen(os.open(to_agent, os.O_WRONLY | flags), "wb", buffering=0)
        reader = asyncio.StreamReader(limit=CHUNK)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), source
        )
        write_transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(loop), sink
        )
        write_transport.set_write_buffer_limits(high=CHUNK)
        writer = asyncio.StreamWriter(write_transport, protocol, None, loop)
        return cls(reader, writer, transport, hold)

    async def read(self) -> bytes:
        return await self._reader.read(CHUNK)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.transport.abort()
        self._source.close()
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
