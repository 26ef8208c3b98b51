"""Heads of requests and answers, read strictly: what two readers could understand differently is refused.

RFC 9110 and 9112, less what smuggles: no bare line ends, no folded lines, no space before a colon, one Host, one
Content-Length of digits, ``chunked`` alone as transfer coding and never beside a length. Sans-I/O.
"""

from __future__ import annotations

import re
from typing import Final

HEAD_BYTES: Final = 32 * 1024  # servers commonly take 8 to 32
REMEMBERED: Final = 4096  # of a head, for a next one like it
FIELDS: Final = 200
END: Final = b"\r\n\r\n"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST = re.compile(rb"(" + _TOKEN + rb"{1,32}) (/[\x21-\x7e]*|\*) HTTP/1\.([01])\r\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)( [\t\x20-\x7e\x80-\xff]*)?\r\n")
_BLOCK = re.compile(rb"(?:" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
_FIELD = re.compile(rb"([^:\r]+):([^\r]*)\r\n")
_HOST = re.compile(rb"[A-Za-z0-9._-]{1,253}(?::\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::\d{1,5})?")
# A key or token of Roost's, whoever's: those go no further than here.
_OURS = re.compile(rb"[a-z][a-z0-9]{0,15}_[0-9a-fA-F]{64}")
_DIGITS = re.compile(rb"\d{1,18}")
_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"transfer-encoding"}
)
_MINE: Final = frozenset(  # of a request: said anew, judged here, or both
    _HOP
    | {b"host", b"content-length", b"expect", b"cookie", b"authorization", b"x-api-key"}
    | {
        b"x-roost-preview-token",
        b"e2b-traffic-access-token",
        b"proxy-authorization",
        b"forwarded",
        b"x-real-ip",
    }
    | {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-prefix"}
    | {b"x-forwarded-port", b"x-forwarded-server", b"http2-settings"}
)
_LOOKED_AT: Final = _MINE | {b"origin", b"accept", b"sec-fetch-site", b"sec-fetch-mode"}
_OF_ANSWER: Final = _HOP | {b"content-length", b"set-cookie", b"clear-site-data", b"alt-svc"}


class Refused(Exception):
    """What cannot be passed on, and the status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Fields:
    """A request's header fields, understood. ``kept`` goes on as it came."""

    __slots__ = (
        "api_key", "authorization", "chunked", "close", "cookie", "expect", "fetch_mode", "fetch_site", "forwarded_for",
        "forwarded_proto", "host", "html", "keep", "kept", "length", "origin", "preview_token", "websocket",
    )  # fmt: skip

    def __init__(self) -> None:
        self.host = b""
        self.kept: list[bytes] = []  # whole lines
        self.close = False  # asked for
        self.keep = False  # asked for, of HTTP/1.0
        self.length: int | None = None
        self.chunked = False
        self.expect = False
        self.websocket = False
        self.cookie = b""
        self.authorization: bytes | None = None
        self.api_key: bytes | None = None
        self.preview_token: bytes | None = None
        self.origin: bytes | None = None
        self.fetch_site: bytes | None = None
        self.fetch_mode: bytes | None = None
        self.html = False
        self.forwarded_for = b""
        self.forwarded_proto = b""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


def request_line(data: bytes, end: int) -> tuple[bytes, bytes, bool, int]:
    """(method, target, whether HTTP/1.0, where the fields begin). Raises Refused."""
    match = _REQUEST.match(data, 0, end)
    if match is None:
        raise Refused("This is not an HTTP/1.1 request with a path.")
    return match[1], match[2], match[3] == b"0", match.end()


def fields(block: bytes) -> Fields:
    """Of the lines between the request line and the empty line, each with its line end. Raises Refused."""
    if _BLOCK.fullmatch(block) is None:
        raise Refused("A header field of this request is malformed.")
    found = _FIELD.findall(block)
    if len(found) > FIELDS:
        raise Refused(f"More than {FIELDS} header fields.", 431)
    f = Fields()
    nominated: set[bytes] = set()
    hosts = lengths = 0
    upgrade = upgrades = False
    for name, value in found:
        low = name.lower()
        if low not in _LOOKED_AT:
            f.kept.append(name + b":" + value + b"\r\n")
            continue
        value = value.strip(b" \t")
        if low not in _MINE:
            f.kept.append(name + b": " + value + b"\r\n")
        match low:
            case b"host":
                hosts += 1
                f.host = value
            case b"accept":
                f.html = f.html or b"text/html" in value
            case b"connection":
                options = {each.strip() for each in value.lower().split(b",")}
                f.close = f.close or b"close" in options
                f.keep = f.keep or b"keep-alive" in options
                upgrades = upgrades or b"upgrade" in options
                nominated |= options - {b"close", b"keep-alive", b"upgrade", b""}
            case b"content-length":
                lengths += 1
                if _DIGITS.fullmatch(value) is None:
                    raise Refused("Content-Length: not a number.")
                f.length = int(value)
            case b"transfer-encoding":
                if f.chunked or value.lower() != b"chunked":
                    raise Refused("Transfer-Encoding: chunked alone is served.", 501)
                f.chunked = True
            case b"upgrade":
                upgrade = upgrade or value.lower() == b"websocket"
            case b"expect":
                if value.lower() != b"100-continue":
                    raise Refused("Expect: 100-continue is all that can be.", 417)
                f.expect = True
            case b"cookie":
                f.cookie = f.cookie + b"; " + value if f.cookie else value
            case b"authorization":
                _once(f.authorization, b"Authorization")
                f.authorization = value
            case b"x-api-key":
                _once(f.api_key, b"X-API-Key")
                f.api_key = value
            case b"x-roost-preview-token" | b"e2b-traffic-access-token":
                _once(f.preview_token, b"X-Roost-Preview-Token")
                f.preview_token = value
            case b"origin":
                _once(f.origin, b"Origin")
                f.origin = value
            case b"sec-fetch-site":
                f.fetch_site = value
            case b"sec-fetch-mode":
                f.fetch_mode = value
            case b"x-forwarded-for":
                f.forwarded_for = f.forwarded_for + b", " + value if f.forwarded_for else value
            case b"x-forwarded-proto":
                f.forwarded_proto = value.lower()
    if hosts != 1 or _HOST.fullmatch(f.host) is None:
        raise Refused("A request has one Host.")
    if lengths > 1 or (lengths and f.chunked):
        raise Refused("A request has one Content-Length, and none beside Transfer-Encoding.")
    f.websocket = upgrade and upgrades
    if f.websocket and f.has_body:
        raise Refused("A request that upgrades has no body.")
    if nominated:
        f.kept = [line for line in f.kept if line.partition(b":")[0].lower() not in nominated]
    return f


def _once(seen: bytes | None, name: bytes) -> None:
    if seen is not None:
        raise Refused(f"{name.decode()} is there twice.")


def is_ours(value: bytes) -> bool:
    """Whether it has the form of a Roost key or token."""
    return _OURS.fullmatch(value) is not None


def bearer(value: bytes | None) -> bytes | None:
    """The credential of an Authorization header; None for another scheme."""
    if value is None:
        return None
    scheme, _, rest = value.partition(b" ")
    return rest.strip(b" ") if scheme.lower() == b"bearer" else None


class Answer:
    """The head of an answer, understood. ``kept``: lines that may go on; ``cookies``: values of Set-Cookie."""

    __slots__ = (
        "chunked", "close", "cookies", "kept", "length", "old", "reason", "status", "websocket",
    )  # fmt: skip

    def __init__(self, status: int, reason: bytes, old: bool) -> None:
        self.status = status
        self.reason = reason
        self.old = old  # HTTP/1.0
        self.kept: list[bytes] = []
        self.cookies: list[bytes] = []
        self.length: int | None = None
        self.chunked = False
        self.close = old
        self.websocket = False


def answer(data: bytes, end: int) -> Answer:
    """Of ``data`` up to ``end``, where the empty line's CRLF CRLF begins. Raises Refused."""
    match = _STATUS.match(data, 0, end + 2)
    if match is None:
        raise Refused("It does not begin as an HTTP/1.1 answer does.")
    at = match.end()
    block = data[at : end + 2] if at < end + 2 else b""
    if _BLOCK.fullmatch(block) is None:
        raise Refused("A header field of its answer is malformed.")
    found = _FIELD.findall(block)
    if len(found) > FIELDS:
        raise Refused(f"Its answer has more than {FIELDS} header fields.")
    a = Answer(int(match[2]), match[3] or b" ", match[1] == b"0")
    nominated: set[bytes] = set()
    lengths = 0
    kept = a.kept
    for name, value in found:
        low = name.lower()
        if low not in _OF_ANSWER:
            kept.append(name + b":" + value + b"\r\n")
            continue
        value = value.strip(b" \t")
        match low:
            case b"content-length":
                lengths += 1
                if _DIGITS.fullmatch(value) is None:
                    raise Refused("Its Content-Length is no number.")
                a.length = int(value)
            case b"transfer-encoding":
                if a.chunked or a.old or value.lower() != b"chunked":
                    raise Refused("Its Transfer-Encoding is not chunked alone.")
                a.chunked = True
            case b"connection":
                options = {each.strip() for each in value.lower().split(b",")}
                a.close = b"close" in options or (a.close and b"keep-alive" not in options)
                nominated |= options - {b"close", b"keep-alive", b"upgrade", b""}
            case b"upgrade":
                a.websocket = a.websocket or value.lower() == b"websocket"
            case b"set-cookie":
                a.cookies.append(value)
    if lengths > 1 or (lengths and a.chunked):
        raise Refused("Its answer has more than one length.")
    if nominated:
        a.kept = [line for line in kept if line.partition(b":")[0].lower() not in nominated]
    return a
