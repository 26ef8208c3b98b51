"""Names are proven: what a machine says decides where its connection goes, whatever address it dialled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time

import pytest

from .conftest import SLOT, Egress
from .world import OTHER, PLAIN, UNUSED, WEB, World, read_all, was_reset

pytestmark = pytest.mark.system


async def test_tls_goes_where_its_name_leads(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")

    def talk() -> bytes:
        with world.shake("allowed.test", address=UNUSED) as tls:  # nobody is there
            tls.sendall(b"hello")
            return tls.recv(100)

    assert await asyncio.to_thread(talk) == b"hello"
    assert world.far.heard == [(WEB, 443, "tls", "allowed.test")]
    assert (await egress.tried())["allowed.test", 443, "tls"] == ""


async def test_tls_to_another_name_is_denied(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")
    with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
        await asyncio.to_thread(world.shake, "other.test")
    with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
        await asyncio.to_thread(world.shake, None)
    assert world.far.heard == []
    assert world.names.asked == []
    tried = await egress.tried()
    assert tried["other.test", 443, "tls"] == "not_allowed"
    assert tried[WEB, 443, "tls"] == "no_name"


async def test_each_request_says_where_it_goes(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test", "second.test")

    def talk() -> list[bytes]:
        said = []
        with world.connect(WEB, 80) as sock:
            for host in ("allowed.test", "second.test", "other.test"):
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                said.append(sock.recv(65536))
            said.append(read_all(sock))
        return said

    first, second, third, rest = await asyncio.to_thread(talk)
    assert first.endswith(f"{WEB} allowed.test 0".encode())
    assert second.endswith(f"{OTHER} second.test 0".encode())
    assert third.startswith(b"HTTP/1.1 403 ")
    assert b"x-roost-refused: not_allowed" in third
    assert b"other.test:80" in third + rest
    assert [each[3] for each in world.far.heard] == ["allowed.test", "second.test"]
    assert (await egress.tried())["other.test", 80, "http"] == "not_allowed"


@pytest.mark.parametrize(
    "request_",
    [
        "GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: other.test\r\n\r\n",
        "GET http://other.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
        "CONNECT other.test:443 HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
        "GET / HTTP/1.1\nHost: allowed.test\n\nGET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : allowed.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: allowed.test\r\n Host: other.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: +3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: allowed.test:8080\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 192.175.48.80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 3232706640\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: host\r\n\r\n",
    ],
)
async def test_what_could_be_read_two_ways_is_refused(
    world: World, egress: Egress, request_: str
) -> None:
    await egress.allow("allowed.test")
    said = await asyncio.to_thread(world.http, WEB, 80, request_.encode())
    assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), said
    assert b"x-roost-refused: " in said
    assert world.far.heard == []


async def test_a_smuggled_request_is_a_body_or_nothing(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")
    inner = b"GET /smuggled HTTP/1.1\r\nHost: other.test\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner
    assert b" 200 " in await asyncio.to_thread(world.http, WEB, 80, whole)
    assert world.far.bodies == [inner]
    # A chunk that says less than it holds: what follows is no chunk.
    broken = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n" + inner
    with world.connect(WEB, 80) as sock:
        sock.sendall(broken)
        assert await asyncio.to_thread(was_reset, sock)
    assert all("smuggled" not in each[2] for each in world.far.heard)


async def test_bodies_of_every_framing(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")

    def talk() -> None:
        with world.connect(WEB, 80) as sock:
            file = sock.makefile("rb")

            def ask(request: bytes, until: bytes) -> bytes:
                sock.sendall(request)
                said = b""
                while not said.endswith(until):
                    said += file.read(1)
                return said

            host = b"Host: allowed.test\r\n"
            big = b"x" * 3_000_000
            ask(
                b"PUT /a HTTP/1.1\r\n%sContent-Length: 3000000\r\n\r\n%s" % (host, big), b" 3000000"
            )
            chunks = b"a\r\n0123456789\r\n3;e=1\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
            ask(
                b"PUT /a HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n%s" % (host, chunks),
                b" 13",
            )
            assert ask(b"HEAD /5000 HTTP/1.1\r\n%s\r\n" % host, b"\r\n\r\n").endswith(
                b"Content-Length: 5000\r\n\r\n"
            )
            assert ask(b"GET /chunked HTTP/1.1\r\n%s\r\n" % host, b"X-T: 1\r\n\r\n").endswith(
                b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n"
            )
            said = ask(
                b"PUT /continue HTTP/1.1\r\n%sExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
                % host,
                b"204 No Content\r\n\r\n",
            )
            assert b"100 Continue" in said
            sock.sendall(b"GET /4000000 HTTP/1.1\r\n%s\r\n" % host)
            assert b"200 OK" in file.readline()
            while file.readline() != b"\r\n":
                pass
            assert len(file.read(4_000_000)) == 4_000_000
            sock.sendall(b"GET /unframed HTTP/1.1\r\n%s\r\n" % host)
            assert file.read().endswith(b"to the end")

    await asyncio.to_thread(talk)
    assert [len(each) for each in world.far.bodies] == [3_000_000, 13, 0, 0, 1, 0, 0]
    assert len(set(map(id, world.far.sockets[-7:]))) == 1, "one connection for all"


async def test_websocket_is_carried_and_h2c_is_not_asked_for(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")

    def talk() -> bytes:
        with world.connect(WEB, 80) as sock:
            sock.sendall(
                b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade, HTTP2-Settings\r\n"
                b"Upgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n"
            )
            assert b"200 OK" in sock.recv(4096)
            sock.sendall(
                b"GET /ws HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            said = b""
            while not said.endswith(b"hello"):
                said += sock.recv(4096)
            sock.sendall(b"over there")
            return sock.recv(100)

    assert await asyncio.to_thread(talk) == b"over there"


async def test_refused_addresses_are_not_dialled(world: World, egress: Egress) -> None:
    """A name that leads inside, always or only the second time it is asked for."""
    world.names.addresses |= {"inside.test": ["172.30.253.2"], "meta.test": ["169.254.169.254"]}
    world.names.turns["rebinding.test"] = [[WEB], ["172.30.253.2"]]
    world.names.ttl = 0
    try:
        await egress.allow("inside.test", "meta.test", "rebinding.test")
        for name in ("inside.test", "meta.test"):
            assert b"x-roost-refused: private" in await asyncio.to_thread(world.get, name)
        assert WEB.encode() in await asyncio.to_thread(world.get, "rebinding.test")
        await asyncio.sleep(1.1)
        assert b"x-roost-refused: private" in await asyncio.to_thread(world.get, "rebinding.test")
    finally:
        world.names.ttl = 60
    assert [each[0] for each in world.far.heard] == [WEB]


async def test_what_says_nothing_or_nothing_known_is_refused(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test", "plain.test")
    for said in (
        b"\x00\x01\x02binary",
        b"SSH-2.0-x\r\n",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
    ):
        with world.connect(PLAIN, 443) as sock:
            sock.sendall(said)
            sock.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(sock.recv, 100) in (b"",)
    begun = time.monotonic()
    with world.connect(PLAIN, 80) as sock:
        assert await asyncio.to_thread(was_reset, sock, 60.0)
    assert time.monotonic() - begun < 30
    assert world.far.heard == []
    assert (await egress.tried())[PLAIN, 443, "packet"] == "no_name"


async def test_open_changes_nothing_but_is_heard(world: World, egress: Egress) -> None:
    await egress.apply({"mode": "open", "observe": True})

    def talk() -> None:
        with world.shake("allowed.test", address=OTHER) as tls:
            tls.sendall(b"x")
            assert tls.recv(1) == b"x"
        assert f"{OTHER} whatever.example".encode() in world.get("whatever.example", OTHER)
        with world.connect(PLAIN, 80) as sock:
            assert sock.recv(100) == b"220 here\r\n"
        with world.connect(PLAIN, 443) as sock:
            sock.sendall(b"\x16\x00junk")
            assert sock.recv(100) == b"\x16\x00junk"
        with world.connect("172.30.253.2", 80) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n")
            assert was_reset(sock)

    await asyncio.to_thread(talk)
    assert world.far.heard[0] == (OTHER, 443, "tls", "allowed.test"), "where it was sent"
    tried = await egress.tried()
    assert tried["whatever.example", 80, "http"] == ""
    assert tried["x.test", 80, "http"] == "private"


async def test_off_and_no_policy_let_nothing_through(world: World, egress: Egress) -> None:
    def is_cut() -> bool:
        try:
            with world.connect(WEB, 80) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
                return was_reset(sock)
        except (ConnectionResetError, BrokenPipeError):
            return True  # before it was heard that it is there

    assert await asyncio.to_thread(is_cut)
    await egress.apply("off")
    assert await asyncio.to_thread(is_cut)
    assert (await egress.tried())[WEB, 80, "packet"] == "off"
    assert world.far.heard == []


async def test_tightening_cuts_what_lives_at_once(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test", "second.test")
    tls = await asyncio.to_thread(world.shake, "allowed.test")
    kept = await asyncio.to_thread(world.connect, WEB, 80)
    stays = await asyncio.to_thread(world.connect, WEB, 80)
    with tls, kept, stays:
        for sock, host in ((kept, b"allowed.test"), (stays, b"second.test")):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
            assert b"200 OK" in await asyncio.to_thread(sock.recv, 4096)
        begun = time.monotonic()
        await egress.allow("second.test")
        for sock in (tls, kept):
            assert await asyncio.to_thread(was_reset, sock)
        assert time.monotonic() - begun < 10, "some milliseconds on an idle host"
        stays.sendall(b"GET / HTTP/1.1\r\nHost: second.test\r\n\r\n")
        assert b"200 OK" in await asyncio.to_thread(stays.recv, 4096)
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(world.shake, "allowed.test")


async def test_detach_cuts_all_and_forgets(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")
    tls = await asyncio.to_thread(world.shake, "allowed.test")
    with tls:
        await egress.supervisor.detach(7)
        assert await asyncio.to_thread(was_reset, tls)
    with pytest.raises(ConnectionRefusedError):
        world.connect(WEB, 80)
    assert await egress.supervisor.slots() == set()
    await egress.supervisor.detach(7)


async def test_half_closed_connections_stay_open_the_other_way(
    world: World, egress: Egress
) -> None:
    def far(sock: socket.socket) -> None:
        got = b""
        while data := sock.recv(4096):
            got += data
        sock.sendall(b"got %d" % len(got))

    world.listen(OTHER, 9443, far)
    await egress.apply({"mode": "open", "observe": True})

    def talk() -> bytes:
        with world.connect(OTHER, 9443) as sock:
            sock.sendall(b"x" * 1_000_000)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    assert await asyncio.to_thread(talk) == b"got 1000000"


async def test_a_hello_in_pieces(world: World, egress: Egress) -> None:
    """In small segments, and in small records."""
    await egress.allow("allowed.test")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(world.place / "ca.pem"))
    tls = context.wrap_bio(incoming, outgoing, server_hostname="allowed.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()

    def talk(pieces: list[bytes]) -> bytes:
        with world.connect(WEB, 443) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(0.005)
            return sock.recv(5)

    body = hello[5:]
    records = [
        b"\x16\x03\x01" + len(part).to_bytes(2) + part
        for part in (body[at : at + 50] for at in range(0, len(body), 50))
    ]
    segments = [hello[at : at + 40] for at in range(0, len(hello), 40)]
    for pieces in (segments, records):
        assert (await asyncio.to_thread(talk, pieces))[:1] == b"\x16", "the server's own hello"


async def test_a_machine_has_so_many_connections(world: World, egress: Egress) -> None:
    """The rest are refused, and what it holds open costs the others nothing."""
    await egress.allow("allowed.test")

    done = threading.Event()

    def talk() -> None:
        with contextlib.ExitStack() as held:
            for _ in range(1100):
                with contextlib.suppress(ConnectionResetError):
                    held.enter_context(world.connect(WEB, 443)).send(b"\x16")
            done.wait(60)  # those above the rate wait

    async def refused() -> bool:
        decisions = await egress.supervisor.decisions(SLOT)
        return (WEB, 443, "too_many") in {(d.host, d.port, d.reason) for d in decisions}

    talking = asyncio.create_task(asyncio.to_thread(talk))
    try:
        async with asyncio.timeout(60):
            while not await refused():
                await asyncio.sleep(0.2)
    finally:
        done.set()
        await talking
    async with asyncio.timeout(60):
        while True:
            try:
                (await asyncio.to_thread(world.shake, "allowed.test")).close()
                break
            except OSError:  # until it has seen that they left
                await asyncio.sleep(0.2)
