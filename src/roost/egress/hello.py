"""The first flight of TLS: which name a client asks for (RFC 8446, 4.1.2; RFC 6066, 3).

Only the clear part is read. Encrypted Client Hello cannot be told from the grease that browsers send in its place
(RFC 9849, 6.2), so it is neither refused nor trusted: the outer name counts, as it does on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass

HANDSHAKE = 0x16
MAX_HELLO = 16 * 1024
MAX_RECORDS = 64  # it may come in pieces, but each is looked at again with every one that follows
_RECORD_HEAD = 5
_MAX_RECORD = 2**14
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
# Fatal, access_denied: clients say "alert access denied", which is what it is (RFC 8446, 6.2).
DENIED = b"\x15\x03\x03\x00\x02\x02\x31"


class MalformedError(ValueError):
    """No ClientHello, or none that may be trusted. The text is ours, nothing of the machine's."""


@dataclass(frozen=True, slots=True)
class Hello:
    """``name``: as said, None where there is none."""

    name: str | None


def parse(data: bytes) -> Hello | None:
    """Of all that came so far; None: more is needed. Raises MalformedError, also for more than ``MAX_HELLO``."""
    message = bytearray()
    at, wanted, records = 0, 4, 0
    while len(message) < wanted:
        records += 1
        head = data[at : at + _RECORD_HEAD]
        if head[:1] not in (b"", b"\x16") or head[1:2] not in (b"", b"\x03"):
            raise MalformedError("not a TLS handshake record")
        if len(head) < _RECORD_HEAD:
            return None
        length = int.from_bytes(head[3:5])
        if not 0 < length <= _MAX_RECORD:
            raise MalformedError("a TLS record of impossible length")
        message += data[at + _RECORD_HEAD : at + _RECORD_HEAD + length]
        if message and message[0] != _CLIENT_HELLO:
            raise MalformedError("not a ClientHello")
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4])
        if wanted > MAX_HELLO or records > MAX_RECORDS:
            raise MalformedError("a ClientHello that is too long")
        at += _RECORD_HEAD + length
        if at > len(data) and len(message) < wanted:
            return None
    return Hello(_name(_Reader(bytes(message[4:wanted]))))


class _Reader:
    """Vectors as TLS writes them; raises MalformedError past the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise MalformedError("a ClientHello that ends too early")
        self.at, taken = end, self.data[self.at : end]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))

    @property
    def left(self) -> bool:
        return self.at < len(self.data)


def _name(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression
    if not hello.left:
        return None
    extensions = hello.vector(2)
    if hello.left:
        raise MalformedError("a ClientHello with something behind it")
    name, seen = None, set()
    while extensions.left:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise MalformedError("a ClientHello that says something twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(body)
    return name


def _server_name(body: _Reader) -> str:
    names = body.vector(2)
    kind, host = names.number(1), names.vector(2).data
    if body.left or names.left or kind != _HOST_NAME:
        raise MalformedError("a server_name that is not one host name")
    try:
        return host.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedError("a server_name that is not ASCII") from None
