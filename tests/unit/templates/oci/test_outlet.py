"""The one way out of what fetches images."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from roost.egress.dialling import Dialler
from roost.egress.policy import Reach
from roost.egress.upstream import FAILED, Answer
from roost.settings import registries
from roost.templates.oci.outlet import Outlet, Target


class Names:
    """Knows the addresses of names."""

    def __init__(self, **known: str) -> None:
        self.known = known

    async def ask(self, name: str, kind: int, whose: object) -> Answer:
        import dns.rrset

        address = self.known.get(name.replace(".", "_"))
        if address is None:
            return FAILED
        found = dns.rrset.from_text(name, 60, "IN", "A", address)
        return Answer(0, (), found)


@contextlib.asynccontextmanager
async def outlet(
    private: frozenset[Target] = frozenset(),
    most: int = 1 << 20,
    direct: Target | None = None,
    **names: str,
) -> AsyncIterator[tuple[Outlet, int, int]]:
    """(it, the proxy's port, the direct listener's)."""
    made = Outlet(Dialler(Names(**names), Reach), private, most)  # type: ignore[arg-type]
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for sock in socks:
        sock.setblocking(False)
    await made.listen(socks[0], {socks[1]: direct} if direct else {})
    try:
        yield made, socks[0].getsockname()[1], socks[1].getsockname()[1]
    finally:
        await made.close()


@contextlib.asynccontextmanager
async def server(answer: bytes = b"pong") -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with made:
        yield made.sockets[0].getsockname()[1]


async def said(port: int, head: bytes, body: bytes = b"ping") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    answer = b""
    if head:
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            writer.close()
            return answer
    writer.write(body)
    answer += await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:{port}",
        "localhost.test:{port}",  # a name that leads there
        "169.254.169.254:80",
        "metadata.test:80",
        "10.0.0.1:443",
        "[::1]:{port}",
        "0.0.0.0:{port}",
    ],
)
async def test_private_addresses_are_refused(target: str) -> None:
    """By number and by a name, wherever a registry's answers may point."""
    names = {"localhost_test": "127.0.0.1", "metadata_test": "169.254.169.254"}
    async with server() as port, outlet(**names) as (made, proxy, _):
        where = target.format(port=port)
        answer = await said(proxy, f"CONNECT {where} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403"), answer
        assert made.refused == where.replace("[", "").replace("]", "")


async def test_what_the_operator_named() -> None:
    async with server() as port:
        named = frozenset({("127.0.0.1", port)})
        async with outlet(named, direct=("127.0.0.1", port)) as (made, proxy, direct):
            head = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port
            assert (await said(proxy, head)).endswith(b"\r\n\r\npong")
            assert await said(direct, b"") == b"pong"
            assert made.taken == 8
            assert made.refused is None
            # Its neighbour is not.
            other = await said(proxy, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % (port + 1))
            assert other.startswith(b"HTTP/1.1 403")


async def test_metadata_is_never_named() -> None:
    async with outlet(frozenset({("169.254.169.254", 80)})) as (made, proxy, _):
        answer = await said(proxy, b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
        assert made.refused is not None


async def test_no_more_than_there_can_be() -> None:
    async with server(bytes(1 << 20)) as port:
        named = frozenset({("127.0.0.1", port)})
        async with outlet(named, most=300_000) as (made, proxy, _):
            answer = await said(proxy, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
            assert len(answer) <= 300_100
            assert made.taken > 300_000


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://registry.example/ HTTP/1.1\r\n\r\n",
        b"CONNECT registry.example HTTP/1.1\r\n\r\n",
        b"CONNECT registry.example:99999 HTTP/1.1\r\n\r\n",
        b"CONNECT :80 HTTP/1.1\r\n\r\n",
    ],
)
async def test_nothing_but_connect(head: bytes) -> None:
    async with outlet() as (_, proxy, _):
        assert (await said(proxy, head)).startswith(b"HTTP/1.1 405")


async def test_a_name_that_leads_nowhere() -> None:
    async with outlet() as (made, proxy, _):
        answer = await said(proxy, b"CONNECT nowhere.test:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502")
        assert made.unreachable is not None
        assert "nowhere.test" in made.unreachable


def test_the_operators_list() -> None:
    assert registries(" R.example , 127.0.0.1:5000,") == {("r.example", 443), ("127.0.0.1", 5000)}
    for text in (
        "http://r.example",
        "r.example/x",
        "r.example:0",
        "r.example:70000",
        "a b",
        "[::1]:5",
    ):
        with pytest.raises(ValueError, match="no HOST"):
            registries(text)
