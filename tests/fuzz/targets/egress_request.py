"""A request on its way out: what passes is understood alike by an independent parser (llhttp), and by us once more."""

from __future__ import annotations

import httptools

from roost.egress.http import MalformedError, looks_like, request

COVERS = ("roost.egress.http",)
SEEDS = (
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"POST /x?y=%20 HTTP/1.1\r\nhOsT: a.example:8080\r\nContent-Length: 3\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n",
    b"PUT * HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTE: trailers\r\n\r\n",
)
WORDS = (
    b"Host: ", b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"Upgrade: ", b"\r\n",
    b"HTTP/1.1", b"\r\n\r\n", b" \t", b"keep-alive", b"identity",
)  # fmt: skip


class _Heard:
    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def one(data: bytes) -> None:
    looks_like(data)
    try:
        asked = request(data)
    except MalformedError:
        return
    head = asked.head()
    again = request(head)
    assert (again.method, again.target, again.minor, again.host, again.port, again.body) == (
        asked.method, asked.target, asked.minor, asked.host, asked.port, asked.body,
    )  # fmt: skip
    assert again.head() == head
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return  # it is the stricter one, or knows no such method: nothing was understood otherwise
    assert heard.complete, "another request or a body was seen where the head ends"
    assert parser.get_method() == asked.method
    assert heard.url == asked.target
    hosts = [value for name, value in heard.headers if name == b"host"]
    assert len(hosts) == 1
    assert hosts[0].decode().partition(":")[0] == asked.host
    lengths = [value for name, value in heard.headers if name == b"content-length"]
    codings = [value.lower() for name, value in heard.headers if name == b"transfer-encoding"]
    assert codings == ([b"chunked"] if asked.body.chunked else [])
    if not asked.body.chunked:
        assert [int(value) for value in lengths] in ([asked.body.length], [])
        assert lengths or not asked.body.length
