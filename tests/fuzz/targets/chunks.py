"""A chunked body by both of our readers, in pieces and at once: the same bytes, the same end."""

from __future__ import annotations

import re

from roost.egress.http import Chunks, MalformedError
from roost.preview.body import Chunked
from roost.preview.head import Refused
from tests.fuzz.targets._pieces import cut

COVERS = ("roost.egress.http", "roost.preview.body")
SEEDS = (
    b"\x05" + b"5\r\nhello\r\n0\r\n\r\nrest",
    b"\x00" + b"1;x=y\r\na\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n",
    b"\x20" + b"000\r\nContent-Length: 5\r\n\r\n",
    b"\x3c" + b"ffffffffff\r\nabc",
)
WORDS = (b"\r\n", b"0\r\n", b"0\r\n\r\n", b";", b"\r\n\r\n")


def _strict(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    chunks, out = Chunks(), b""
    try:
        for piece in pieces:
            out += chunks.feed(piece)
    except MalformedError:
        return None
    return _plain(out), chunks.ended, chunks.rest if chunks.ended else b""


def _plain(written: bytes) -> bytes:
    """What is in chunks that we wrote ourselves."""
    found, at = b"", 0
    while at < len(written):
        head = re.compile(rb"([0-9a-f]+)\r\n").match(written, at)
        assert head is not None, written[at : at + 20]
        size = int(head[1], 16)
        if size == 0:
            break
        at = head.end() + size
        assert written[at : at + 2] == b"\r\n"
        found += written[head.end() : at]
        at += 2
    return found


def _preview(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | None:
    chunked, out = Chunked(), b""
    try:
        for number, piece in enumerate(pieces):
            body, last, rest = chunked.take(piece)
            out += body
            if last:
                return out, True, rest + b"".join(pieces[number + 1 :])
    except Refused:
        return None
    return out, False, b""


def one(data: bytes) -> None:
    pieces, whole = cut(data)
    for read in (_strict, _preview):
        in_pieces, at_once = read(pieces), read([whole])
        assert in_pieces == at_once, read.__name__
    strict, preview = _strict(pieces), _preview(pieces)
    if strict is not None and preview is not None and strict[1] and preview[1]:
        assert strict == preview
