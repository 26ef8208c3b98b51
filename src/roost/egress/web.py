"""HTTP/1 under a policy: the Host of every request decides, and each name has a connection of its own.

Requests and answers are taken one after the other; bodies of known length are spliced. Nothing is sent again: where a
server ends a kept connection, so does this, and the client does what it would have done.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from roost.egress import http
from roost.egress.dialling import Line, RefusedError, UnreachableError
from roost.egress.http import Body, Request
from roost.egress.interface import Intercept
from roost.egress.policy import Mode, clean_name
from roost.egress.slot import Claim
from roost.egress.splice import Flow, readable

if TYPE_CHECKING:
    from roost.egress.proxy import Connection

HEAD_S = 15.0  # for a first head
KEEP_S = 120.0  # for the next one, all of it
ANSWER_S = 3600.0  # for an answer to begin
_NOTICED_S = 0.25
_PAUSE_S = 0.05  # of a machine that asks too fast
_READ_BYTES = 64 * 1024
_LEADING = 4  # empty lines before a request (RFC 9112, 2.2)


class _BrokenError(Exception):
    """The machine's side broke off, or broke the rules, within a message."""


class Stream:
    """One side: what was read and not yet used, and the rest."""

    def __init__(self, sock: socket.socket, first: bytes = b"") -> None:
        self.sock = sock
        self.buffer = bytearray(first)
        self._moved = 0
        self.flow: Flow | None = None

    @property
    def moved(self) -> int:
        return self._moved + (self.flow.moved if self.flow else 0)

    async def more(self) -> bytes:
        """b"" at the end."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, _READ_BYTES)
        self._moved += len(data)
        return data

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)
        self._moved += len(data)

    async def splice(self, target: Stream, count: int | None) -> bool:
        """What comes from now on; False where it ends before ``count``."""
        self.flow = Flow(self.sock, target.sock, count)
        try:
            return await self.flow.run()
        finally:
            moved, self.flow = self.flow.moved, None
            self._moved += moved

    async def head(self) -> bytes | None:
        """Up to its empty line; None where the other side ended instead. Raises MalformedError past ``MAX_HEAD``."""
        searched = 0
        while True:
            for _ in range(_LEADING):
                if self.buffer[:2] == b"\r\n":
                    del self.buffer[:2]
            end = http.end_of_head(self.buffer, searched)
            if end > http.MAX_HEAD or (end < 0 and len(self.buffer) > http.MAX_HEAD):
                raise http.MalformedError("a head that is too long")
            if end > 0:
                return self.take(end)
            searched = len(self.buffer)
            data = await self.more()
            if not data:
                return None
            self.buffer += data

    def take(self, count: int) -> bytes:
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken


class Web:
    """A connection of a machine's, from its first request to its last."""

    def __init__(self, connection: Connection, first: bytes) -> None:
        self._of = connection
        self._slot = connection.slot
        self._client = Stream(connection.sock, first)
        self._line: Line | None = None
        self._server = self._client  # of ``_line``
        self._for: tuple[str, Intercept | None] | None = None

    @property
    def moved(self) -> int:
        return self._client.moved + self._server.moved

    async def run(self) -> None:
        wait_s = HEAD_S
        while (head := await self._next(wait_s)) is not None:
            wait_s = KEEP_S
            while not self._slot.requests.take():  # noqa: ASYNC110  (it is a rate)
                await asyncio.sleep(_PAUSE_S)
            try:
                request = http.request(head)
            except http.MalformedError as exc:
                return await self._refuse("400 Bad Request", self._of.address, exc.reason, f"{exc}")
            if not await self._one(request):
                return None
        return None

    async def _next(self, wait_s: float) -> bytes | None:
        """The next head; None where either side has ended."""
        reading = asyncio.ensure_future(self._client.head())
        waiting = {reading}
        if self._line is not None:
            waiting.add(asyncio.ensure_future(readable(self._line.sock)))
        try:
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else None
        except http.MalformedError as exc:
            await self._refuse("400 Bad Request", self._of.address, exc.reason, f"{exc}")
            return None
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _one(self, request: Request) -> bool:
        """Whether there may be another."""
        name = clean_name(request.host)
        if request.port is not None and request.port != self._of.port:
            return await self._refuse_name(name or self._of.address, "malformed")
        if name is None:
            return await self._by_address(request)
        reason = self._slot.judge(name, self._of.port)
        if reason:
            return await self._refuse_name(name, reason)
        way = self._slot.way(name, self._of.port)
        try:
            if self._open and way is None:
                await self._to_asked(name)
            else:
                await self._to(name, way, request)
        except RefusedError as exc:
            return await self._refuse_name(name, exc.reason)
        except UnreachableError as exc:
            self._slot.ledger.note(name, self._of.port, "http", "")
            await self._of.end(http.refusal("502 Bad Gateway", "unreachable", f"roost: {exc}"))
            return False
        self._slot.ledger.note(name, self._of.port, "http", "")
        return await self._exchange(request, name)

    async def _by_address(self, request: Request) -> bool:
        """A Host that is an address: the one it is on its way to, if that is allowed."""
        policy = self._slot.policy
        if (
            policy is None
            or request.host != self._of.address
            or not policy.allows_address(self._of.address, self._of.port)
        ):
            return await self._refuse_name(request.host[:64], "not_allowed")
        try:
            await self._to_asked(None)
        except RefusedError as exc:
            return await self._refuse_name(self._of.address, exc.reason)
        except UnreachableError as exc:
            await self._of.end(http.refusal("502 Bad Gateway", "unreachable", f"roost: {exc}"))
            return False
        self._slot.ledger.note(self._of.address, self._of.port, "http", "")
        return await self._exchange(request, self._of.address)

    @property
    def _open(self) -> bool:
        return self._slot.policy is not None and self._slot.policy.mode is Mode.OPEN

    # --- the other side -------------------------------------------------------------------------

    async def _to(self, name: str, way: Intercept | None, request: Request) -> None:
        """A line that carries this name only. Raises as ``Connection.dial``."""
        if self._for == (name, way) and self._line is not None and not request.websocket:
            return
        self._drop()
        self._take(await self._of.dial(name, way, plain=not request.websocket))
        self._for = (name, way)

    async def _to_asked(self, name: str | None) -> None:
        """Under ``open``, or to an address that is allowed."""
        key = (f"={self._of.address}", None)
        self._of.claim = Claim(self._of.port, name, self._of.address, proven=name is None)
        if self._for == key and self._line is not None:
            return
        self._drop()
        line = await self._of.dialler.by_address(self._of.address, self._of.port)
        self._of.lines.append(line)
        self._take(line)
        self._for = key

    def _take(self, line: Line) -> None:
        self._line, self._server = line, Stream(line.sock)

    def _drop(self) -> None:
        if self._line is not None:
            self._of.hang_up(self._line)
            self._line = self._for = None

    # --- one request and its answer -------------------------------------------------------------

    async def _exchange(self, request: Request, host: str) -> bool:
        """Raises OSError where anything breaks off: both sides are reset then."""
        line = self._line
        assert line is not None
        absolute = b""
        if line.absolute:
            port = b"" if self._of.port == 80 else b":%d" % self._of.port
            absolute = b"http://" + host.encode() + port
        await self._server.send(request.head(absolute=absolute, extra=line.fields))
        sending = asyncio.ensure_future(self._send(request.body))
        answering = asyncio.ensure_future(self._answer(request))
        try:
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and isinstance(sending.exception(), _BrokenError):
                raise ConnectionAbortedError
            try:
                keep = await answering
            except http.MalformedError:
                raise ConnectionAbortedError from None
            # A server may answer before it has heard all; then nobody knows where the next request begins. That all was
            # sent may be noticed a moment after its answer came.
            if keep and not sending.done():
                await asyncio.wait({sending}, timeout=_NOTICED_S)
            return keep and sending.done() and sending.exception() is None
        finally:
            for task in (sending, answering):
                task.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)

    async def _send(self, body: Body) -> None:
        try:
            await _pass(self._client, self._server, body)
        except (http.MalformedError, EOFError):
            raise _BrokenError from None

    async def _answer(self, request: Request) -> bool:
        while True:
            async with asyncio.timeout(ANSWER_S):
                head = await self._server.head()
            if head is None:
                raise ConnectionResetError
            answer = http.response(head, request)
            if answer.status == 407 and self._line is not None and self._line.absolute:
                text = "roost: The upstream proxy does not accept this host's credentials."
                await self._of.end(http.refusal("502 Bad Gateway", "unreachable", text))
                return False
            if not answer.interim:
                break
            await self._client.send(answer.head)
        if answer.status == 101:
            return await self._upgraded(request, answer.head)
        try:
            await _pass(self._server, self._client, answer.body, answer.head)
        except EOFError:
            raise ConnectionResetError from None
        return answer.keep

    async def _upgraded(self, request: Request, head: bytes) -> bool:
        if not request.websocket or self._line is None:
            raise http.MalformedError("an upgrade nobody asked for")
        said, heard = bytes(self._client.buffer), bytes(self._server.buffer)
        await self._of.tunnel(self._line, said, head + heard)
        return False

    # --- refusing -------------------------------------------------------------------------------

    async def _refuse_name(self, host: str, reason: str) -> bool:
        port = self._of.port
        text = (
            f"roost: this machine may not reach {host}:{port} ({reason}). See what it tried and what would let it "
            f"through: roost egress {self._slot.machine_id}"
        )
        await self._refuse("403 Forbidden", host, reason, text)
        return False

    async def _refuse(self, status: str, host: str, reason: str, text: str) -> None:
        said = text if text.startswith("roost: ") else f"roost: refused: {text}."
        await self._of.refuse(host, "http", reason, http.refusal(status, reason, said))


async def _pass(source: Stream, target: Stream, body: Body, before: bytes = b"") -> None:
    """``before`` and the body, which ``source`` may hold the beginning of. Raises EOFError where it ends too early,
    MalformedError, OSError."""
    if body.chunked:
        if before:
            await target.send(before)
        return await _pass_chunked(source, target)
    held = source.take(len(source.buffer) if body.length is None else body.length)
    if before or held:
        await target.send(before + held)
    left = None if body.length is None else body.length - len(held)
    if left == 0:
        return None
    if not await source.splice(target, left):
        raise EOFError
    return None


async def _pass_chunked(source: Stream, target: Stream) -> None:
    chunks = http.Chunks()
    data = source.take(len(source.buffer))
    while True:
        if passed := chunks.feed(data):
            await target.send(passed)
        if chunks.ended:
            source.buffer += chunks.rest
            return
        data = await source.more()
        if not data:
            raise EOFError
