"""The first flight of TLS, in pieces: what was understood early is what is understood at the end."""

from __future__ import annotations

from roost.egress.hello import MAX_HELLO, Hello, MalformedError, parse
from tests.fuzz.targets._pieces import cut

_V = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"


def _made(extensions: bytes) -> bytes:
    body = _V + len(extensions).to_bytes(2) + extensions
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x3c\x16\x03\x01" + len(message).to_bytes(2) + message


def _sni(name: bytes) -> bytes:
    host = b"\x00" + len(name).to_bytes(2) + name
    listed = len(host).to_bytes(2) + host
    return b"\x00\x00" + len(listed).to_bytes(2) + listed


COVERS = ("roost.egress.hello",)
SEEDS = (
    _made(b""),
    _made(_sni(b"a.example")),
    _made(b"\x00\x2b\x00\x03\x02\x03\x04" + _sni(b"b.example")),
    b"\x01\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    _made(_sni(b"a.example"))[:40] + b"\x16\x03\x01\x00\x20" + bytes(32),
)
LONGEST = 2048


def one(data: bytes) -> None:
    pieces, whole = cut(data)
    early: Hello | None = None
    came = b""
    try:
        for piece in pieces:
            came += piece
            early = parse(came)
            if early is not None:
                break
    except MalformedError:
        return
    if early is None:
        assert len(came) <= MAX_HELLO + 64 * 5 + 2**14
        return
    late = parse(whole)
    assert late == early
    assert early.name is None or early.name.isascii()
