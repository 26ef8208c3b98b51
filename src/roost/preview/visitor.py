"""One connection of a browser's, request after request.

```
 waits --head--> judged --(machine wakes, connects)--> under way --answer's end--> waits
   |  \\                                                   '--101--> tunnel
   |   '--of the API's host--> handed back to the front listener
   '--what cannot be read--> an answer of our own, and the end
```
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Any, cast

import structlog

from roost.errors import CODES, ForbiddenError, InternalError, RoostError, discreet, error
from roost.gateway.http import last_words
from roost.preview import body, cookies, head, pages
from roost.preview.access import Grant, tokens
from roost.preview.head import Fields, Refused, is_ours
from roost.preview.upstream import BUFFER, Upstream
from roost.services import asking

if TYPE_CHECKING:
    from roost.preview.plane import Path, Plane, Route

log = structlog.get_logger(__name__)

HELD = 64 * 1024  # of what comes too soon, before reading pauses
WAITS_S = 75.0
HEAD_S = 20.0
STALLS_S = 3600.0  # without a byte either way
_BODILESS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE"})
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})


class _Memo:
    """What the last block of header fields was found to be: clients say much the same again and again."""

    __slots__ = ("block", "fields", "forward", "known", "label", "route", "tokens")

    def __init__(
        self, block: bytes, fields: Fields, label: str | None, peer: bytes, local: bool, tls: bool
    ) -> None:
        self.block = block
        self.fields = f = fields
        self.label = label
        self.route: Route | None = None
        self.known = -1  # the version of ports it is of
        self.tokens, others = tokens(f)
        lines = [b"host: " + f.host + b"\r\n", *f.kept]
        if others:
            lines.append(b"cookie: " + others + b"\r\n")
        if f.authorization is not None:
            bare = head.bearer(f.authorization)
            if bare is None or not is_ours(bare):
                lines.append(b"authorization: " + f.authorization + b"\r\n")
        if f.api_key is not None and not is_ours(f.api_key):
            lines.append(b"x-api-key: " + f.api_key + b"\r\n")
        before = f.forwarded_for + b", " if local and f.forwarded_for else b""
        lines.append(b"x-forwarded-for: " + before + peer + b"\r\n")
        lines.append(b"x-forwarded-host: " + f.host + b"\r\n")
        lines.append(b"x-forwarded-proto: " + scheme(f, local, tls) + b"\r\n")
        lines += _framing(f)
        self.forward = b"".join(lines)

    def by_path(self, prefix: bytes) -> bytes:
        """Under the API's own host: no cookies, no credentials."""
        gone = (b"cookie:", b"authorization:")
        lines = self.forward.splitlines(keepends=True)
        kept = [line for line in lines if not line.lower().startswith(gone)]
        return b"".join(kept) + b"x-forwarded-prefix: " + prefix + b"\r\n"

    def cdp(self) -> bytes:
        """To Chromium, which answers to localhost alone, and to no page: who may was asked already."""
        lines = [line for line in self.fields.kept if not line.lower().startswith(b"origin:")]
        return b"".join([b"host: localhost\r\n", *lines, *_framing(self.fields)])


class Visitor(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, plane: Plane, handed: bool, full: bool = False) -> None:
        """``handed``: the front has judged that the first request is for here, so it goes back for nothing.
        ``full``: whoever had the connection was told to write no more; nobody is told so twice."""
        self.plane = plane
        self.at = plane.now  # when something last happened
        self.route: Route | None = None
        self.grant: Grant | None = None
        self.method = b""
        self.old = False  # HTTP/1.0
        self.closes = False  # after this answer
        self.by_path = False
        self.flat = False  # errors are said as PandaStack says them
        self.websocket = False
        self.asked_all = True  # the request's body is through
        self.port = 0
        self._handed = handed
        self._memo: _Memo | None = None
        self._buffer = b""
        self._busy = False
        self._tunnel = False
        self._over = False
        self._ended = [False, False]  # of a tunnel: the visitor's side, the machine's
        self._up: Upstream | None = None
        self._body: body.Body | None = None
        self._sent = b""  # the request's head, for a second try
        self._task: asyncio.Task[None] | None = None
        self._paused = 0
        self._full = full  # the browser takes no more for now
        self._turning = False  # within ``_go_on``
        self._counted = ""
        self._using: contextlib.AbstractContextManager[None] | None = None

    # --- the connection -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=BUFFER)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else "unknown"
        self._peer = address.encode()
        self._local = address.startswith("127.") or address in ("::1", "unknown")
        self._tls = transport.get_extra_info("sslcontext") is not None
        self.plane.came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        if self._task is not None:
            self._task.cancel()
        self._leave_upstream()
        self._end_request()
        self.plane.left(self)

    def eof_received(self) -> bool:
        up = self._up
        if not self._tunnel or up is None or self._ended[1]:
            return False
        self._ended[0] = True
        if up.transport.can_write_eof():
            up.transport.write_eof()
        return True

    def other_ended(self) -> bool:
        """The machine's side of the tunnel has; whether its own may still be written to."""
        if self._ended[0] or self.transport.is_closing():
            return False
        self._ended[1] = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        self._full = True
        if self._up is not None and not self._up.transport.is_closing():
            self._up.transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._up is not None and not self._up.transport.is_closing():
            self._up.transport.resume_reading()
        if not (self._busy or self._over or self.transport.is_closing()):
            self.at = self.plane.now
            self.resume(8)
            self._go_on()

    def pause(self, why: int) -> None:
        """1: too much is held; 2: the machine takes no more; 4: it wakes; 8: no next request while answers wait."""
        if not self._paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused |= why

    def resume(self, why: int) -> None:
        if self._paused:
            self._paused &= ~why
            if not self._paused and not self.transport.is_closing():
                self.transport.resume_reading()

    @property
    def plain(self) -> bool:
        """Whether what is answered depends on the answer alone."""
        return (
            not (self.old or self.closes or self.by_path)
            and self.asked_all
            and self.method != b"HEAD"
        )

    @property
    def perhaps_unread(self) -> bool:
        """Whether what answered may not have read the whole request: an honest server takes no body of these."""
        return not self.asked_all or (self._body is not None and self.method in _BODILESS)

    @property
    def full(self) -> bool:
        return self._full

    @property
    def busy(self) -> bool:
        return self._busy

    def shutdown(self) -> None:
        """The daemon stops: what is under way may end, nothing new begins."""
        self.closes = True
        if not self._busy or self._tunnel:
            self.transport.close()

    def cut(self) -> None:
        """At once, so that nobody takes half an answer for a whole one."""
        if not self.transport.is_closing():
            self.transport.abort()

    def sweep(self, now: float, unix: float) -> None:
        if self._busy:
            late = (
                self.grant is not None
                and self.grant.expires is not None
                and self.grant.expires <= unix
            )
            if late or now - self.at > STALLS_S:
                self.cut()
        elif now - self.at > (HEAD_S if self._buffer and not self._full else WAITS_S):
            if self._full:  # to end in good order it would have to read
                self.cut()
            else:
                self.transport.close()

    # --- requests -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if self._tunnel:
            self._to_tunnel(data)
        elif not self._busy:
            if not self._buffer:
                self.at = self.plane.now
            self._buffer += data
            self._go_on()
        elif self._up is not None and self._body is not None and not self.asked_all:
            self.at = self.plane.now
            self._take_body(data)
        else:
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > HELD:
            self.pause(1)

    def _go_on(self) -> None:
        """With what is there of next requests: one after another, not one within another, and none while the browser
        does not take the answers it has."""
        if self._turning:
            return
        self._turning = True
        try:
            while self._buffer and not (self._busy or self._over):
                if self._full:
                    self.pause(8)
                    return
                data, self._buffer = self._buffer, b""
                if not self._next(data):
                    return
        finally:
            self._turning = False

    def _next(self, data: bytes) -> bool:
        """``data`` begins with a request, if with anything; whether it was a whole one, so that more may follow."""
        while data[:2] == b"\r\n":  # empty lines between requests
            data = data[2:]
        if data == b"\r":
            self._buffer = data
            return False
        end = data.find(head.END)
        if end < 0 or end > head.HEAD_BYTES:
            self._buffer = data
            if len(data) > head.HEAD_BYTES:
                self._refuse_head(Refused("The request's head is above 32 KiB.", 431))
            return False
        try:
            method, target, old, at = head.request_line(data, end + 2)
            block = data[at : end + 2]
            memo = self._memo
            if memo is None or memo.block != block:
                f = head.fields(block)
                label = self.plane.ports.places.label(f.host.decode("latin-1"))
                memo = _Memo(block, f, label, self._peer, self._local, self._tls)
                self._memo = memo
            if old and memo.fields.chunked:
                raise Refused("HTTP/1.0 knows no chunks.")
        except Refused as refused:
            self._refuse_head(refused)
            return False
        path = None
        if memo.label is None or self.plane.elsewhere(memo.label):
            path = self.plane.path(target) if memo.label is None else None
            if path is None:
                self._hand_back(data)
                return False
        self._handed = False
        self._begin(method, target, old, memo, path, data[end + 4 :])
        return True

    def _hand_back(self, data: bytes) -> None:
        if self._handed:
            self._refuse_head(Refused("This request is not for one host."))
            return
        self._over = True
        self._buffer = b""
        self.plane.left(self, gone=False)
        self.plane.to_api(self.transport, data)

    def _begin(
        self,
        method: bytes,
        target: bytes,
        old: bool,
        memo: _Memo,
        path: Path | None,
        rest: bytes,
    ) -> None:
        f = memo.fields
        self._busy = True
        self._buffer = b""
        self.method = method
        self.old = old
        self.closes = self.closes or f.close or (old and not f.keep)
        self.by_path = path is not None
        self.flat = path is not None and path.before.startswith(b"/v1/sandboxes/")
        self.websocket = f.websocket and not old
        self.grant = None
        self.route = None
        self._body = body.Chunked() if f.chunked else body.Fixed(f.length) if f.length else None
        self.asked_all = self._body is None
        if rest:
            self._hold(rest)
        if method == b"CONNECT" or (target[:1] != b"/" and method != b"OPTIONS"):
            self._refuse(error("METHOD_NOT_ALLOWED", "No proxy to elsewhere is here."), False)
            return
        if path is not None and path.cdp:
            if not self.websocket:
                self._refuse(
                    error("METHOD_NOT_ALLOWED", "This is a WebSocket, of a browser or a page."),
                    False,
                )
                return
            self._sent = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path.asked, memo.cdp())
        elif path is not None:
            said = memo.by_path(path.before)
            self._sent = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path.asked, said)
        elif b"roost_token=" in target:
            self._later(self._by_link(memo, target))
            return
        else:
            self._sent = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, memo.forward)
        try:
            self.route = self.plane.route(memo, path)
            grant = self.plane.quick(self.route, memo, method, self.websocket)
            if grant is not None and self.plane.owned(self.route):
                self.grant = grant
                self.plane.rate(self.route, grant)
                self._counted = self.plane.admit(self.route, grant)
                self.port = self.route.port
                up = self.plane.spare(self.route)
                if up is not None:
                    self._use()
                    self._go(up)
                    return
        except RoostError as failure:
            self._refuse(failure)
            return
        self._later(self._arrange(memo))

    def _later(self, work: Any) -> None:
        # In no context of anybody's: what it may do is its own.
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._guarded(work), context=contextvars.Context())

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except RoostError as failure:
            self._task = None
            self._refuse(failure)
        except Exception as failure:
            self._task = None
            log.error("preview.failed", exc_info=failure)
            self._refuse(InternalError("Roost failed to do this; the daemon's log has the reason."))
        else:
            self._task = None

    async def _arrange(self, memo: _Memo, fresh: bool = False) -> None:
        """Whatever is not there at once: who it is, the machine, a connection."""
        plane = self.plane
        assert self.route is not None
        if self.grant is None:
            grant = await plane.judge(self.route, memo, self.method, self.websocket)
            plane.rate(self.route, grant)
            await plane.require_owned(self.route)
            self._counted = plane.admit(self.route, grant)
            self.grant = grant
            self.port = self.route.port
        if self.grant.reads:
            asking.only_reads()
        self._use()
        up = await plane.connect(self.route, fresh)
        if self._over or self.transport.is_closing():
            plane.free(up)
            return
        self._go(up)

    def _go(self, up: Upstream) -> None:
        self._up = up
        up.begin(self)
        if self._full:
            up.transport.pause_reading()
        up.transport.write(self._sent)
        if not self.asked_all and self._buffer:
            data, self._buffer = self._buffer, b""
            self._take_body(data)
        if self._paused & 1 and self._body is not None and not self.asked_all:
            self.resume(1)

    def _take_body(self, data: bytes) -> None:
        assert self._body is not None
        assert self._up is not None
        try:
            part, last, rest = self._body.take(data)
        except Refused:
            answering = self._up.answering
            self._leave_upstream()
            if answering:  # ours would be taken for a part of it
                self.cut()
            else:
                self._refuse(error("INVALID_BODY", "The request's body is malformed."), False)
            return
        if isinstance(self._body, body.Chunked):
            part = body.chunk(part)
            if last:
                part += b"0\r\n" + self._body.trailers + b"\r\n"
        if part:
            self._up.transport.write(part)
        if last:
            self.asked_all = True
            if rest:
                self._hold(rest)

    # --- ends -----------------------------------------------------------------------------------

    def answered(self, close: bool = False) -> None:
        """The answer is through."""
        self._up = None
        self._sent = b""
        if self._memo is not None and len(self._memo.block) > head.REMEMBERED:
            self._memo = None
        self._end_request()
        self._busy = False
        self.at = self.plane.now
        if self.closes or close:
            self._over = True
            if self.asked_all:
                self.transport.close()
            else:
                last_words(self.transport, b"")
            return
        self.resume(1 | 2)
        self._go_on()

    def failed(self, up: Upstream, failure: RoostError | None, nothing: bool = False) -> None:
        """No answer came. ``nothing``: not a byte of one; a connection that was used before may have been closed
        by the machine just as this was sent."""
        self._up = None
        memo = self._memo
        again = nothing and up.used > 1 and failure is None and self._body is None
        if again and self.method in _IDEMPOTENT and memo is not None and not self._over:
            self._later(self._arrange(memo, fresh=True))
            return
        self._refuse(
            failure
            or error(
                "PORT_BAD_ANSWER",
                f"What listens on port {self.port} of this machine closed the connection without an answer.",
                details={"port": self.port},
            )
        )

    def tunnelled(self) -> None:
        """From here on it is bytes. A tunnel keeps its machine awake by what goes through it, not by being there."""
        self._tunnel = True
        self._end_use()
        data, self._buffer = self._buffer, b""
        self.resume(1)
        if data:
            self._to_tunnel(data)

    def _to_tunnel(self, data: bytes) -> None:
        self.at = self.plane.now
        up = self._up
        if up is None or up.transport.is_closing():
            self.cut()
            return
        up.transport.write(data)
        assert self.route is not None
        if not self.plane.touch(self.route.machine_id) and self._task is None:
            self.pause(4)
            self._later(self._wake())

    async def _wake(self) -> None:
        assert self.route is not None
        assert self.grant is not None
        if self.grant.reads:
            asking.only_reads()
        try:
            await self.plane.awake(self.route)
        except RoostError:
            self.cut()
        self.resume(4)

    async def _by_link(self, memo: _Memo, target: bytes) -> None:
        """The same address without the token, which a cookie holds from then on."""
        path, _, query = target.partition(b"?")
        token, left = b"", []
        for each in query.split(b"&"):
            name, _, value = each.partition(b"=")
            if name == b"roost_token":
                token = value
            else:
                left.append(each)
        clean = path + (b"?" + b"&".join(left) if left else b"")
        f = memo.fields
        places = self.plane.ports.places
        how = places.scheme.encode() if places.told else scheme(f, self._local, self._tls)
        cookie = await self.plane.cookie(memo.label or "", token)
        if self.method not in (b"GET", b"HEAD"):
            raise ForbiddenError("A link is opened with GET.")
        if cookie is None:
            self.route = self.plane.route(memo, None)
            await self.plane.judge(
                self.route, memo, self.method, False
            )  # says what everybody hears
        lines = [b"HTTP/1.1 302 Found\r\n", b"location: ", how]
        lines += [b"://", f.host, clean, b"\r\n"]
        if cookie is not None and cookie[0]:
            lines.append(cookies.made(cookie[0], how == b"https", cookie[1]))
        lines.append(
            b"cache-control: no-store\r\nreferrer-policy: no-referrer\r\ncontent-length: 0\r\n"
        )
        self._say(lines)

    def _say(self, lines: list[bytes]) -> None:
        """A whole answer of ours, but for its end."""
        self.closes = self.closes or not self.asked_all
        if self.closes:
            lines.append(b"connection: close\r\n")
        elif self.old:
            lines.append(b"connection: keep-alive\r\n")
        if not self.transport.is_closing():
            self.transport.write(b"".join([*lines, b"\r\n"]))
            self.answered()

    def _refuse(self, failure: RoostError, keep: bool = True) -> None:
        """An answer of ours. The request's body, if any is still to come, ends the connection."""
        if self.transport.is_closing():
            return
        as_html = self._memo is not None and self._memo.fields.html and not self.by_path
        self.plane.refused(failure.code)
        self.closes = self.closes or not keep or not self.asked_all or self.old
        failure = discreet(failure)
        label = None if self._memo is None or self.by_path else self._memo.label
        if self.flat:
            said: tuple[int, dict[str, Any]] | None = failure.status, {"error": failure.message}
        else:
            said = None if label is None else self.plane.said(label, failure)
        self.transport.write(
            pages.failure(
                failure,
                as_html,
                head=self.method == b"HEAD",
                close=self.closes,
                said=said,
            )
        )
        self.answered()

    def _refuse_head(self, refused: Refused) -> None:
        self._over = True
        self._buffer = b""
        self.plane.refused("INVALID_BODY")
        if not self.transport.is_closing():
            last_words(self.transport, _bad_request(refused))

    def _leave_upstream(self) -> None:
        up, self._up = self._up, None
        if up is not None:
            up.close()

    def _use(self) -> None:
        if self._using is None:
            assert self.route is not None
            self._using = self.plane.using(self.route.machine_id)
            self._using.__enter__()

    def _end_use(self) -> None:
        using, self._using = self._using, None
        if using is not None:
            using.__exit__(None, None, None)

    def _end_request(self) -> None:
        self._end_use()
        counted, self._counted = self._counted, ""
        if counted:
            self.plane.over(counted)


def scheme(f: Fields, local: bool, tls: bool) -> bytes:
    """As the browser sees it: what a proxy on this host says counts."""
    if tls:
        return b"https"
    return b"https" if local and f.forwarded_proto == b"https" else b"http"


def _framing(f: Fields) -> list[bytes]:
    lines = []
    if f.chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif f.length is not None:
        lines.append(b"content-length: %d\r\n" % f.length)
    if f.expect and f.has_body:
        lines.append(b"expect: 100-continue\r\n")
    if f.websocket:
        lines.append(b"connection: upgrade\r\nupgrade: websocket\r\n")
    return lines


def _bad_request(refused: Refused) -> bytes:
    code = "PAYLOAD_TOO_LARGE" if refused.status == 431 else "INVALID_BODY"
    failure = error(code if code in CODES else "INVALID_BODY", refused.message)
    failure.status = refused.status
    return pages.failure(failure, False, close=True)
