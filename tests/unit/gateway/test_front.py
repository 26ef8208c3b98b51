"""One port: HTTP, WebSocket and gRPC, told apart by their first bytes; what is none of them does no harm."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import grpc
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from roost.errors import RoostError
from roost.gateway import relay
from roost.gateway.front import PREFACE, bind, party
from roost.gateway.rpc import HealthCheckRequest, HealthCheckResponse
from tests.unit.api.kit import Served, serving, until


async def say(served: Served, data: bytes, timeout: float = 15) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), timeout)
    writer.close()
    return answer


def health(channel: grpc.aio.Channel):  # type: ignore[no-untyped-def]
    return channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )


async def test_grpc_and_http_on_one_port_with_the_peers_address(
    bare: Served,
) -> None:
    seen: list[str] = []

    class Spy(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
            handler = await continuation(details)

            async def call(request, context):  # type: ignore[no-untyped-def]
                seen.append(context.peer())
                return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(
                call, handler.request_deserializer, handler.response_serializer
            )

    await bare.rpc.stop(0)
    bare.rpc._interceptors = (Spy(),)
    await bare.rpc.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{bare.port}") as channel:
        answer = await health(channel)(HealthCheckRequest(), timeout=5)
        assert answer.status == 1
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health(channel)(HealthCheckRequest(service="no.such"), timeout=5)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await bare.http.get("/healthz")).json() == {"status": "ok"}
    found = relay.peer_address(seen[0])
    assert found is not None and found[0] == "127.0.0.1" and found[1] != bare.port


def test_peer_names_carry_any_address() -> None:
    for address in (("127.0.0.1", 1), ("2001:db8:85a3:1234:5678:8a2e:1370:7334", 65535)):
        name = relay.peer_name(address, 10**9)
        assert len(name) <= 107
        assert relay.peer_address(f"unix-abstract:{name}") == address
    assert relay.peer_address("unix:") is None
    assert relay.peer_address("ipv4:1.2.3.4:5") is None


async def test_bytes_in_drops(bare: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bare.port)
    for byte in b"PUT /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n":
        writer.write(bytes([byte]))
        await asyncio.sleep(0.001)
    answer = await asyncio.wait_for(reader.read(), 15)
    assert answer.startswith(b"HTTP/1.1 405")
    writer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00" + bytes(500),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"PRI * HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        bytes(range(256)),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\nx",
        b"GET http://[ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ],
)
async def test_garbage_does_no_harm(
    bare: Served, garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.gateway.http.HEADER_S", 0.5)
    answer = await say(bare, garbage)
    assert not answer.startswith((b"HTTP/1.1 5", b"HTTP/1.1 2"))
    assert (await bare.http.get("/healthz")).status_code == 200


async def test_a_silent_and_a_slow_connection_are_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, None, first_bytes_s=0.2) as bare:
        assert await say(bare, b"") == b""
        assert await say(bare, b"PRI * HT") == b""


async def test_slow_headers_are_closed(
    bare: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("roost.gateway.http.HEADER_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", bare.port)
    writer.write(b"GET /healthz HTTP/1.1\r\n")

    async def drip() -> None:
        while True:
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert await asyncio.wait_for(reader.read(), 15) == b""
    dripping.cancel()


async def test_headers_without_end_are_refused(bare: Served) -> None:
    answer = await say(bare, b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000)
    assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error_code"]


async def test_connections_above_the_cap_get_503(tmp_path: Path) -> None:
    served = Served(tmp_path, None)
    served.max_connections = 5
    await served.open()
    try:
        held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(5)]
        await asyncio.sleep(0.1)
        answer = await say(served, b"")
        assert answer.startswith(b"HTTP/1.1 503") and b"CAPACITY_EXCEEDED" in answer
        for _, writer in held:
            writer.close()
        await until(lambda: served.front.open_connections == 0)
        assert (await served.http.get("/healthz")).status_code == 200
        assert served.front.open_connections == 1
    finally:
        await served.close()


async def test_one_address_has_a_share_of_the_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert party("127.0.0.2") is party("::1") is party("::ffff:127.0.0.1") is None
    assert party("192.0.2.1") == party("::ffff:192.0.2.1") != party("192.0.2.2")
    assert party("2001:db8::1") == party("2001:db8::ffff:1") != party("2001:db8:0:1::1")
    assert party("fe80::1%eth0") == party("fe80::2")
    monkeypatch.setattr("roost.gateway.front.party", lambda address: address)
    served = Served(tmp_path, None)
    served.max_connections = 20
    asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    await served.open()
    try:
        for _ in range(2):  # once these are gone, there is room again
            held = []
            for data in (b"", b"GET /", PREFACE, asked, b"PRI", b""):
                held.append(await asyncio.open_connection("127.0.0.1", served.port))
                held[-1][1].write(data)
            answer = await asyncio.wait_for(held[-1][0].read(), 15)
            assert answer.startswith(b"HTTP/1.1 503") and b"CAPACITY_EXCEEDED" in answer
            other = await asyncio.open_connection(
                "127.0.0.1", served.port, local_addr=("127.0.0.2", 0)
            )
            other[1].write(asked)
            assert (await asyncio.wait_for(other[0].readline(), 15)).startswith(b"HTTP/1.1 200")
            for _, writer in [*held, other]:
                writer.close()
            await until(lambda: served.front.open_connections == 0)
        assert not served.front._parties and not served.front._party_of
    finally:
        await served.close()


async def test_idle_connections_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From three fourths of the cap on; not those at work, nor those that have just had an answer."""
    monkeypatch.setattr("roost.gateway.front.IDLE_S", 0.0)
    served = Served(tmp_path, None)
    served.max_connections = 8
    await served.open()
    asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    try:
        held = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(6)]
        for reader, writer in held[:5]:
            writer.write(asked)
            assert await asyncio.wait_for(reader.readuntil(b"}"), 15)
        held[5][1].write(asked[:10])
        await asyncio.sleep(1.5)
        assert served.front.open_connections == 6  # not crowded: they stay
        held.append(await asyncio.open_connection("127.0.0.1", served.port))
        for reader, _ in held[:5]:
            assert await asyncio.wait_for(reader.read(), 15) == b""
        held[5][1].write(asked[10:])
        assert await asyncio.wait_for(held[5][0].readuntil(b"}"), 15)
        for _, writer in held:
            writer.close()
    finally:
        await served.close()


async def test_every_connection_is_counted_once(bare: Served) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{bare.port}") as channel:
        await health(channel)(HealthCheckRequest(), timeout=5)
    for _ in range(5):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{bare.port}/v1/machines/x/executions/y/stream")
        assert refused.value.response.status_code == 401
        await say(bare, b"\x00\x01")
    await bare.http.aclose()
    await until(lambda: bare.front.open_connections == 0)


async def test_a_grpc_connection_both_sides_have_ended_is_let_go(bare: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bare.port)
    writer.write(PREFACE + b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame
    assert await asyncio.wait_for(reader.readexactly(9), 15)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 15)  # until the server ends its side, too
    await until(lambda: bare.front.open_connections == 0)
    writer.close()


async def test_a_refused_websocket_is_no_error_in_the_log(
    bare: Served, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"ws://127.0.0.1:{bare.port}/v1/machines/x/executions/y/stream"
    with pytest.raises(InvalidStatus) as refused:
        await connect(url)
    assert refused.value.response.status_code == 401
    await until(lambda: bare.front.open_connections == 0)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_websocket_says_401_and_404_in_json(served: Served) -> None:
    url = f"ws://127.0.0.1:{served.port}/v1/machines/{'a' * 26}/executions/{'b' * 26}/stream"
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, subprotocols=[f"roost.key.{served.key}"])
    assert refused.value.response.status_code == 404
    body = json.loads(refused.value.response.body)
    assert body["error_code"] == "MACHINE_NOT_FOUND" and body["details"]["request_id"]
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, subprotocols=["roost.key.nonsense"])
    assert refused.value.response.status_code == 401


async def test_the_port_taken_is_told(bare: Served) -> None:
    with pytest.raises(RoostError) as found:
        bind("127.0.0.1", bare.port)
    assert found.value.code == "PORT_IN_USE"
    with pytest.raises(RoostError) as found:
        bind("no.such.host.invalid", 1)
    assert found.value.code == "CONFIG_INVALID"


async def test_stopping_ends_streams_with_a_word(tmp_path: Path) -> None:
    from tests.unit.agent import process

    with process.running(tmp_path / "agent") as agent:
        served = Served(tmp_path, agent.target)
        await served.open()
        mid = served.machine()
        base = f"/v1/machines/{mid}/executions"
        async with served.http.stream(
            "POST", f"{base}/stream", json={"command": "echo hi; sleep 60"}
        ) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith("event: stdout"):
                    break
            quick = asyncio.create_task(
                served.http.post(base, json={"command": f"touch {tmp_path}/q; sleep 0.3"})
            )
            slow = asyncio.create_task(
                served.http.post(base, json={"command": f"touch {tmp_path}/s; sleep 30"})
            )
            async with asyncio.timeout(30):
                while not ((tmp_path / "q").exists() and (tmp_path / "s").exists()):
                    await asyncio.sleep(0.01)
            stopping = asyncio.create_task(served.front.stop(4.0))
            rest = [line async for line in lines]
            assert any("SHUTTING_DOWN" in line for line in rest)
            assert (await quick).status_code == 200
            late = await slow
            assert late.status_code == 503 and late.json()["error_code"] == "SHUTTING_DOWN"
            await stopping
        await served.close()
