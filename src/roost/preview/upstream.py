"""One connection to a server in a machine, used by one request after another.

```
 free --begin--> head --answer--> body --its end--> free (or closed)
                  |  '--101--> tunnel
                  '--lost before a byte--> the visitor tries another, where that can do no harm
```
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from roost.errors import RoostError, error
from roost.preview import body, cookies, head
from roost.preview.head import Refused
from roost.services.doors import closed

if TYPE_CHECKING:
    from roost.preview.plane import Plane
    from roost.preview.visitor import Visitor

BUFFER = 64 * 1024  # that waits for who reads slowly, before its other side is not read any more
INFORMED = 16  # interim answers before the real one
_NO_BODY = (204, 304)
# Of an answer under the API's own host: what would speak for all of it.
_NOT_BY_PATH = frozenset(
    {b"strict-transport-security", b"service-worker-allowed", b"public-key-pins", b"set-cookie2"}
    | {b"nel", b"report-to", b"reporting-endpoints", b"accept-ch", b"critical-ch", b"origin-trial"}
)


class Upstream(asyncio.Protocol):
    __slots__ = (
        "_body", "_buffer", "_chunk", "_head", "_interim", "_phase", "_said", "free_since", "key", "lost", "machine_id", "plane", "transport",
        "used", "visitor",
    )  # fmt: skip
    transport: asyncio.Transport

    def __init__(self, plane: Plane, key: tuple[str, int, int]) -> None:
        self.plane = plane
        self.key = key  # machine, start, port
        self.machine_id = key[0]
        self.visitor: Visitor | None = None
        self.used = 0  # requests it has had
        self.lost = False
        self.free_since = 0.0
        self._phase = ""  # "" | head | body | tunnel
        self._buffer = b""
        self._body: body.Body | None = None
        self._chunk = False  # whether what goes to the visitor is chunked
        self._interim = 0
        self._head = b""  # the last plain one, and what was said for it: servers say much the same again and again
        self._said: tuple[bytes, int] = (b"", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER)
        self.plane.opened(self)

    def begin(self, visitor: Visitor) -> None:
        """The next request is this visitor's; what it writes goes out."""
        self.visitor = visitor
        self.used += 1
        self._phase = "head"
        self._buffer = b""
        self._interim = 0

    @property
    def answering(self) -> bool:
        """Whether some of the answer went to the visitor already."""
        return self._phase == "body"

    def close(self) -> None:
        self.visitor = None
        self._phase = ""
        self.plane.dropped(self)
        if not self.transport.is_closing():
            self.transport.abort()

    # --- from the machine -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        visitor = self.visitor
        if visitor is None:  # it speaks unasked
            self.close()
            return
        phase = self._phase
        try:
            if phase == "head":
                self._take_head(visitor, self._buffer + data if self._buffer else data)
            elif phase == "body":
                visitor.at = self.plane.now
                self._take_body(visitor, data)
            elif phase == "tunnel":
                visitor.at = self.plane.now
                self.plane.touch(self.machine_id)
                visitor.transport.write(data)
        except Refused as refused:
            self._broken(visitor, refused.message)

    def eof_received(self) -> bool:
        visitor = self.visitor
        if self._phase == "tunnel" and visitor is not None:
            return visitor.other_ended()
        return False

    def pause_writing(self) -> None:
        if self.visitor is not None:
            self.visitor.pause(2)

    def resume_writing(self) -> None:
        if self.visitor is not None:
            self.visitor.resume(2)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.plane.gone(self)
        visitor, phase = self.visitor, self._phase
        self.visitor = None
        self._phase = ""
        if visitor is None:
            return
        if phase == "head":
            failure = exc if isinstance(exc, RoostError) else None
            if failure is not None and failure.code == "PORT_CLOSED":  # the agent said so late
                failure = closed(visitor.port)
            visitor.failed(self, failure, nothing=not self._buffer and not self._interim)
        elif phase == "body" and isinstance(self._body, body.Endless) and exc is None:
            if self._chunk:
                visitor.transport.write(body.LAST)
            visitor.answered(close=not self._chunk)
        else:
            visitor.cut()

    # --- answers --------------------------------------------------------------------------------

    def _take_head(self, visitor: Visitor, data: bytes) -> None:
        while True:
            end = data.find(head.END)
            if end < 0:
                if len(data) > head.HEAD_BYTES:
                    raise Refused("Its answer's head is above 32 KiB.")
                self._buffer = data
                return
            if visitor.plain and data[:end] == self._head:
                self._again(visitor, data[end + 4 :])
                return
            if end > head.HEAD_BYTES:
                raise Refused("Its answer's head is above 32 KiB.")
            answer = head.answer(data, end)
            raw, data = data[:end], data[end + 4 :]
            if answer.status >= 200 or answer.status == 101:
                break
            self._interim += 1
            if self._interim > INFORMED:
                raise Refused("It informs without end.")
            if not visitor.old:
                kept = _by_path(answer.kept) if visitor.by_path else answer.kept
                visitor.transport.write(_status(answer) + b"".join(kept) + b"\r\n")
            if not data:
                self._buffer = b""
                return
        self._buffer = b""
        self._answer(visitor, answer, raw, data)

    def _again(self, visitor: Visitor, rest: bytes) -> None:
        said, length = self._said
        self._buffer = b""
        if len(rest) == length:
            visitor.transport.write(said + rest)
            self._finish(visitor, b"")
            return
        self._phase = "body"
        self._body = body.Fixed(length)
        self._chunk = False
        self._take_body(visitor, rest, said)

    def _answer(self, visitor: Visitor, answer: head.Answer, raw: bytes, rest: bytes) -> None:
        status = answer.status
        lines = [_status(answer)]
        lines += _by_path(answer.kept) if visitor.by_path else answer.kept
        if visitor.by_path:
            lines.append(b"content-security-policy: sandbox\r\n")
        elif answer.cookies:
            for value in answer.cookies:
                if (kept := cookies.own_host(value)) is not None:
                    lines.append(b"set-cookie: " + kept + b"\r\n")
        if status == 101:
            if not (visitor.websocket and answer.websocket):
                raise Refused("It switches to a protocol it was not asked for.")
            lines.append(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
            visitor.transport.write(b"".join(lines) + rest)
            self._phase = "tunnel"
            visitor.tunnelled()
            return
        close = visitor.closes
        ends = False
        if visitor.method == b"HEAD" or status in _NO_BODY:
            ends = True
            self._body = None
            if answer.length is not None and status != 204:
                lines.append(b"content-length: %d\r\n" % answer.length)
            elif answer.chunked and not visitor.old:
                lines.append(b"transfer-encoding: chunked\r\n")
        elif answer.length is not None:
            lines.append(b"content-length: %d\r\n" % answer.length)
            self._body = body.Fixed(answer.length)
            self._chunk = False
            ends = answer.length == 0
        else:
            self._body = body.Chunked() if answer.chunked else body.Endless()
            self._chunk = not visitor.old
            if self._chunk:
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                close = True
            answer.close = answer.close or not answer.chunked
        if not visitor.asked_all:  # the rest of its body is not waited for
            close = True
        if close:
            lines.append(b"connection: close\r\n")
            visitor.closes = True
        elif visitor.old:
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        said = b"".join(lines)
        small = len(raw) <= head.REMEMBERED
        if small and answer.length and not ends and not answer.close and visitor.plain:
            self._head, self._said = raw, (said, answer.length)
        if answer.close:
            self.key = ("", 0, 0)  # nobody's any more: it is not used again
        self._phase = "body"
        if ends:
            visitor.transport.write(said)
            self._finish(visitor, rest)
        elif rest:
            self._take_body(visitor, rest, said)
        else:
            visitor.transport.write(said)

    def _take_body(self, visitor: Visitor, data: bytes, before: bytes = b"") -> None:
        assert self._body is not None
        part, last, rest = self._body.take(data)
        if self._chunk:
            part = body.chunk(part)
            if last:
                trailers = self._body.trailers if isinstance(self._body, body.Chunked) else b""
                part += b"0\r\n" + trailers + b"\r\n" if trailers else body.LAST
        if before or part:
            visitor.transport.write(before + part if before else part)
        if last:
            self._finish(visitor, rest)

    def _finish(self, visitor: Visitor, rest: bytes) -> None:
        self.visitor = None
        self._phase = ""
        self._body = None
        # What still waits to go out would stand before the next request; what was perhaps not read be taken for it.
        unread = visitor.perhaps_unread or self.transport.get_write_buffer_size()
        if rest or unread or not self.key[0] or self.transport.is_closing():
            self.close()
        else:
            if visitor.full:  # it was paused for this one
                self.transport.resume_reading()
            self.plane.free(self)
        visitor.answered()

    def _broken(self, visitor: Visitor, why: str) -> None:
        phase = self._phase
        self.close()
        if phase == "head":
            port = visitor.port
            visitor.failed(
                self,
                error(
                    "PORT_BAD_ANSWER",
                    f"What listens on port {port} of this machine gave an answer that cannot be passed on. {why}",
                    details={"port": port},
                ),
            )
        else:
            visitor.cut()


def _status(answer: head.Answer) -> bytes:
    return b"HTTP/1.1 %d%b\r\n" % (answer.status, answer.reason)


def _by_path(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if line.partition(b":")[0].lower() not in _NOT_BY_PATH]
