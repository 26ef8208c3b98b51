"""The CDP of a machine's browser through the daemon: who may, and what Chromium is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from roost.preview import plane as planes
from roost.services.browser import about
from roost.services.links import Links
from roost.services.models import Role
from tests.unit.api.kit import TENANT, Served, until
from tests.unit.preview.kit import Inside, Raw, inside

UP = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: x\r\n\r\n"
)
WS = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: a",
    "Sec-WebSocket-Version: 13",
)


async def echo(it: Inside, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await it.head(reader)
    writer.write(UP)
    while data := await reader.read(100):
        writer.write(data)


def ask(path: str, *lines: str) -> bytes:
    head = [f"GET {path} HTTP/1.1", "Host: roost.example:80", *lines]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


async def status(served: Served, path: str, *lines: str) -> int:
    async with Raw(served.port) as raw:
        await raw.say(ask(path, *lines))
        return int((await raw.reader.readline()).split()[1])


async def token(served: Served, machine: str, key: str, seconds: int = 60) -> str:
    key_id = (await served.keys.authenticate(key)).key_id
    expires = int(datetime.now(UTC).timestamp()) + seconds
    return f"{key_id}.{Links(b'secret').sign(about(machine, key_id), expires)}"


async def test_chromium_hears_of_localhost_and_of_nobodys_key(
    plane: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plane.machine()
    async with inside(echo) as server:
        monkeypatch.setattr(planes, "CDP_PORT", server.port)
        link = await token(plane, machine, plane.key)
        for query, lines in (("", (f"Authorization: Bearer {plane.key}",)), (f"?token={link}", ())):
            async with Raw(plane.port) as raw:
                path = f"/v1/machines/{machine}/browser/cdp/devtools/page/AB-1{query}"
                await raw.say(ask(path, *WS, "Origin: https://evil.example", "Cookie: a=b", *lines))
                answer = await raw.reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 101")
                await raw.say(b"bytes as they are")
                assert await raw.reader.readexactly(17) == b"bytes as they are"
            head = server.heads[-1].lower()
            assert head.startswith(b"get /devtools/page/ab-1 http/1.1\r\nhost: localhost\r\n")
            for gone in (b"origin", b"cookie", b"authorization", b"token", b"evil", b"roost"):
                assert gone not in head


async def test_nobody_else_comes_in(plane: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, sibling = plane.machine(), plane.machine()
    async with inside(echo) as server:
        monkeypatch.setattr(planes, "CDP_PORT", server.port)
        path = f"/v1/machines/{machine}/browser/cdp/devtools/browser/AB-1"
        assert await status(plane, path, *WS) == 401
        preview = await plane.add_token(machine, Role.PREVIEW, port=server.port)
        for key, expected in ((plane.other_key, 404), (preview, 403), ("roost_" + "0" * 64, 401)):
            assert await status(plane, path, *WS, f"Authorization: Bearer {key}") == expected
        reads = await plane.add_key(TENANT, Role.READ_ONLY)
        assert await status(plane, path, *WS, f"Authorization: Bearer {reads}") == 403
        for bad in (
            await token(plane, sibling, plane.key),
            await token(plane, machine, plane.key, -1),
            (await token(plane, machine, plane.key))[:-2] + "AA",
            await token(plane, machine, reads),
            "x",
        ):
            assert await status(plane, f"{path}?token={bad}", *WS) == 401
        assert (
            await status(plane, f"{path}?token={await token(plane, machine, plane.other_key)}", *WS)
            == 404
        )
        good = await token(plane, machine, plane.key)
        assert await status(plane, f"{path}?token={good}") == 405, "no WebSocket"
        assert server.connections == 0


async def test_a_link_ends_with_its_key(plane: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = plane.machine()
    key = await plane.add_key(TENANT)
    async with inside(echo) as server:
        monkeypatch.setattr(planes, "CDP_PORT", server.port)
        path = f"/v1/machines/{machine}/browser/cdp/devtools/browser/A?token={await token(plane, machine, key)}"
        async with Raw(plane.port) as raw:
            await raw.say(ask(path, *WS))
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            await plane.keys.revoke(TENANT, (await plane.keys.authenticate(key)).key_id)
            try:
                assert await asyncio.wait_for(raw.reader.read(), 15) == b""
            except ConnectionError:
                pass
        assert await status(plane, path, *WS) == 401


async def test_a_link_ends_when_it_expires(plane: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = plane.machine()
    async with inside(echo) as server:
        monkeypatch.setattr(planes, "CDP_PORT", server.port)
        link = await token(plane, machine, plane.key, 3)
        async with Raw(plane.port) as raw:
            await raw.say(
                ask(f"/v1/machines/{machine}/browser/cdp/devtools/browser/A?token={link}", *WS)
            )
            assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            assert plane.previews.connections()[1] == 1
            await until(lambda: plane.previews.connections()[1] == 0, 30)
