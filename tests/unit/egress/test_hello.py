from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.egress import hello
from roost.egress.hello import MalformedError, parse


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, data)


def server_name(*hosts: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, host) for host in hosts)))


def message(*extensions: bytes, behind: bytes = b"") -> bytes:
    body = (
        b"\x03\x03" + bytes(32) + vector(1, b"s" * 32) + vector(2, b"\x13\x01") + vector(1, b"\0")
    )
    body += vector(2, b"".join(extensions)) + behind
    return b"\x01" + vector(3, body)


def record(data: bytes) -> bytes:
    return b"\x16\x03\x01" + vector(2, data)


def real(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name", ["python.example", "a.b.example", None])
def test_of_a_real_client(name: str | None) -> None:
    said = parse(real(name))
    assert said is not None
    assert said.name == name


@given(st.integers(1, 200))
def test_whatever_pieces_it_comes_in(size: int) -> None:
    whole = real("python.example")
    body = whole[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    for data in (whole, b"".join(map(record, pieces))):
        if len(pieces) > hello.MAX_RECORDS and data is not whole:
            with pytest.raises(MalformedError):
                parse(data)
            continue
        found = parse(data)
        assert found is not None
        assert found.name == "python.example"
        for end in range(0, len(data) - 1, 37):
            assert parse(data[:end]) is None


@pytest.mark.parametrize(
    "data",
    [
        record(message(server_name(b"a.example", b"b.example"))),
        record(message(server_name(b"a.example"), server_name(b"b.example"))),
        record(message(server_name(b"a.example", kind=1))),
        record(message(extension(0, b""))),
        record(message(server_name(b"\xff.example"))),
        record(message(server_name(b"a.example"), behind=b"x")),
        record(message()[:-2] + b"\0\x09"),
        record(b"\x02" + message()[1:]),
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff" + bytes(10),
        b"\x16\x02\x01\x00\x10",
        record(b"\x01\x00\xff\xff"),
        record(b"\x01\x00\x00\x05\x03\x03\x00\x00\x00"),
        record(b"\x01") * 70,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_none_or_not_to_be_trusted(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(data)


def test_without_extensions() -> None:
    body = b"\x03\x01" + bytes(32) + b"\0" + vector(2, b"\0\x2f") + vector(1, b"\0")
    found = parse(record(b"\x01" + vector(3, body)))
    assert found is not None
    assert found.name is None


def test_grease_of_encrypted_hello_is_left_alone() -> None:
    found = parse(record(message(extension(0xFE0D, b"\0" + bytes(60)), server_name(b"a.example"))))
    assert found is not None
    assert found.name == "a.example"


@given(st.binary(max_size=2000))
def test_rubbish(data: bytes) -> None:
    for each in (data, b"\x16\x03\x01" + data, record(b"\x01" + data) if data else b""):
        try:
            parse(each)
        except MalformedError:
            pass


@given(st.data())
def test_a_damaged_one(data: st.DataObject) -> None:
    whole = bytearray(real("python.example"))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(whole))
    except MalformedError:
        pass
