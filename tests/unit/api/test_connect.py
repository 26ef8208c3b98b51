"""A TCP connection into a machine as a WebSocket, and the SDK's forward over it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import weakref
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from roost.agent.streams import DialStream
from roost.client._async._forward import AsyncForward
from roost.client._config import Config
from roost.errors import RoostError
from roost.services.models import Role
from tests.unit.api.kit import OTHER, TENANT, Served, until

EOF = json.dumps({"type": "eof"})


@contextlib.asynccontextmanager
async def listening(serve: object, host: str = "127.0.0.1") -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, host, 0)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only once the other half has ended."""
    data = await reader.read()
    writer.write(data[::-1])
    writer.close()


def socket(served: Served, port: int, machine: str, key: str | None = None) -> connect:
    url = f"ws://127.0.0.1:{served.port}/v1/machines/{machine}/ports/{port}/connect"
    headers = {"Authorization": f"Bearer {key or served.key}"}
    return connect(url, additional_headers=headers, proxy=None, compression=None, max_size=1 << 20)


async def test_bytes_and_half_closes(served: Served) -> None:
    machine = served.machine()
    async with listening(backwards) as port, socket(served, port, machine) as ws:
        await ws.send(b"abc")
        await ws.send(b"def")
        await ws.send(EOF)
        assert await ws.recv() == b"fedcba"
        assert json.loads(await ws.recv()) == {"type": "eof"}
        with pytest.raises(ConnectionClosed) as caught:
            await ws.recv()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1000
    assert served.machines.users[machine] == 0


async def test_the_machines_half_may_end_first(served: Served) -> None:
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        got.set_result(await reader.read())
        writer.close()

    machine = served.machine()
    async with listening(mute) as port, socket(served, port, machine) as ws:
        assert await ws.recv() == b"hello"
        assert json.loads(await ws.recv()) == {"type": "eof"}
        await ws.send(b"late")
        await ws.send(EOF)
        with pytest.raises(ConnectionClosed):
            await ws.recv()
    assert await asyncio.wait_for(got, 15) == b"late"


async def test_who_goes_is_felt(served: Served) -> None:
    gone = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        gone.set()
        writer.close()

    machine = served.machine()
    async with listening(hear) as port:
        async with socket(served, port, machine) as ws:
            assert served.machines.users[machine] == 1
            await ws.send(b"x")
            ws.transport.abort()
        await asyncio.wait_for(gone.wait(), 15)
    await until(lambda: served.machines.users[machine] == 0)


async def test_refusals(served: Served) -> None:
    machine, theirs = served.machine(), served.machine(OTHER)
    reader = await served.add_key(TENANT, Role.READ_ONLY)
    token = await served.add_token(machine, Role.PREVIEW, port=1)
    async with listening(backwards) as port:
        for status, code, at, which, key in (
            (502, "PORT_CLOSED", 1, machine, served.key),
            (404, "MACHINE_NOT_FOUND", port, theirs, served.key),
            (403, "FORBIDDEN", port, machine, reader),
            (403, "FORBIDDEN", port, machine, token),
            (401, "AUTH_INVALID", port, machine, "roost_" + "0" * 64),
        ):
            with pytest.raises(InvalidStatus) as caught:
                async with socket(served, at, which, key):
                    pass
            answer = caught.value.response
            assert answer.status_code == status
            assert json.loads(answer.body or b"{}")["error_code"] == code
        for bad in (0, 65536):
            with pytest.raises(InvalidStatus):
                async with socket(served, bad, machine):
                    pass


async def test_a_revoked_key_ends_it(served: Served) -> None:
    made = await served.keys.create(TENANT, "short")
    machine = served.machine()
    async with listening(backwards) as port, socket(served, port, machine, made.secret) as ws:
        await served.keys.revoke(TENANT, made.id)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(ws.recv(), 15)


async def test_a_sleeping_machine_wakes(served: Served) -> None:
    machine = served.machine()
    await served.machines.sleep(TENANT, machine)
    async with listening(backwards) as port, socket(served, port, machine) as ws:
        await ws.send(b"ab")
        await ws.send(EOF)
        assert await ws.recv() == b"ba"


async def test_who_does_not_read_holds_the_other_back(served: Served) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

    machine = served.machine()
    async with listening(flood) as port, socket(served, port, machine) as ws:
        ws.transport.pause_reading()
        first = -1
        async with asyncio.timeout(45):
            while not sent or sent != first:
                first = sent
                await asyncio.sleep(1.0)
        assert sent < 32 << 20
        ws.transport.abort()


# --- the SDK --------------------------------------------------------------------------------------


async def test_forward_carries_many_and_much(served: Served) -> None:
    machine = served.machine()
    data = os.urandom(3_000_000)
    config = Config(served.url, served.key)
    async with listening(backwards) as port, AsyncForward(config, machine, port) as forward:
        assert forward.port

        async def one() -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
            writer.write(data)
            writer.write_eof()
            back = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            return hashlib.sha256(back[::-1]).hexdigest()

        assert set(await asyncio.gather(*(one() for _ in range(3)))) == {
            hashlib.sha256(data).hexdigest()
        }
    await until(lambda: served.machines.users[machine] == 0)


async def test_forward_says_why_it_cannot(served: Served) -> None:
    heard: list[RoostError] = []
    async with AsyncForward(Config(served.url, served.key), served.machine(), 1) as forward:
        forward.on_error = heard.append
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        with contextlib.suppress(OSError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await until(lambda: heard)
        with pytest.raises(RoostError) as caught:
            async with AsyncForward(Config(served.url, served.key), "m", 1, forward.port):
                pass
    assert heard[0].code == "PORT_CLOSED", heard[0]
    assert caught.value.code == "PORT_IN_USE"


async def test_what_is_over_holds_no_connection_to_the_agent(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture waits until the calls of the agent are gone; one that only the garbage collector finds is not."""
    calls: list[weakref.ref[object]] = []
    made = DialStream.__init__

    def watched(self: DialStream, every: object, call: object, *rest: object) -> None:
        calls.append(weakref.ref(call))
        made(self, every, call, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DialStream, "__init__", watched)
    machine = served.machine()
    gc.disable()
    try:
        async with listening(backwards) as port:
            async with socket(served, port, machine) as ws:
                await ws.send(b"abc")
                await ws.send(EOF)
                assert await ws.recv() == b"cba"
            async with socket(served, port, machine) as ws:
                await ws.send(b"abc")
                ws.transport.abort()
        await until(lambda: served.machines.users[machine] == 0)
        await until(lambda: not any(call() for call in calls), 3)
    finally:
        gc.enable()
    assert len(calls) == 2
