"""A browser's request to a preview: what passes has one Host and one length, and none of our keys in it."""

from __future__ import annotations

import httptools

from roost.preview import cookies, head

_KEY = b"roost_" + b"0a" * 32
COVERS = ("roost.preview.head", "roost.preview.cookies")
SEEDS = (
    b"GET / HTTP/1.1\r\nHost: 80-x.localhost\r\nCookie: a=b; roost_preview=t; c=d\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nAuthorization: Bearer %b\r\n\r\n"
    % _KEY,
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\nOrigin: null\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nX-Forwarded-For: ::1\r\n\r\n",
)
WORDS = (
    b"Host: ", b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"Cookie: ", b"\r\n",
    b"roost_preview=", b"__Host-roost_preview=", b"Authorization: ", b"X-Api-Key: ",
)  # fmt: skip


class _Heard:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def one(data: bytes) -> None:
    end = data.find(head.END)
    if end < 0:
        return
    try:
        _, _, _, at = head.request_line(data, end + 2)
        found = head.fields(data[at : end + 2])
    except head.Refused as refused:
        assert 400 <= refused.status < 600
        return
    assert not (found.chunked and found.length is not None)
    kept = b"".join(found.kept)
    if found.cookie:
        others, ours = cookies.ours(found.cookie)
        assert cookies.ours(others) == (others, [])
        assert len(ours) <= 2 * cookies.MANY
    head.bearer(found.authorization)
    # Written behind a request line and one Host, an independent parser sees the fields that were kept and no other.
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    try:
        parser.feed_data(b"GET / HTTP/1.1\r\nhost: a\r\n" + kept + b"\r\n")
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return
    assert len(heard.headers) == 1 + len(found.kept)
    hidden = {b"content-length", b"transfer-encoding", b"cookie", b"authorization", b"x-api-key"}
    assert not hidden & {name for name, _ in heard.headers}
