"""What can be read in two ways is refused; what is read is what was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.preview import body, cookies, head
from roost.preview.head import Refused

HOST = b"Host: a.localhost\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET /\tx HTTP/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b" GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.2\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / http/1.1\r\n",
        b"GET /\x00 HTTP/1.1\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
        b"GET http://a.localhost/ HTTP/1.1\r\n",
        b"GET x HTTP/1.1\r\n",
        b"G(T / HTTP/1.1\r\n",
        b"GET / x HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\r\n",
    ],
)
def test_request_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(Refused):
        head.request_line(line, len(line))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        HOST + HOST,
        b"Host: \r\n",
        b"Host: a b\r\n",
        b"Host: a@b\r\n",
        b"Host: a/b\r\n",
        b"Host: a,b\r\n",
        b"Host : a\r\n",
        HOST + b"A: b\n",
        HOST + b"A: b\nC: d\r\n",
        HOST + b"A: b\rC: d\r\n",
        HOST + b"A: b\x00\r\n",
        HOST + b"A: b\r\n folded\r\n",
        HOST + b" A: b\r\n",
        HOST + b"A b: c\r\n",
        HOST + b"A\r\n",
        HOST + b": b\r\n",
        HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n",
        HOST + b"Content-Length: 1, 1\r\n",
        HOST + b"Content-Length: +1\r\n",
        HOST + b"Content-Length: -1\r\n",
        HOST + b"Content-Length: 0x1\r\n",
        HOST + b"Content-Length: 1 1\r\n",
        HOST + b"Content-Length: \r\n",
        HOST + b"Content-Length: 1234567890123456789\r\n",
        HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        HOST + b"Transfer-Encoding: gzip, chunked\r\n",
        HOST + b"Transfer-Encoding: chunked, identity\r\n",
        HOST + b"Transfer-Encoding: \x0bchunked\r\n",
        HOST + b"Transfer-Encoding: xchunked\r\n",
        HOST + b"Transfer-Encoding: chunked;a=b\r\n",
        HOST + b"Expect: 200-ok\r\n",
        HOST + b"Authorization: a\r\nAuthorization: b\r\n",
        HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
        HOST + b"A: b\r\n" * 300,
    ],
)
def test_fields_that_smuggle(block: bytes) -> None:
    with pytest.raises(Refused):
        head.fields(block)


def test_fields_that_do_not() -> None:
    f = head.fields(
        b"hOST: 80-x.localhost:7676\r\nAccept: text/html\r\nTransfer-Encoding: Chunked\r\nX: \xe9\t y \r\n"
        b"Connection: X, close, keep-alive\r\nContent-Encoding:gzip\r\nX-Forwarded-Host: evil\r\nTE: trailers\r\n"
        b"Proxy-Authorization: Basic x\r\nKeep-Alive: 5\r\nHTTP2-Settings: x\r\nUpgrade: h2c\r\n"
    )
    assert (f.host, f.html, f.chunked, f.length, f.close) == (
        b"80-x.localhost:7676",
        True,
        True,
        None,
        True,
    )
    assert f.kept == [b"Accept: text/html\r\n", b"Content-Encoding:gzip\r\n"]
    assert not f.websocket


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for read in (
        lambda: head.request_line(data, len(data)),
        lambda: head.fields(data),
        lambda: head.fields(HOST + data),
        lambda: head.answer(data, len(data)),
        lambda: head.answer(b"HTTP/1.1 200 OK\r\n" + data, 15 + len(data)),
        lambda: body.Chunked().take(data),
    ):
        try:
            read()  # type: ignore[no-untyped-call]
        except Refused:
            pass
    cookies.ours(data)
    cookies.own_host(data)


_NAME = st.from_regex(rb"X-[A-Za-z]{1,8}", fullmatch=True)
_VALUE = st.from_regex(rb"[!-~]{0,10}", fullmatch=True)


@given(st.lists(st.tuples(_NAME, _VALUE), max_size=8))
def test_nothing_forwarded_has_a_line_end_of_its_own(pairs: list[tuple[bytes, bytes]]) -> None:
    f = head.fields(HOST + b"".join(n + b": " + v + b"\r\n" for n, v in pairs))
    for line in f.kept:
        assert line.endswith(b"\r\n") and line.count(b"\r") == line.count(b"\n") == 1


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.binary(max_size=20), st.data())
def test_chunks_however_they_come(parts: list[bytes], after: bytes, data: st.DataObject) -> None:
    wire = b"".join(b"%x;a=b\r\n%b\r\n" % (len(p), p) for p in parts)
    wire += b"0\r\nX-T: 1\r\nContent-Length: 5\r\n\r\n" + after
    reader = body.Chunked()
    got, last, rest, at = b"", False, b"", 0
    while not last:
        step = data.draw(st.integers(1, 30))
        part, last, rest = reader.take(wire[at : at + step])
        got += part
        at += step
    assert got == b"".join(parts)
    assert rest + wire[at:] == after
    assert reader.trailers == b"X-T: 1\r\n", "no framing in trailers"


@pytest.mark.parametrize(
    "wire",
    [
        b"1\nx\r\n0\r\n\r\n", b"-1\r\n", b"0x1\r\nx\r\n", b" 1\r\nx\r\n", b"1 \r\nx\r\n", b"1\r\nxy\r\n", b"1\r\nx\n0\r\n\r\n",
        b"g\r\n", b"\r\n", b"1;\x00\r\nx\r\n", b"1" * 300, b"0\r\nA b: c\r\n\r\n", b"0\r\nA: b\n\r\n\r\n", b"0\r\n" + b"A: b\r\n" * 3000,
        b"1234567890123456\r\n",
    ],
)  # fmt: skip
def test_chunks_that_are_none(wire: bytes) -> None:
    with pytest.raises(Refused):
        body.Chunked().take(wire)


def test_long_lines_take_no_more_than_their_length() -> None:
    """No pattern here goes back over what it has read."""
    import time

    begun = time.process_time()
    for filling in (b" " * 60000, b"a" * 60000, b"\t" * 60000, b"a:" * 30000, b"\xff" * 60000):
        for line in (b"A: " + filling + b"\r\n", filling + b"\r\n", b"A: " + filling + b"\x00\r\n"):
            try:
                head.fields(HOST + line)
            except Refused:
                pass
    assert time.process_time() - begun < 3
