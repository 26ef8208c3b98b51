"""One connection that rules led here: what it says first decides where it goes, if anywhere.

```
            nothing, or nothing known, or no name ---------------------------> refused  (open: as it was asked for)
first bytes TLS ---> SNI ----> policy ----> resolve, look, dial ----> hello, then spliced
            HTTP --> Host ---> policy ----> resolve, look, dial ----> web.py, request by request
```
Under ``open`` the machine's own choice of an address stands, and what it says is only heard; unless names on that
port are intercepted: those are dialled as under an allowlist.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Protocol

import structlog

from roost.egress import hello, http
from roost.egress.dialling import Dialler, Line, RefusedError, UnreachableError, kept_alive
from roost.egress.interface import Intercept
from roost.egress.policy import Mode, clean_name
from roost.egress.slot import Claim, Slot
from roost.egress.splice import Tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

FIRST_S = 5.0  # for the first byte
FIRST_OPEN_S = 1.0  # where silence is no reason to refuse: the server may be who speaks first
HELLO_S = 10.0  # for all of what is said first
LAST_WORDS_S = 1.0
READ_BYTES = 64 * 1024
_DISCARD_BYTES = 256 * 1024
# Each way, towards the machine, which is near: the kernel would let them grow to megabytes. Towards the world it may.
_NEAR_BYTES = 512 * 1024
_SO_MEMINFO = 55  # <asm-generic/socket.h>; what it gives: <linux/sock_diag.h>
_MEMINFO = struct.Struct("9I")
_SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>
_RESET = struct.pack("ii", 1, 0)


class _Carrier(Protocol):
    @property
    def moved(self) -> int: ...


class Connection:
    """``claim`` is what it was let through for, None before. ``moved`` grows while anything happens."""

    def __init__(self, slot: Slot, sock: socket.socket, dialler: Dialler) -> None:
        self.slot = slot
        self.sock = sock
        self.dialler = dialler
        self.claim: Claim | None = None
        self.address, self.port = "", 0  # asked for
        self.lines: list[Line] = []
        self._carrier: _Carrier | None = None
        self._moved = 0
        self._task: asyncio.Task[None] | None = None
        self._cut = False

    def start(self, done: Callable[[Connection], None]) -> None:
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(lambda _: done(self))

    def cut(self) -> None:
        """Both sides get a reset, at once."""
        if self._cut:
            return
        self._cut = True
        for sock in (self.sock, *(line.sock for line in self.lines)):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if self._task is not None:
            self._task.cancel()

    async def gone(self) -> None:
        """After ``cut``: until it is."""
        if self._task is not None:
            await asyncio.wait([self._task])

    @property
    def moved(self) -> int:
        return self._moved + (self._carrier.moved if self._carrier else 0)

    @property
    def held(self) -> int:
        """Bytes in the kernel that one side sent and the other did not take yet."""
        return sum(map(_held, (self.sock, *(line.sock for line in self.lines))))

    async def _run(self) -> None:
        clean = False
        try:
            kept_alive(self.sock)
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self.sock.setsockopt(socket.SOL_SOCKET, buffer, _NEAR_BYTES)
            await self._serve()
            clean = True
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # broken off by one side, or cut
        except Exception:
            log.exception("egress.connection", slot=self.slot.index)
        finally:
            for sock in (*(line.sock for line in self.lines), self.sock):
                if not clean:
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()

    async def _serve(self) -> None:
        policy = self.slot.policy
        if policy is None:
            raise ConnectionAbortedError
        self.address, self.port = asked(self.sock)
        if (self.address, self.port) == self.sock.getsockname():
            return await self.refuse(self.address, "packet", "not_allowed")
        if policy.mode is Mode.OFF:
            return await self.refuse(self.address, "packet", "off")
        first = await self._first(FIRST_OPEN_S if policy.mode is Mode.OPEN else FIRST_S)
        if first is None:
            return None  # came and went
        async with asyncio.timeout(HELLO_S):
            kind, first = await self._kind(first)
            name = None
            if kind == "tls":
                name, first, known = await self._name(first)
                kind = "tls" if known else ""
        if kind == "tls":
            return await self._tls(name, first)
        if kind == "http":
            return await self._http(first)
        if not self._open:
            return await self.refuse(self.address, "packet", "no_name")
        return await self._as_asked(None, "packet", first)

    @property
    def _open(self) -> bool:
        """Asked when it matters: the policy may have changed meanwhile."""
        return self.slot.policy is not None and self.slot.policy.mode is Mode.OPEN

    # --- what is said first ---------------------------------------------------------------------

    async def read(self) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self.sock, READ_BYTES)
        self._moved += len(data)
        return data

    async def _first(self, wait_s: float) -> bytes | None:
        """b"" after so long without any; None where nothing ever will come."""
        try:
            async with asyncio.timeout(wait_s):
                return await self.read() or None
        except TimeoutError:
            return b""

    async def _kind(self, first: bytes) -> tuple[str, bytes]:
        if first[:1] == b"\x16":
            return "tls", first
        while first and (found := http.looks_like(first)) is None:
            more = await self.read()
            if not more:
                return "", first
            first += more
        return "http" if first and found else "", first

    async def _name(self, first: bytes) -> tuple[str | None, bytes, bool]:
        """The name, all that was read, and whether it is a ClientHello at all."""
        try:
            for _ in range(hello.MAX_RECORDS):
                found = hello.parse(first)
                if found is not None:
                    name = None if found.name is None else clean_name(found.name)
                    return name, first, True
                more = await self.read()
                if not more:
                    break
                first += more
        except hello.MalformedError:
            pass
        return None, first, False

    # --- TLS, and what is passed on as it is ----------------------------------------------------

    async def _tls(self, name: str | None, first: bytes) -> None:
        way = None if name is None else self.slot.way(name, self.port)
        if self._open and way is None:
            return await self._as_asked(name, "tls", first)
        if name is None:
            policy = self.slot.policy
            if policy is not None and policy.allows_address(self.address, self.port):
                return await self._as_asked(None, "tls", first, proven=True)
            return await self.refuse(self.address, "tls", "no_name", hello.DENIED)
        reason = self.slot.judge(name, self.port)
        if reason:
            return await self.refuse(name, "tls", reason, hello.DENIED)
        try:
            line = await self.dial(name, way)
        except RefusedError as exc:
            return await self.refuse(name, "tls", exc.reason, hello.DENIED)
        except UnreachableError:
            self.slot.ledger.note(name, self.port, "tls", "")
            raise ConnectionAbortedError from None
        self.slot.ledger.note(name, self.port, "tls", "")
        return await self.tunnel(line, first)

    async def _as_asked(
        self, name: str | None, via: str, first: bytes, *, proven: bool = False
    ) -> None:
        """To the address that was asked for."""
        self.claim = Claim(self.port, name, self.address, proven)
        try:
            line = await self.dialler.by_address(self.address, self.port)
        except RefusedError as exc:
            return await self.refuse(name or self.address, via, exc.reason)
        except UnreachableError:
            self.slot.ledger.note(name or self.address, self.port, via, "")
            raise ConnectionAbortedError from None
        self.lines.append(line)
        self.slot.ledger.note(name or self.address, self.port, via, "")
        return await self.tunnel(line, first)

    async def _http(self, first: bytes) -> None:
        if self._open and not self.slot.intercepts(self.port):
            return await self._as_asked(_heard(first), "http", first)
        from roost.egress.web import Web

        web = self._carrier = Web(self, first)
        return await web.run()

    # --- for those and web.py -------------------------------------------------------------------

    async def dial(self, name: str, way: Intercept | None, *, plain: bool = False) -> Line:
        """The policy has been asked. Whatever it was let through for before it is no more. Raises RefusedError,
        UnreachableError."""
        self.claim = Claim(self.port, name, intercept=way)
        line = await self.dialler.by_name(name, self.port, way, whose=self.slot.index, plain=plain)
        self.lines.append(line)
        self.claim = Claim(self.port, name, line.address, intercept=way)
        return line

    def hang_up(self, line: Line) -> None:
        self.lines.remove(line)
        line.sock.close()

    async def tunnel(self, line: Line, first: bytes, answer: bytes = b"") -> None:
        """Everything, to the end; ``first`` and ``answer`` were read already."""
        loop = asyncio.get_running_loop()
        if answer:
            await loop.sock_sendall(self.sock, answer)
        if first:
            await loop.sock_sendall(line.sock, first)
        tunnel = self._carrier = Tunnel(self.sock, line.sock)
        await tunnel.run()

    async def refuse(self, host: str, via: str, reason: str, last: bytes = b"") -> None:
        """Notes it and ends the connection, after ``last``."""
        self.slot.ledger.note(host, self.port, via, reason)
        if not last:
            raise ConnectionAbortedError
        await self.end(last)

    async def end(self, last: bytes) -> None:
        """With last words, which a reset must not overtake: so what still comes is read, for a moment."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(LAST_WORDS_S):
                await loop.sock_sendall(self.sock, last)
                self.sock.shutdown(socket.SHUT_WR)
                discarded = 0
                while discarded < _DISCARD_BYTES and (more := await self.read()):
                    discarded += len(more)


def _held(sock: socket.socket) -> int:
    try:
        said = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:  # closed
        return 0
    if len(said) < _MEMINFO.size:
        return 0
    parts = _MEMINFO.unpack(said)
    return int(parts[0]) + int(parts[5])  # received, queued


def asked(sock: socket.socket) -> tuple[str, int]:
    """Where it was on its way to. Raises OSError where no rule led it here."""
    raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    port, address = struct.unpack("!2xH4s8x", raw)
    return socket.inet_ntoa(address), port


def _heard(first: bytes) -> str | None:
    """The Host of a request that is passed on whatever it says."""
    end = http.end_of_head(first)
    try:
        return clean_name(http.request(first[:end]).host) if end > 0 else None
    except http.MalformedError:
        return None
