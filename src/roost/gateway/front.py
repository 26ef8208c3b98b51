"""The one port. The first bytes of a connection decide what it is.

```
 accept --> (TLS, where there is a certificate) --> (nothing for 10 s: closed) --> "PRI * HTTP/2.0" --> relay --> gRPC server
   |                                   '-> anything else ----> HTTP/1.1 on this very transport <--by request--> preview
   '-- above the cap, of all or of one address: 503, closed
```
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast

import structlog
from uvicorn.config import Config

from roost.errors import ConflictError, InvalidRequestError
from roost.gateway import relay
from roost.gateway.http import HttpProtocol, State, WsProtocol, last_words, raw_error
from roost.gateway.respond import SHUTDOWN
from roost.gateway.tls import Tls
from roost.preview.plane import Plane

log = structlog.get_logger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST_BYTES_S = 10.0
ACCEPT_PAUSE_S = 0.1  # after a failure to accept: descriptors are short
CLOSE_S = 5.0  # what a client may take to say goodbye in TLS
KEEP_ALIVE_S = 75
WS_MESSAGE_BYTES = 2 * 2**20
BACKLOG = 1024
SHARE = 4  # of all connections one address has a fourth at most
CROWDED = 0.75  # of all connections: from there on idle ones are closed early
IDLE_S = 5.0  # after so long


class Front:
    """Listens and hands connections on. ``app`` is ASGI; ``rpc_socket`` is where the gRPC server listens,
    ``sockets`` are from ``bind``."""

    def __init__(
        self,
        app: Any,
        rpc_socket: Path,
        sockets: list[socket.socket],
        max_connections: int = 4096,
        first_bytes_s: float = FIRST_BYTES_S,
        previews: Plane | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._sockets = sockets
        self._tls = tls
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()
        self._max = max_connections
        self._share = max(1, max_connections // SHARE)
        self._parties: Counter[str] = Counter()
        self._party_of: dict[asyncio.BaseTransport, str] = {}
        self.first_bytes_s = first_bytes_s
        self.rpc_socket = rpc_socket
        self.open_connections = 0
        self.config = Config(
            app=app,
            http=HttpProtocol,
            ws=WsProtocol,
            ws_max_size=WS_MESSAGE_BYTES,
            ws_ping_interval=30.0,
            ws_ping_timeout=30.0,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self.previews = previews
        self.state = State(self.released)
        if previews is not None:
            self.state.wants = previews.wants
            self.state.to_preview = functools.partial(previews.take, handed=True)
            previews.to_api = self.to_http
            previews.released = self.released
        self._waiting: set[_Sniff] = set()
        self._endless: set[asyncio.Task[None]] = set()  # answers that end only when told to
        self._relays: set[asyncio.Task[None]] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._listeners: list[asyncio.Server] = []

    @property
    def port(self) -> int:
        """The port listened on (of use when 0 was asked for)."""
        return int(self._sockets[0].getsockname()[1])

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self.config.load()
        self._date()
        for sock in self._sockets:
            sock.setblocking(False)
        if (tls := self._tls) is not None:
            self._accepting = [loop.create_task(self._accept(s, tls)) for s in self._sockets]
            return
        self._listeners = [
            await loop.create_server(lambda: _Sniff(self), sock=sock, backlog=BACKLOG)
            for sock in self._sockets
        ]

    async def stop(self, grace_s: float) -> None:
        """Accepts no more, lets what is under way end within ``grace_s``, then cuts it off."""
        for listener in self._listeners:
            listener.close()
        for waiting in list(self._waiting):
            waiting.transport.close()
        for task in (*self._accepting, *self._handshakes):
            task.cancel()
        for connection in list(self.state.connections):
            connection.shutdown()
        if self.previews is not None:
            self.previews.shutdown()
        for task in list(self._endless):
            task.cancel(SHUTDOWN)
        deadline = time.monotonic() + grace_s
        while self.state.tasks and time.monotonic() < deadline:
            await asyncio.wait(set(self.state.tasks), timeout=deadline - time.monotonic())
        if self.previews is not None:
            await self.previews.over_by(deadline)
        for task in list(self.state.tasks):
            task.cancel(SHUTDOWN)
        if self.state.tasks:
            await asyncio.wait(set(self.state.tasks), timeout=2)
        for connection in list(self.state.connections):
            connection.transport.close()
        if self.previews is not None:
            self.previews.cut()
        for task in self._relays:
            task.cancel()
        if self._tick is not None:
            self._tick.cancel()

    def _date(self) -> None:
        self.state.default_headers[:] = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        self._tick = asyncio.get_running_loop().call_later(1.0, self._every_second)

    def _every_second(self) -> None:
        self._date()
        if self.previews is not None:
            self.previews.sweep()
        if self.open_connections > self._max * CROWDED:
            self._close_idle()

    def _close_idle(self) -> None:
        """HTTP connections that wait for a next request, and have for a while."""
        before = asyncio.get_running_loop().time() + KEEP_ALIVE_S - IDLE_S
        for connection in list(self.state.connections):
            ends = getattr(connection, "timeout_keep_alive_task", None)  # None: at work
            if ends is not None and ends.when() <= before:
                connection.transport.close()
        if self.previews is not None:
            self.previews.close_idle(IDLE_S)

    # --- for the connections --------------------------------------------------------------------

    def admit(self, transport: asyncio.BaseTransport) -> bool:
        self.open_connections += 1
        peer = transport.get_extra_info("peername")
        whose = party(peer[0]) if peer else None
        if whose is not None:
            self._party_of[transport] = whose
            self._parties[whose] += 1
            if self._parties[whose] > self._share:
                return False
        return self.open_connections <= self._max

    @property
    def crowded(self) -> bool:
        """Far above the cap: no time for manners."""
        return self.open_connections > self._max * 1.25

    def moved(self, half: asyncio.BaseTransport, transport: asyncio.BaseTransport) -> None:
        """What was counted as the one is the other now."""
        if (whose := self._party_of.pop(half, None)) is not None:
            self._party_of[transport] = whose

    def released(self, transport: asyncio.BaseTransport) -> None:
        self.open_connections -= 1
        whose = self._party_of.pop(transport, None)
        if whose is not None:
            self._parties[whose] -= 1
            if not self._parties[whose]:
                del self._parties[whose]

    async def _accept(self, listener: socket.socket, tls: Tls) -> None:
        """By ourselves, not by the loop, which would tell of a connection only after its handshake."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as failure:
                log.warning("front.accept", error=str(failure))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            half = _Half(address)
            if self.admit(half):
                task = loop.create_task(self._secure(sock, half, tls))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)
            else:
                self.released(half)
                sock.close()

    async def _secure(self, sock: socket.socket, half: _Half, tls: Tls) -> None:
        sniff = _Sniff(self, half)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: sniff,
                sock,
                ssl=tls.context,
                ssl_handshake_timeout=self.first_bytes_s,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except (OSError, asyncio.CancelledError):  # those of TLS and of time are OSErrors
            sock.close()
        finally:
            if sniff.half is not None:  # it came to nothing
                self.released(half)

    def to_http(self, transport: asyncio.Transport, first: bytes) -> None:
        """HTTP/1.1; where the first request is for a preview it is handed on from there."""
        protocol = HttpProtocol(self.config, self.state, {"endless": self._endless})
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        protocol.data_received(first)

    def to_rpc(self, transport: asyncio.Transport, first: bytes) -> None:
        released = functools.partial(self.released, transport)
        work = relay.start(transport, first, self.rpc_socket, released)
        task = asyncio.get_running_loop().create_task(work)
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)


class _Half(asyncio.BaseTransport):
    """A connection before its handshake; it counts from here on."""

    def __init__(self, address: Any) -> None:
        super().__init__({"peername": address})


class _Sniff(asyncio.Protocol):
    """A connection until it has said enough to be known. ``half``: what it is counted as until it has a transport."""

    transport: asyncio.Transport

    def __init__(self, front: Front, half: _Half | None = None) -> None:
        self._front = front
        self.half = half
        self._seen = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        front = self._front
        if self.half is not None:
            front.moved(self.half, transport)
            self.half = None
        elif not front.admit(transport):
            message = "Too many connections are open, or too many of yours; try again soon."
            answer = raw_error(503, "CAPACITY_EXCEEDED", message, retryable=True)
            if front.crowded:
                transport.write(answer)
                transport.close()
            else:
                last_words(transport, answer)
            return
        front._waiting.add(self)
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(front.first_bytes_s, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            return
        self._seen += data
        if len(self._seen) < len(PREFACE) and PREFACE.startswith(self._seen):
            return
        self._leave()
        if self._seen.startswith(PREFACE):
            self._front.to_rpc(self.transport, self._seen)
        else:
            self._front.to_http(self.transport, self._seen)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._front.released(self.transport)

    def _leave(self) -> None:
        self._front._waiting.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def party(address: str) -> str | None:
    """For whom a connection from there is counted: an address, of IPv6 its /64. None: for nobody, for what comes from
    this host stands for many (a proxy) or is trusted."""
    at = ipaddress.ip_address(address.partition("%")[0])
    at = getattr(at, "ipv4_mapped", None) or at
    if at.is_loopback:
        return None
    return str(at) if at.version == 4 else str(ipaddress.ip_network((int(at), 64), strict=False))


def bind(host: str, port: int, setting: str = "") -> list[socket.socket]:
    """Listening-to-be sockets for every address ``host`` names; ``setting``: SSH, for those of ROOST_SSH_PORT. Raises
    PORT_IN_USE, CONFIG_INVALID."""
    named = f"ROOST_{setting}_" if setting else "ROOST_"
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise InvalidRequestError(
            f"{named}HOST {host!r} is no address of this host: {error}.", code="CONFIG_INVALID"
        ) from error
    sockets: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(found):
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            for each in sockets:
                each.close()
            raise ConflictError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Stop what listens there or set {named}PORT.",
                code="PORT_IN_USE",
                details={"host": host, "port": port},
            ) from error
        sockets.append(sock)
    return sockets
