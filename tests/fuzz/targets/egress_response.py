"""An answer on its way in: refused, or its end is known."""

from __future__ import annotations

from roost.egress.http import MalformedError, request, response
from tests.fuzz.targets._pieces import fields

_ASKED = [request(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()) for method in ("GET", "HEAD")]
COVERS = ("roost.egress.http",)
SEEDS = (
    b"\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"\x00HTTP/1.1 204 No Content\r\n\r\n",
    b"\x01\x00HTTP/1.0 200\r\nTransfer-Encoding: gzip, chunked\r\nConnection: keep-alive\r\n\r\n",
    b"\x00HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nodd line\r\n\r\n",
    b"\x00HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
)
WORDS = (
    b"Content-Length: ",
    b"Transfer-Encoding: ",
    b"chunked",
    b"Connection: ",
    b"\r\n",
    b"HTTP/1.1 ",
)


def one(data: bytes) -> None:
    said, head = fields(data, 2)
    asked = _ASKED[len(said) % 2]
    try:
        answer = response(head, asked)
    except MalformedError:
        return
    assert 100 <= answer.status <= 999
    body = answer.body
    if body.length is not None:
        assert body.length >= 0
        assert not body.chunked
    if asked.method == b"HEAD":
        assert body.empty
    if body.length is None and not body.chunked:
        assert not answer.keep
