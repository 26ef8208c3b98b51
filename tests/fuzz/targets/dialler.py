"""A byte stream's greeting: whatever stands before the agent's echo is dropped, all that stands behind it is kept."""

from __future__ import annotations

import hmac

from roost.agent.dialler import MAC_BYTES, NONCE_BYTES, Handshake
from tests.fuzz.targets._pieces import cut

_NONCE = bytes(range(NONCE_BYTES))
_ECHO = _NONCE + hmac.digest(b"token", _NONCE, "sha256")
COVERS = ("roost.agent.dialler",)
SEEDS = (
    b"\x07" + _ECHO + b"behind",
    b"\x01" + b"stale" + _ECHO[:20] + _ECHO,
    b"\x20" + _ECHO[:-1] + b"\x00" + _ECHO,
    b"\x3c" + _NONCE + bytes(MAC_BYTES),
)
WORDS = (_ECHO, _ECHO[:NONCE_BYTES], _ECHO[:30])


def one(data: bytes) -> None:
    pieces, whole = cut(data)
    handshake = Handshake("token", _NONCE)
    rest: bytes | None = None
    for piece in pieces:
        if rest is not None:
            rest += piece
            continue
        rest = handshake.feed(piece)
    at = whole.find(_ECHO)
    assert rest == (None if at < 0 else whole[at + len(_ECHO) :])
    if at >= 0:
        assert handshake.dropped == at
