"""Connections out of the host: straight, by an upstream HTTP proxy, or by the SOCKS server of an interception.

A name is resolved here, each time, and what it resolves to is looked at here: no address of a machine's choosing is
dialled for a name. Behind an upstream proxy it is that proxy which resolves; a name of which the host itself knows
refused addresses only is refused before.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import dns.rcode
import dns.rdatatype

from roost.egress.interface import Intercept
from roost.egress.policy import Reach
from roost.egress.upstream import Upstream
from roost.errors import InvalidRequestError

CONNECT_S = 5.0
_ADDRESSES = 4  # tried, one after the other
_MAX_ANSWER = 8 * 1024
_KEEP_IDLE_S, _KEEP_EVERY_S, _KEEP_TIMES = 60, 15, 4
_SOCKS_USER_BYTES = 255
_CONNECTED = re.compile(rb"HTTP/1\.[01] 2[0-9]{2}[ \r]")


class RefusedError(Exception):
    """Not to be spoken to. ``reason`` is a decision's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreachableError(Exception):
    """Allowed, and not to be had. The text is ours."""


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    host: str
    port: int
    authorization: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, url: str) -> UpstreamProxy:
        """Of ``http://[USER:PASSWORD@]HOST:PORT``. Raises CONFIG_INVALID, without the password."""
        try:
            parts = urlsplit(url)
            host, port, user = parts.hostname, parts.port, parts.username
        except ValueError:
            host = port = user = None
            parts = urlsplit("")
        if parts.scheme != "http" or not host or not port or parts.path not in ("", "/"):
            raise InvalidRequestError(
                "ROOST_EGRESS_PROXY is no URL of an HTTP proxy; give http://[USER:PASSWORD@]HOST:PORT.",
                code="CONFIG_INVALID",
            )
        authorization = b""
        if user is not None:
            said = f"{unquote(user)}:{unquote(parts.password or '')}".encode()
            authorization = b"Basic " + base64.b64encode(said)
        return cls(host, port, authorization)


@dataclass(slots=True)
class Line:
    """A connection that was made. ``address``: of the other side, "" where a proxy chose it. ``absolute``: it leads to
    a proxy that takes requests in absolute form, with ``fields`` of ours."""

    sock: socket.socket
    address: str = ""
    absolute: bool = False
    fields: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)


class Dialler:
    """``reach`` is asked for anew with each dial. Nothing stays open where a dial fails or is cancelled."""

    def __init__(
        self, upstream: Upstream, reach: Callable[[], Reach], proxy: UpstreamProxy | None = None
    ) -> None:
        self.upstream = upstream
        self.proxy = proxy
        self._reach = reach

    async def addresses(self, name: str, whose: object) -> list[str]:
        """Those that may be spoken to; ``whose``: see ``Upstream.ask``. Raises RefusedError (private),
        UnreachableError."""
        answer = await self.upstream.ask(name, dns.rdatatype.A, whose)
        if not answer.addresses:
            why = "does not exist" if answer.rcode == dns.rcode.NXDOMAIN else "has no address now"
            raise UnreachableError(f"{name} {why}.")
        reach = self._reach()
        permitted = [each for each in answer.addresses if reach.permits(each)]
        if not permitted:
            raise RefusedError("private")
        return permitted

    async def by_name(
        self,
        name: str,
        port: int,
        intercept: Intercept | None = None,
        *,
        whose: object,
        plain: bool = False,
    ) -> Line:
        """``plain``: for HTTP in clear text, which an upstream proxy takes in absolute form. Raises RefusedError,
        UnreachableError."""
        if intercept is not None:
            address = (await self.addresses(name, whose))[0]
            return Line(await self._by_socks(intercept, name, address, port), address)
        if self.proxy is not None:
            with contextlib.suppress(UnreachableError):  # it may know what this host does not
                await self.addresses(name, whose)
            return await self._by_proxy(self.proxy, name, port, plain=plain)
        addresses = await self.addresses(name, whose)
        return await self._first_of(addresses[:_ADDRESSES], port)

    async def by_address(self, address: str, port: int, *, plain: bool = False) -> Line:
        """Raises RefusedError, UnreachableError."""
        if not self._reach().permits(address):
            raise RefusedError("private")
        if self.proxy is not None:
            return await self._by_proxy(self.proxy, address, port, plain=plain)
        return await self._first_of([address], port)

    async def _first_of(self, addresses: list[str], port: int) -> Line:
        why = ""
        for address in addresses:
            try:
                return Line(await _tcp(address, port), address)
            except (OSError, TimeoutError) as exc:
                why = _said(exc)
        raise UnreachableError(f"{addresses[-1]}:{port} does not answer: {why}.")

    async def _by_proxy(self, proxy: UpstreamProxy, host: str, port: int, *, plain: bool) -> Line:
        fields: tuple[tuple[bytes, bytes], ...] = ()
        if proxy.authorization:
            fields = ((b"Proxy-Authorization", proxy.authorization),)
        try:
            sock = await _tcp(await _one_address(proxy.host), proxy.port)
        except (OSError, TimeoutError) as exc:
            raise UnreachableError(f"The upstream proxy does not answer: {_said(exc)}.") from None
        if plain:
            return Line(sock, absolute=True, fields=fields)
        try:
            async with asyncio.timeout(4 * CONNECT_S):
                await _connect(sock, f"{host}:{port}".encode(), fields)
        except (OSError, TimeoutError) as exc:
            sock.close()
            raise UnreachableError(
                f"The upstream proxy does not connect to {host}:{port}: {_said(exc)}."
            ) from None
        except BaseException:
            sock.close()
            raise
        return Line(sock)

    async def _by_socks(self, to: Intercept, name: str, address: str, port: int) -> socket.socket:
        user = f"{to.user}@{name}" if to.user else name
        try:
            sock = await _endpoint(to.endpoint)
        except (OSError, TimeoutError, ValueError) as exc:
            raise UnreachableError(f"What adds secrets does not answer: {_said(exc)}.") from None
        try:
            async with asyncio.timeout(4 * CONNECT_S):
                await _socks(sock, user.encode(), to.password.encode(), address, port)
        except (OSError, TimeoutError) as exc:
            sock.close()
            raise UnreachableError(f"What adds secrets refused: {_said(exc)}.") from None
        except BaseException:
            sock.close()
            raise
        return sock


def kept_alive(sock: socket.socket) -> None:
    """What went away without a word is noticed in two minutes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_EVERY_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_TIMES)


async def _tcp(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = await _connected(family, (address, port))
    kept_alive(sock)
    return sock


async def _endpoint(said: str) -> socket.socket:
    kind, _, rest = said.partition(":")
    if kind == "unix":
        return await _connected(socket.AF_UNIX, rest)
    address, _, port = rest.rpartition(":")
    if kind != "tcp" or not ipaddress.IPv4Address(address).is_loopback:
        raise ValueError("its endpoint is none of this host")
    return await _connected(socket.AF_INET, (address, int(port)))


async def _connected(family: int, target: object) -> socket.socket:
    """Raises OSError, TimeoutError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(sock, target)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


async def _one_address(host: str) -> str:
    """Of the operator's own proxy: by the host's whole means, /etc/hosts among them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


async def _connect(
    sock: socket.socket, target: bytes, fields: tuple[tuple[bytes, bytes], ...]
) -> None:
    """CONNECT (RFC 9110, 9.3.6). Nothing comes after the answer's head: nobody has spoken to the target yet."""
    loop = asyncio.get_running_loop()
    lines = [b"CONNECT %s HTTP/1.1" % target, b"Host: %s" % target]
    lines += [b"%s: %s" % each for each in fields]
    await loop.sock_sendall(sock, b"\r\n".join(lines) + b"\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = await loop.sock_recv(sock, _MAX_ANSWER)
        if not piece or len(answer) > _MAX_ANSWER:
            raise ConnectionError("it broke off")
        answer += piece
    if not _CONNECTED.match(answer) or not answer.endswith(b"\r\n\r\n"):
        status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", answer)
        raise ConnectionError(f"status {status[1].decode()}" if status else "an odd answer")


async def _socks(
    sock: socket.socket, user: bytes, password: bytes, address: str, port: int
) -> None:
    """RFC 1928 with user and password (RFC 1929)."""
    loop = asyncio.get_running_loop()
    if not 1 <= len(user) <= _SOCKS_USER_BYTES or len(password) > _SOCKS_USER_BYTES:
        raise ConnectionError("a name too long for it")
    await loop.sock_sendall(sock, b"\x05\x01\x02")
    if await _exactly(sock, 2) != b"\x05\x02":
        raise ConnectionError("it asks for no password")
    await loop.sock_sendall(sock, bytes([1, len(user)]) + user + bytes([len(password)]) + password)
    if (await _exactly(sock, 2))[1] != 0:
        raise ConnectionError("user and password")
    target = ipaddress.IPv4Address(address).packed + port.to_bytes(2)
    await loop.sock_sendall(sock, b"\x05\x01\x00\x01" + target)
    version, code, _, kind = await _exactly(sock, 4)
    if version != 5 or code != 0:
        raise ConnectionError(f"code {code}")
    bound = {1: 4, 4: 16}.get(kind)
    if bound is None:
        bound = (await _exactly(sock, 1))[0] if kind == 3 else 0
    await _exactly(sock, bound + 2)


async def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not piece:
            raise ConnectionError("it broke off")
        data += piece
    return data


def _said(exc: BaseException) -> str:
    """For an answer to the machine: nothing of addresses but what it knows."""
    if isinstance(exc, TimeoutError) and not exc.args:
        return "no answer in time"
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
