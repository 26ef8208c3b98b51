"""What a gVisor sandbox answers on its control socket: done, refused, or no answer; and it takes no longer than it may."""

from __future__ import annotations

import socket
import time

from roost.drivers.urpc import CallError, _answer

COVERS = ("roost.drivers.urpc",)
SEEDS = (
    b'{"success": true, "err": "", "result": {}}\n',
    b'{"success": false, "err": "no"}',
    b'[]{"a": "}"}',
    b"{" * 300 + b"}" * 300,
    b'{"success": \xff}',
)
WORDS = (b'"success": ', b"true", b"}", b"]", b"\n")
LONGEST = 2048


def one(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            answer = _answer(ours, "pause", time.monotonic() + 30)
        except (CallError, ConnectionResetError):
            return
        assert isinstance(answer, dict)
