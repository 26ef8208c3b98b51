"""What a server in a machine answers to a preview: refused, or it goes on without what belongs to its connection."""

from __future__ import annotations

from roost.preview import cookies, head

COVERS = ("roost.preview.head", "roost.preview.cookies")
SEEDS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b; Domain=.localhost; Path=/\r\n\r\n",
    b"HTTP/1.0 200\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-a\r\nX-A: 1\r\nAlt-Svc: h3\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: roost_preview=x\r\n\r\n",
)
WORDS = (
    b"Set-Cookie: ",
    b"; Domain=",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: ",
)


def one(data: bytes) -> None:
    end = data.find(head.END)
    if end < 0:
        return
    try:
        answer = head.answer(data, end)
    except head.Refused:
        return
    assert 100 <= answer.status <= 599
    assert not (answer.chunked and answer.length is not None)
    for line in answer.kept:
        assert line.endswith(b"\r\n")
        assert line.count(b"\n") == 1
        assert line.partition(b":")[0].lower() not in (
            b"content-length", b"transfer-encoding", b"connection", b"set-cookie",
        )  # fmt: skip
    for value in answer.cookies:
        kept = cookies.own_host(value)
        if kept is not None:
            _, *attributes = kept.lower().split(b";")
            assert b"domain" not in [each.partition(b"=")[0].strip() for each in attributes]
            assert (
                not kept.strip().lower().startswith((b"roost_preview=", b"__host-roost_preview="))
            )
