"""HTTP/1 as far as a proxy must know it: heads and where a message ends (RFC 9110, RFC 9112). No I/O.

Of requests everything is refused that two readers could understand differently, for that is how one connection is
made to carry a request that nobody looked at: bare line feeds, folded lines, spaces around names, a second Host or
Content-Length, both framings at once, absolute targets. What passes is written anew from what was understood.
Answers come from servers that were allowed, and are read as leniently as is safe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_HEAD = 64 * 1024
MAX_FIELDS = 256
_MAX_LINE = 8 * 1024
_MAX_DIGITS = 18
_MAX_CHUNK_DIGITS = 12

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%s) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])" % _TOKEN)
_FIELD = re.compile(rb"(%s):[ \t]*([\x20-\x7e\x80-\xff\t]*)" % _TOKEN)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n\x00]*)?")
_HOST = re.compile(r"([A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_FRAMES = re.compile(rb"(?i)content-length|transfer-encoding|connection")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,%d})[ \t]*(?:;[\x20-\x7e\x80-\xff\t]*)?" % _MAX_CHUNK_DIGITS)

# What belongs to one connection: never passed on (RFC 9110, 7.6.1), or said anew.
_OURS = frozenset({"connection", "proxy-connection", "keep-alive", "upgrade", "http2-settings"})
_TO_A_PROXY = frozenset({"proxy-authorization", "proxy-connection"})
_KEPT = frozenset({"host", "content-length", "transfer-encoding"})
# Nor may these come as a trailer (RFC 9110, 6.5.1).
_FRAMING = _KEPT | {"trailer", "connection", "te"}

Fields = tuple[tuple[bytes, bytes], ...]


class MalformedError(ValueError):
    """The text is ours, nothing of the machine's."""

    reason = "malformed"


class NoHostError(MalformedError):
    reason = "no_name"


@dataclass(frozen=True, slots=True)
class Body:
    """``length``: bytes; None with ``chunked``, or, of an answer, until the connection ends."""

    length: int | None = 0
    chunked: bool = False

    @property
    def empty(self) -> bool:
        return self.length == 0 and not self.chunked


@dataclass(frozen=True, slots=True)
class Request:
    method: bytes
    target: bytes
    minor: int
    host: str  # as said, without the port
    port: int | None
    body: Body
    keep: bool  # the client would send another one on this connection
    websocket: bool
    fields: Fields = field(repr=False)  # without those about the connection

    def head(self, *, absolute: bytes = b"", extra: Fields = ()) -> bytes:
        """To send on. ``absolute``: the scheme and authority before the target, for a proxy."""
        lines = [b"%s %s%s HTTP/1.%d" % (self.method, absolute, self.target, self.minor)]
        fields = self.fields
        if absolute:
            fields = tuple(each for each in fields if _key(each[0]) not in _TO_A_PROXY)
        lines += [b"%s: %s" % each for each in (*fields, *extra)]
        if self.websocket:
            lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
        elif not self.keep:
            lines.append(b"Connection: close")
        elif self.minor == 0:
            lines.append(b"Connection: keep-alive")
        return b"\r\n".join(lines) + b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Response:
    """``head`` goes to the machine as it came."""

    status: int
    body: Body
    keep: bool
    head: bytes = field(repr=False)

    @property
    def interim(self) -> bool:
        return 100 <= self.status < 200 and self.status != 101


def looks_like(data: bytes) -> bool | None:
    """Whether that is how an HTTP/1 request begins; None: too short to say."""
    word = data[:24].lstrip(b"\r\n")
    method, space, rest = word.partition(b" ")
    if not re.fullmatch(rb"[A-Z-]{0,20}", method):
        return False
    if not space:
        return None if len(word) < 20 else False
    return True if rest else None


def end_of_head(data: bytes | bytearray, start: int = 0) -> int:
    """Where it ends, behind the empty line; -1: not yet. ``start``: what was searched before."""
    at = data.find(b"\r\n\r\n", max(0, start - 3))
    return -1 if at < 0 else at + 4


def request(head: bytes) -> Request:
    """Raises MalformedError. Ends with the empty line."""
    first, fields = _split(head)
    line = _REQUEST_LINE.fullmatch(first)
    if line is None or len(first) > MAX_HEAD:
        raise MalformedError("a request line that is none")
    method, target, minor = line[1], line[2], int(line[3])
    if method == b"CONNECT" or not (target.startswith(b"/") or target == b"*"):
        raise MalformedError("a request meant for a proxy; this machine needs none")
    if method == b"TRACE":  # comes back with what was added on the way
        raise MalformedError("TRACE, which is not passed on")
    by_name = _by_name(fields)
    hosts = by_name.get("host", [])
    if not hosts:
        raise NoHostError("a request without a Host")
    if len(hosts) > 1:
        raise MalformedError("a request of two Hosts")
    host, port = _host(hosts[0])
    said = _tokens(by_name.get("connection", []))
    if said & _KEPT:
        raise MalformedError("a Connection field that takes a field away on which all depends")
    upgrades = _tokens(by_name.get("upgrade", []))
    body = _request_body(by_name, minor)
    websocket = upgrades == {"websocket"} and "upgrade" in said and minor == 1 and body.empty
    keep = "close" not in said and (minor == 1 or "keep-alive" in said)
    dropped = _OURS | said
    kept = tuple(each for each in fields if _key(each[0]) not in dropped)
    return Request(method, target, minor, host, port, body, keep, websocket, kept)


def response(head: bytes, asked: Request) -> Response:
    """Raises MalformedError."""
    first, fields = _split(head, lenient=True)
    line = _STATUS_LINE.fullmatch(first)
    if line is None:
        raise MalformedError("an answer with a status line that is none")
    minor, status = int(line[1]), int(line[2])
    by_name = _by_name(fields)
    said = _tokens(by_name.get("connection", []))
    keep = asked.keep and "close" not in said and (minor == 1 or "keep-alive" in said)
    if asked.method == b"HEAD" or status < 200 or status in (204, 304):
        return Response(status, Body(), keep, head)
    codings = [each for value in by_name.get("transfer-encoding", []) for each in _list(value)]
    lengths = {each for value in by_name.get("content-length", []) for each in _list(value)}
    if codings:
        if codings[-1] != "chunked" or codings.count("chunked") > 1:
            return Response(status, Body(length=None), False, head)
        return Response(status, Body(length=None, chunked=True), keep and not lengths, head)
    if not lengths:
        return Response(status, Body(length=None), False, head)
    if len(lengths) > 1:
        raise MalformedError("an answer of two lengths")
    return Response(status, Body(length=_length(lengths.pop())), keep, head)


def refusal(status: str, reason: str, text: str) -> bytes:
    """An answer of the proxy's own, after which it closes. ``text`` is plain, one paragraph."""
    body = f"{text}\n".encode()
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\nx-roost-refused: {reason}\r\n"
        "x-content-type-options: nosniff\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class Chunks:
    """A chunked body: fed as it comes, written anew without extensions, strictly. ``rest`` is what lies behind it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0  # of the chunk that is being passed on
        self._behind = False  # its CRLF is due
        self._trailers: list[bytes] | None = None
        self._trailed = 0
        self.ended = False

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """What may go on. Raises MalformedError."""
        self._buffer += data
        return b"".join(self._read())

    def _read(self) -> Iterator[bytes]:
        while not self.ended:
            if self._left:
                if not self._buffer:
                    return
                piece = bytes(self._buffer[: self._left])
                del self._buffer[: len(piece)]
                self._left -= len(piece)
                self._behind = not self._left
                yield b"%x\r\n%s\r\n" % (len(piece), piece)
                continue
            if self._behind:
                if len(self._buffer) < 2:
                    return
                if self._buffer[:2] != b"\r\n":
                    raise MalformedError("a chunk longer than it says")
                del self._buffer[:2]
                self._behind = False
            line = self._line()
            if line is None:
                return
            if self._trailers is not None:
                yield from self._trailer(line)
            elif (said := _CHUNK.fullmatch(line)) is None:
                raise MalformedError("a chunk without a size")
            elif (size := int(said[1], 16)) == 0:
                self._trailers = []
            else:
                self._left = size

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        if end > _MAX_LINE or (end < 0 and len(self._buffer) > _MAX_LINE):
            raise MalformedError("a line that is too long")
        if end < 0:
            return None
        line = bytes(self._buffer[: end + 1])
        if not line.endswith(b"\r\n"):
            raise MalformedError("a bare line feed")
        del self._buffer[: end + 1]
        return line[:-2]

    def _trailer(self, line: bytes) -> Iterator[bytes]:
        assert self._trailers is not None
        if line:
            self._trailed += len(line)
            found = _FIELD.fullmatch(line)
            if found is None or _key(found[1]) in _FRAMING or self._trailed > _MAX_LINE:
                raise MalformedError("a trailer that is none")
            self._trailers.append(line + b"\r\n")
            return
        self.ended = True
        yield b"0\r\n" + b"".join(self._trailers) + b"\r\n"


def _split(head: bytes, *, lenient: bool = False) -> tuple[bytes, Fields]:
    if len(head) > MAX_HEAD or not head.endswith(b"\r\n\r\n"):
        raise MalformedError("a head that is too long")
    first, *lines = head[:-4].split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise MalformedError("a head with too many fields")
    fields = []
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is not None:
            fields.append((found[1], found[2].rstrip(b" \t")))
        elif not lenient or _FRAMES.search(line):
            raise MalformedError("a field that is none")
    return first, tuple(fields)


def _key(name: bytes) -> str:
    return name.decode("ascii").lower()


def _by_name(fields: Fields) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(_key(name), []).append(value.decode("latin-1"))
    return found


def _list(value: str) -> list[str]:
    return [each.strip(" \t").lower() for each in value.split(",") if each.strip(" \t")]


def _tokens(values: list[str]) -> frozenset[str]:
    return frozenset(each for value in values for each in _list(value))


def _host(value: str) -> tuple[str, int | None]:
    found = _HOST.fullmatch(value)
    if found is None or not value.isascii():
        raise MalformedError("a Host that is none")
    return found[1], None if found[2] is None else int(found[2])


def _request_body(by_name: dict[str, list[str]], minor: int) -> Body:
    codings, lengths = by_name.get("transfer-encoding", []), by_name.get("content-length", [])
    if codings and lengths:
        raise MalformedError("a request of two framings")
    if codings:
        if minor == 0 or len(codings) > 1 or codings[0].lower() != "chunked":
            raise MalformedError("a request in a transfer coding other than chunked")
        return Body(length=None, chunked=True)
    if not lengths:
        return Body()
    if len(lengths) > 1:
        raise MalformedError("a request of two lengths")
    return Body(length=_length(lengths[0]))


def _length(text: str) -> int:
    if not re.fullmatch(rf"[0-9]{{1,{_MAX_DIGITS}}}", text):
        raise MalformedError("a length that is none")
    return int(text)
