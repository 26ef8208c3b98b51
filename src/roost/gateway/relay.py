"""Carries an HTTP/2 connection to the gRPC server's private socket, both ways, with back-pressure.

The relay's end of the private socket is bound to an abstract name that holds the client's address, so the
gRPC server sees who is calling (``peer_address`` reads it back).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

PAUSE_AT = 256 * 1024
_CONNECT_S = 5.0
_serial = itertools.count(1)
_MARK = "roost-peer/"


def peer_name(address: tuple[str, int], serial: int) -> str:
    """The abstract name of a client's relay; unique, at most 107 bytes."""
    who = base64.urlsafe_b64encode(f"{address[0]}|{address[1]}".encode()).decode().rstrip("=")
    return f"{_MARK}{who}/{serial}"


def peer_address(peer: str) -> tuple[str, int] | None:
    """The client's address out of ``ServicerContext.peer()``, None for a peer that is no relay of ours."""
    _, found, rest = peer.partition(_MARK)
    if not found:
        _, found, rest = peer.partition(_MARK.replace("/", "%2F"))
        rest = rest.replace("%2F", "/")
    if not found:
        return None
    who = rest.split("/", 1)[0].replace("%3D", "")
    try:
        host, _, port = (
            base64.urlsafe_b64decode(who + "=" * (-len(who) % 4)).decode().partition("|")
        )
        return host, int(port)
    except ValueError:
        return None


class _End(asyncio.Protocol):
    """One end: what comes in goes out at the other, and no faster. An end of the stream goes out, too; after
    both sides' there is nothing left to carry."""

    transport: asyncio.Transport
    other: _End | None = None
    ended = False

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=PAUSE_AT)

    def join(self, other: _End) -> None:
        self.other = other
        if self._waiting:
            other.transport.write(b"".join(self._waiting))
            self._waiting.clear()
        with contextlib.suppress(RuntimeError):
            self.transport.resume_reading()

    def _open_other(self) -> asyncio.Transport | None:
        if self.other is None or self.other.transport.is_closing():
            return None
        return self.other.transport

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._waiting.append(data)
            self.transport.pause_reading()
        elif other := self._open_other():
            other.write(data)

    def eof_received(self) -> bool:
        """False closes this transport, and its loss the other's."""
        self.ended = True
        other = self._open_other()
        if other is None or self.other is None or self.other.ended:
            return False
        if other.can_write_eof():
            other.write_eof()
        return True

    def pause_writing(self) -> None:
        if other := self._open_other():
            other.pause_reading()

    def resume_writing(self) -> None:
        if other := self._open_other():
            other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()
        self._lost()


async def start(
    client: asyncio.Transport, first: bytes, target: Path, released: Callable[[], None]
) -> None:
    """Takes the client's connection over; ``first`` is what it has sent so far. Closes it when the gRPC
    server cannot be reached."""
    loop = asyncio.get_running_loop()
    near = _End(released)
    near.connection_made(client)
    client.set_protocol(near)
    near.data_received(first)
    address = client.get_extra_info("peername") or ("unknown", 0)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        name = peer_name((str(address[0]), int(address[1])), next(_serial))
        sock.bind(b"\0" + name.encode())
        await asyncio.wait_for(loop.sock_connect(sock, str(target)), _CONNECT_S)
        _, far = await loop.create_unix_connection(lambda: _End(lambda: None), sock=sock)
    except OSError:
        sock.close()
        client.close()
        return
    if client.is_closing():
        far.transport.close()
        return
    far.join(near)
    near.join(far)
