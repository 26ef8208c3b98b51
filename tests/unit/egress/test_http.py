from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.egress import http
from roost.egress.http import Body, Chunks, MalformedError


def ask(*lines: str, first: str = "GET / HTTP/1.1") -> http.Request:
    return http.request("\r\n".join([first, *lines, "", ""]).encode("latin-1"))


def test_what_is_understood_is_written_anew() -> None:
    request = ask(
        "hOsT: Example.org:8080  ",
        "X-Odd:",
        "Connection: keep-alive, X-Hop",
        "X-Hop: gone",
        "Keep-Alive: 5",
        "Accept: */*",
        first="GET /a?b=%20 HTTP/1.1",
    )
    assert (request.host, request.port, request.keep) == ("Example.org", 8080, True)
    assert request.head() == (
        b"GET /a?b=%20 HTTP/1.1\r\nhOsT: Example.org:8080\r\nX-Odd: \r\nAccept: */*\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ([], Body()),
        (["Content-Length: 0"], Body()),
        (["Content-Length: 12"], Body(12)),
        (["Transfer-Encoding: Chunked"], Body(None, True)),
    ],
)
def test_framing(lines: list[str], body: Body) -> None:
    assert ask("Host: a", *lines).body == body


@pytest.mark.parametrize(
    "lines",
    [
        ["Host: a", "Host: a"],
        ["Host: a b"],
        ["Host: a@b"],
        ["Host: a/b"],
        ["Host: a,b"],
        ["Host: [::1]"],
        ["Host: ä"],
        ["Host:"],
        ["Host: a", "X : y"],
        ["Host: a", " folded"],
        ["Host: a", "no colon"],
        ["Host: a", ": nothing"],
        ["Host: a", "X: a\rb"],
        ["Host: a", "X: a\nHost: b"],
        ["Host: a", "X: \x00"],
        ["Host: a", "Content-Length: 1, 1"],
        ["Host: a", "Content-Length: 1", "Content-Length: 1"],
        ["Host: a", "Content-Length: -1"],
        ["Host: a", "Content-Length: 0x10"],
        ["Host: a", "Content-Length: 9999999999999999999"],
        ["Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"],
        ["Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Host: a", "Transfer-Encoding: gzip, chunked"],
        ["Host: a", "Transfer-Encoding: \x0bchunked"],
        ["Host: a", "Connection: close, Content-Length", "Content-Length: 5"],
    ],
)
def test_refused(lines: list[str]) -> None:
    with pytest.raises(MalformedError):
        ask(*lines)


@pytest.mark.parametrize(
    "first",
    [
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET /",
        "GET  / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / x HTTP/1.1",
        "GET http://b/ HTTP/1.1",
        "GET a/ HTTP/1.1",
        "CONNECT a:443 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "G(T / HTTP/1.1",
        " GET / HTTP/1.1",
    ],
)
def test_refused_lines(first: str) -> None:
    with pytest.raises(MalformedError):
        ask("Host: a", first=first)


def test_upgrades_but_websocket_are_not_passed_on() -> None:
    h2c = ask("Host: a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x")
    assert not h2c.websocket
    assert b"pgrade" not in h2c.head()
    websocket = ask("Host: a", "Connection: keep-alive, Upgrade", "Upgrade: WebSocket")
    assert websocket.head().endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert not ask("Host: a", "Connection: Upgrade", "Upgrade: websocket, h2c").websocket


def test_for_a_proxy() -> None:
    request = ask("Host: a:81", "Proxy-Authorization: mine", first="GET /x HTTP/1.0")
    head = request.head(absolute=b"http://a:81", extra=((b"Proxy-Authorization", b"ours"),))
    assert head.startswith(b"GET http://a:81/x HTTP/1.0\r\n")
    assert head.count(b"Proxy-Authorization") == 1
    assert b"ours" in head
    assert head.endswith(b"Connection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("lines", "method", "body", "keep"),
    [
        (["HTTP/1.1 200 OK", "Content-Length: 5"], "GET", Body(5), True),
        (["HTTP/1.1 200 OK", "Content-Length: 5"], "HEAD", Body(), True),
        (["HTTP/1.1 200", "Content-Length: 5, 5"], "GET", Body(5), True),
        (["HTTP/1.1 304 Not Modified", "Content-Length: 5"], "GET", Body(), True),
        (["HTTP/1.1 204 None"], "GET", Body(), True),
        (["HTTP/1.1 103 Early"], "GET", Body(), True),
        (["HTTP/1.1 200 OK", "Transfer-Encoding: chunked"], "GET", Body(None, True), True),
        (
            ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Content-Length: 5"],
            "GET",
            Body(None, True),
            False,
        ),
        (["HTTP/1.1 200 OK", "Transfer-Encoding: gzip"], "GET", Body(None), False),
        (["HTTP/1.1 200 OK"], "GET", Body(None), False),
        (["HTTP/1.0 200 OK", "Content-Length: 5"], "GET", Body(5), False),
        (["HTTP/1.0 200 OK", "Content-Length: 5", "Connection: Keep-Alive"], "GET", Body(5), True),
        (
            ["HTTP/1.1 200 OK", "odd line", "Content-Length: 5", "Connection: close"],
            "GET",
            Body(5),
            False,
        ),
    ],
)
def test_answers(lines: list[str], method: str, body: Body, keep: bool) -> None:
    asked = ask("Host: a", first=f"{method} / HTTP/1.1")
    answer = http.response("\r\n".join([*lines, "", ""]).encode(), asked)
    assert (answer.body, answer.keep) == (body, keep)


@pytest.mark.parametrize(
    "lines",
    [
        ["HTTP/2 200 OK"],
        ["SSH-2.0-x"],
        ["HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 6"],
        ["HTTP/1.1 200 OK", "Content-Length: x"],
        ["HTTP/1.1 200 OK", "Content-Length : 5"],
        ["HTTP/1.1 200 OK", " Transfer-Encoding: chunked"],
    ],
)
def test_answers_nobody_can_frame(lines: list[str]) -> None:
    with pytest.raises(MalformedError):
        http.response("\r\n".join([*lines, "", ""]).encode(), ask("Host: a"))


@given(st.binary(max_size=300), st.data())
def test_chunks_in_pieces(content: bytes, data: st.DataObject) -> None:
    wire, left = b"", content
    while left:
        size = data.draw(st.integers(1, len(left)))
        wire += b"%x;ext=1\r\n%s\r\n" % (size, left[:size])
        left = left[size:]
    wire += b"0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\n"
    chunks, passed, at = Chunks(), b"", 0
    while at < len(wire) and not chunks.ended:
        size = data.draw(st.integers(1, 40))
        passed += chunks.feed(wire[at : at + size])
        at += size
    assert chunks.ended
    assert chunks.rest + wire[at:] == b"GET / HTTP/1.1\r\n"
    assert b"ext" not in passed
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + passed)
    reader.next_event()
    got = b""
    while isinstance(event := reader.next_event(), h11.Data):
        got += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert got == content


@pytest.mark.parametrize(
    "wire",
    [
        b"3\r\nabcd\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"3\nabc\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"3 3\r\nabc\r\n",
        b"3;a\rb\r\nabc\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nHost: b\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"1;" + b"x" * 9000,
        b"0\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n",
    ],
)
def test_chunks_that_are_none(wire: bytes) -> None:
    with pytest.raises(MalformedError):
        Chunks().feed(wire)


_TOKENS = st.sampled_from(
    ["GET / HTTP/1.1", "POST /x HTTP/1.1", "Host: a", "Host: b", "Host:", "Content-Length: 5",
     "Content-Length: 0", "Transfer-Encoding: chunked", "Connection: close", "Connection: upgrade",
     "Upgrade: h2c", "X: y", " z", "\r\n", "\n", "\r", "\r\n\r\n", "\x00", "\t", ":", ","]
)  # fmt: skip


@given(st.lists(_TOKENS, max_size=14).map("\r\n".join), st.binary(max_size=60))
def test_whoever_reads_what_passes_reads_the_same(text: str, rubbish: bytes) -> None:
    """Another library finds one request in it, of the same host and framing, and nothing behind."""
    for head in (
        text.encode() + b"\r\n\r\n",
        rubbish + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + rubbish + b"\r\n\r\n",
    ):
        end = http.end_of_head(head)
        try:
            request = http.request(head[:end])
        except MalformedError:
            continue
        written = request.head()
        assert http.end_of_head(written) == len(written)
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=http.MAX_HEAD)
        reader.receive_data(written)
        event = reader.next_event()
        assert isinstance(event, h11.Request)
        fields = dict(event.headers)
        assert fields[b"host"].split(b":")[0].decode().lower() == request.host.lower()
        assert (b"transfer-encoding" in fields) == request.body.chunked
        assert int(fields.get(b"content-length", b"0")) == (request.body.length or 0)
        assert b"upgrade" not in fields or request.websocket


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GET /", True),
        (b"G", None),
        (b"GET ", None),
        (b"\r\nPOST /", True),
        (b"SSH-2.0-OpenSSH_9\r\n", False),
        (b"\x16\x03", False),
        (b"PRI * HT", True),
        (b"A" * 30, False),
        (b"hello there", False),
    ],
)
def test_looks_like(data: bytes, found: bool | None) -> None:
    assert http.looks_like(data) is found


def test_a_refusal_is_framed() -> None:
    said = http.refusal("403 Forbidden", "not_allowed", "roost: no")
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"x-roost-refused: not_allowed" in head
    assert b"content-length: %d" % len(body) in head
