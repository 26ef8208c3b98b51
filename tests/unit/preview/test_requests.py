"""Requests through the proxy to a server on this host, as one in a machine: what goes in, what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from tests.unit.api.kit import Served, until
from tests.unit.preview.kit import OK, Inside, Raw, get, inside, shown


async def test_a_public_port_is_everybodys(plane: Served) -> None:
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        status, fields, body = await raw.ask(
            get(f"{host}:{plane.port}", "/a?b=1", "X-Own: 1", "Cookie: c=1")
        )
        assert (status, body) == (200, b"ok"), fields
        head = server.heads[0]
        assert head.startswith(b"GET /a?b=1 HTTP/1.1\r\n")
        for line in (
            f"host: {host}:{plane.port}", "X-Own: 1", "cookie: c=1", "x-forwarded-for: 127.0.0.1",
            f"x-forwarded-host: {host}:{plane.port}", "x-forwarded-proto: http",
        ):  # fmt: skip
            assert line.encode() + b"\r\n" in head, (line, head)
        assert (await raw.ask(get(host)))[0] == 200
        assert server.connections == 1, "the connection to the machine is kept"
        assert plane.machines.users[host] == 0


async def test_one_connection_of_many_hosts(plane: Served) -> None:
    """As a proxy in front keeps: previews and the API in turn, each request judged by itself."""
    async with inside() as one, inside() as two, Raw(plane.port) as raw:
        hosts = [await shown(plane, one.port), await shown(plane, two.port)]
        for _ in range(3):
            assert (await raw.ask(get(hosts[0])))[2] == b"ok"
            assert (await raw.ask(get("127.0.0.1", "/healthz")))[2] == b'{"status":"ok"}'
            assert (await raw.ask(get("127.0.0.1", "/v1/machines")))[0] == 401
            assert (await raw.ask(get(hosts[1])))[2] == b"ok"
            assert (await raw.ask(get(hosts[0])))[2] == b"ok"
        assert (len(one.heads), len(two.heads)) == (6, 3)
    await until(lambda: plane.front.open_connections <= 0)


async def test_what_comes_in_one_breath(plane: Served) -> None:
    async with inside() as server:
        host = await shown(plane, server.port)
        health = get("x", "/healthz")
        async with Raw(plane.port) as raw:
            await raw.say(get(host) + get(host, "/2") + health)
            assert [(await raw.answer())[2] for _ in range(3)] == [b"ok", b"ok", b'{"status":"ok"}']
            assert (await raw.ask(get(host)))[0] == 200
        async with Raw(plane.port) as raw:  # the API first: its answer, and no half-understood rest
            await raw.say(health + get(host, "/never"))
            assert (await raw.answer())[2] == b'{"status":"ok"}'
            assert await raw.rest() == b""
        assert not any(b"/never" in head for head in server.heads)
        async with Raw(plane.port) as raw:
            for byte in get(host, "/slow"):
                await raw.say(bytes([byte]))
            assert (await raw.answer())[0] == 200
        async with Raw(plane.port) as raw:
            for byte in health + get(host, "/slow"):
                await raw.say(bytes([byte]))
                await asyncio.sleep(0)
            assert (await raw.answer())[2] == b'{"status":"ok"}'


async def test_bodies_both_ways(plane: Served) -> None:
    size = 3_000_000

    async def echo(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = (await server.head(reader)).lower()
        if b"content-length" in head:
            data = await reader.readexactly(size)
        else:
            data = b""
            while length := int(await reader.readline(), 16):
                data += await reader.readexactly(length)
                await reader.readline()
            await reader.readline()
        if b"/chunked" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n")
            for at in range(0, len(data), 100_000):
                part = data[at : at + 100_000]
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            writer.write(b"0\r\nX-T: 1\r\n\r\n")
        else:
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + data)
        await writer.drain()

    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]

    async def pieces():  # type: ignore[no-untyped-def]
        for at in range(0, size, 70_000):
            yield payload[at : at + 70_000]

    async with inside(echo) as server:
        host = await shown(plane, server.port)
        async with plane.client(None) as http:
            http.headers["host"] = host
            for path in ("/chunked", "/close"):
                for content in (payload, pieces()):
                    answer = await http.post(path, content=content)
                    assert answer.content == payload, path


async def test_what_has_no_body_has_none(plane: Served) -> None:
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        server.answers = [
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        ]
        assert (await raw.ask(get(host)))[0] == 204
        await raw.say(get(host))
        head = await raw.reader.readuntil(b"\r\n\r\n")
        assert b" 304 " in head and b"content-length: 5" in head
        assert (await raw.ask(get(host)))[0] == 103
        assert (await raw.answer())[2] == b"ok"
        await raw.say(get(host).replace(b"GET", b"HEAD"))
        head = await raw.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 2" in head
        assert server.connections == 1 or server.connections == 2


async def test_the_machine_takes_no_cookie_of_its_siblings_and_sets_none(plane: Served) -> None:
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        server.answers = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1; Domain=.localhost; Path=/\r\n"
            b'set-cookie: b=2; HttpOnly\r\nSet-Cookie: roost_preview=x\r\nSet-Cookie: __Host-roost_preview=x\r\nClear-Site-Data: "cookies"\r\n'
            b'Alt-Svc: h2=":1"\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n'
        ]
        await raw.say(
            get(host, "/", "Cookie: x=1; roost_preview=secret; y=2", "X-Roost-Preview-Token: t")
        )
        head = await raw.reader.readuntil(b"\r\n\r\n")
        assert b"set-cookie: a=1; Path=/\r\n" in head.replace(b";  ", b"; ")
        assert b"set-cookie: b=2; HttpOnly\r\n" in head
        for gone in (b"roost_preview", b"omain", b"lear-Site", b"lt-Svc", b"X-Hop", b"x-hop"):
            assert gone not in head, head
        assert b"cookie: x=1; y=2\r\n" in server.heads[0]
        assert b"oken" not in server.heads[0]


async def test_keys_go_no_further(plane: Served) -> None:
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        await raw.ask(
            get(host, "/", f"Authorization: Bearer {plane.key}", f"X-API-Key: {plane.key}")
        )
        await raw.ask(get(host, "/", "Authorization: Basic eDp5", "X-API-Key: its-own"))
        assert plane.key.encode() not in server.heads[0]
        assert b"authorization: Basic eDp5\r\n" in server.heads[1]
        assert b"x-api-key: its-own\r\n" in server.heads[1]


async def test_a_closed_port(plane: Served) -> None:
    async with inside() as server:
        port = server.port
    host = await shown(plane, port)
    plane.machines.target = plane.target = None
    async with Raw(plane.port) as raw:
        status, _, body = await raw.ask(get(host))
        assert status == 502, body


async def test_a_connection_that_was_closed_meanwhile_is_replaced(plane: Served) -> None:
    async def once(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.head(reader)
        writer.write(OK)
        await writer.drain()
        await server.head(reader)  # and goes without a word

    async with inside(once) as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        for _ in range(3):
            assert (await raw.ask(get(host)))[2] == b"ok"
        answer = await raw.ask(get(host).replace(b"GET", b"POST"))
        assert answer[0] == 502 and json.loads(answer[2])["error_code"] == "PORT_BAD_ANSWER"


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20000 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    ],
)
async def test_an_answer_that_could_be_read_in_two_ways_is_none(plane: Served, bad: bytes) -> None:
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        server.answers = [bad]
        answer = await raw.ask(get(host))
        while answer[0] == 100:
            answer = await raw.answer()
        assert answer[0] == 502, answer
        assert json.loads(answer[2])["error_code"] == "PORT_BAD_ANSWER"
        assert (await raw.ask(get(host)))[2] == b"ok"


async def test_more_than_was_announced_reaches_nobody(plane: Served) -> None:
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        server.answers = [OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"]
        assert (await raw.ask(get(host)))[2] == b"ok"
        assert (await raw.ask(get(host)))[2] == b"ok"
        assert server.connections == 2


async def test_whoever_asks_first_whether_to_send_hears_it_from_the_machine(plane: Served) -> None:
    async def careful(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head = await server.head(reader)
            if b"/no" in head:
                writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
                return
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert await reader.readexactly(5) == b"hello"
            writer.write(OK)

    async with inside(careful) as server:
        host = await shown(plane, server.port)
        lines = (f"Host: {host}", "Content-Length: 5", "Expect: 100-continue", "", "")
        for path in ("/", "/"):
            async with Raw(plane.port) as raw:
                await raw.say("\r\n".join([f"POST {path} HTTP/1.1", *lines]).encode())
                assert (await raw.answer())[0] == 100
                assert (await raw.ask(b"hello"))[2] == b"ok"
        async with Raw(plane.port) as raw:
            said = "\r\n".join(["POST /no HTTP/1.1", *lines]).encode()
            status, fields, body = await raw.ask(said)
            assert (status, body, fields["connection"]) == (413, b"no", "close")
            assert await raw.rest() == b""


async def test_who_reads_slowly_is_waited_for(plane: Served) -> None:
    size, sent = 64 * 2**20, 0

    async def much(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal sent
        await server.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 2**18):
            writer.write(bytes(2**18))
            await writer.drain()
            sent += 2**18

    async with inside(much) as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        await raw.say(get(host))
        await asyncio.sleep(1)
        held = sent
        assert held < size // 2, "it is not read while nobody takes it"
        left = size
        await raw.reader.readuntil(b"\r\n\r\n")
        while left:
            left -= len(await raw.reader.read(2**20))
        assert sent == size


async def test_who_leaves_ends_what_was_asked_for(plane: Served) -> None:
    left = asyncio.Event()

    async def endless(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n: one\n\n")
        await reader.read()
        left.set()

    async with inside(endless) as server:
        host = await shown(plane, server.port)
        machine = host.partition("-")[2].partition(".")[0]
        async with Raw(plane.port) as raw:
            await raw.say(get(host))
            await raw.reader.readuntil(b": one\n\n")
            assert plane.machines.users[machine] == 1, "in use meanwhile"
        await asyncio.wait_for(left.wait(), 10)
        await until(lambda: not plane.machines.users[machine])


async def test_old_clients_are_served(plane: Served) -> None:
    async with inside() as server:
        host = await shown(plane, server.port)
        server.answers = [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ]
        old = get(host).replace(b"HTTP/1.1", b"HTTP/1.0")
        async with Raw(plane.port) as raw:
            await raw.say(old)
            assert (await raw.rest()).endswith(b"connection: close\r\n\r\nabc")
        async with Raw(plane.port) as raw:  # as ab -k
            kept = old.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
            for _ in range(2):
                _, fields, body = await raw.ask(kept)
                assert (fields["connection"], body) == ("keep-alive", b"ok")


async def test_who_reads_no_answers_is_given_no_more(plane: Served) -> None:
    """Of our own refusals as of anything else: no key is needed to ask for them."""
    asked, sent, got = get("nothing.localhost"), 0, 0
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(("127.0.0.1", plane.port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, asked)
        await until(lambda: bool(plane.previews._visitors))
        visitor = next(iter(plane.previews._visitors))
        theirs = visitor.transport.get_extra_info("socket")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sent = 3000
        sending = asyncio.ensure_future(loop.sock_sendall(sock, asked * sent))
        await until(lambda: visitor.full)
        await asyncio.sleep(0.3)
        assert visitor.transport.get_write_buffer_size() < 2**18
        assert len(visitor._buffer) < 2**18
        data = b""
        while got <= sent:  # and goes on where it was
            data += await asyncio.wait_for(loop.sock_recv(sock, 2**20), 10)
            got += data.count(b"HTTP/1.1 401 ")
            data = data[-12:]
        await sending


async def test_many_refusals_in_one_breath_come_one_after_another(plane: Served) -> None:
    host = await shown(plane, 1)
    plane.previews._per_second, plane.previews._burst = 0.0, 0.0
    async with Raw(plane.port) as raw:
        await raw.say(get(host) * 1000)
        for _ in range(1000):
            assert (await raw.answer())[0] == 429
        assert (await raw.ask(get("127.0.0.1", "/healthz")))[0] == 200


async def test_a_server_that_did_not_read_is_not_asked_again(plane: Served) -> None:
    """What still waits for it, or what it takes no body of, would be read as the next request."""

    async def hasty(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.head(reader)
        for up in plane.previews._upstreams[host.partition("-")[2].partition(".")[0]]:
            up.transport = Stuck(up.transport)  # type: ignore[assignment]
        writer.write(OK)
        await reader.read()

    class Stuck:
        def __init__(self, transport: asyncio.Transport) -> None:
            self.transport = transport

        def get_write_buffer_size(self) -> int:
            return 1

        def __getattr__(self, name: str) -> object:
            return getattr(self.transport, name)

    async with inside(hasty) as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        assert (await raw.ask(get(host)))[0] == 200
        assert not plane.previews._free
    async with inside() as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        inner = get(host, "/smuggled")
        lines = (f"Host: {host}", f"Content-Length: {len(inner)}", "", "")
        asked = "\r\n".join(["GET / HTTP/1.1", *lines]).encode()
        assert (await raw.ask(asked + inner))[0] == 200
        assert not plane.previews._free
        assert (await raw.ask(get(host)))[0] == 200
        assert plane.previews._free


async def test_a_malformed_chunk_after_the_answer_began_only_cuts(plane: Served) -> None:
    async def early(
        server: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        await reader.read()

    async with inside(early) as server, Raw(plane.port) as raw:
        host = await shown(plane, server.port)
        await raw.say(
            f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        await raw.reader.readuntil(b"\r\n\r\nhalf")
        await raw.say(b"nonsense\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await raw.rest() == b""
