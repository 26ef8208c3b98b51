"""The dialler: handshake over streams that hold stale bytes, then a relay; with a real agent on its stdio."""

from __future__ import annotations

import asyncio
import hmac
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost import ids
from roost.agent.client import AgentClient
from roost.agent.dialler import Dialler, FifoStream, Handshake
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import MachineError
from tests.attack.record import case
from tests.unit.agent.process import BINARY, TOKEN


def mac(data: bytes) -> bytes:
    return hmac.digest(TOKEN.encode(), data, "sha256")


class Pipe:
    """Two queues: what the dialler writes, what it reads."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.heard = asyncio.Event()
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.opened = 0
        self.closed = 0

    async def open(self) -> Pipe:
        self.opened += 1
        return self

    async def read(self) -> bytes:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        self.sent += data
        self.heard.set()

    async def close(self) -> None:
        self.closed += 1

    async def nonce(self) -> bytes:
        while len(self.sent) < 48:
            self.heard.clear()
            await asyncio.wait_for(self.heard.wait(), 15)
        assert bytes(self.sent[:32]) == mac(b"roost-dial-v1")
        nonce = bytes(self.sent[32:48])
        del self.sent[:48]
        return nonce


@case(29)
@given(st.lists(st.binary(max_size=90), max_size=20), st.binary(max_size=50), st.integers(1, 40))
def test_finds_its_echo_in_any_cut_of_any_noise(
    noise: list[bytes], after: bytes, size: int
) -> None:
    shake = Handshake(TOKEN)
    stream = b"".join(noise) + shake.nonce + mac(shake.nonce) + after
    for at in range(0, len(stream), size):
        rest = shake.feed(stream[at : at + size])
        if rest is not None:
            rest += stream[at + size :]
            break
    assert rest == after


@case(29)
def test_a_wrong_mac_and_an_old_echo_are_noise() -> None:
    shake = Handshake(TOKEN)
    old = os.urandom(16)
    assert shake.feed(old + mac(old)) is None
    assert shake.feed(shake.nonce + os.urandom(32)) is None
    assert shake.feed(shake.nonce + mac(shake.nonce) + b"PRI") == b"PRI"


@case(29)
def test_endless_noise_is_refused() -> None:
    shake = Handshake(TOKEN)
    with pytest.raises(MachineError):
        for _ in range(70):
            shake.feed(bytes(1 << 20))


async def test_relays_after_the_handshake_and_again(tmp_path: Path) -> None:
    pipe = Pipe()
    dialler = Dialler(tmp_path / "d.sock", TOKEN, pipe.open)
    await dialler.start()
    nonces = []
    try:
        for turn in range(3):
            pipe.incoming.put_nowait(b"stale" + bytes(turn))
            reader, writer = await asyncio.open_unix_connection(dialler.path)
            writer.write(b"PRI")
            nonce = await pipe.nonce()
            nonces.append(nonce)
            pipe.incoming.put_nowait(b"junk" + nonce + mac(nonce) + b"hel")
            pipe.incoming.put_nowait(b"lo")
            assert await asyncio.wait_for(reader.readexactly(5), 15) == b"hello"
            while bytes(pipe.sent) != b"PRI":
                await asyncio.sleep(0.005)
            pipe.sent.clear()
            writer.close()
            while pipe.closed <= turn:
                await asyncio.sleep(0.005)
    finally:
        await dialler.close()
    assert len(set(nonces)) == 3


async def test_no_echo_ends_the_connection(tmp_path: Path) -> None:
    pipe = Pipe()
    dialler = Dialler(tmp_path / "d.sock", TOKEN, pipe.open, handshake_s=0.1)
    await dialler.start()
    try:
        reader, writer = await asyncio.open_unix_connection(dialler.path)
        writer.write(b"PRI")
        assert await asyncio.wait_for(reader.read(), 15) == b""
        assert pipe.closed == 1
    finally:
        await dialler.close()


async def test_a_greeting_that_nobody_answers_is_given_up_for_another(tmp_path: Path) -> None:
    """On the stream opened anew: its other end may hold all back until it is closed."""
    pipe = Pipe()
    dialler = Dialler(tmp_path / "d.sock", TOKEN, pipe.open, patience_s=2.0)
    await dialler.start()
    try:
        reader, writer = await asyncio.open_unix_connection(dialler.path)
        writer.write(b"PRI")
        lost = await pipe.nonce()
        nonce = await pipe.nonce()
        assert (pipe.opened, pipe.closed) == (2, 1)
        pipe.incoming.put_nowait(lost + mac(lost) + nonce + mac(nonce) + b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 15) == b"hello"
    finally:
        await dialler.close()


async def test_a_silent_connection_dials_nothing_and_the_newest_wins(tmp_path: Path) -> None:
    pipe = Pipe()
    dialler = Dialler(tmp_path / "d.sock", TOKEN, pipe.open)
    await dialler.start()
    try:
        _, silent = await asyncio.open_unix_connection(dialler.path)
        silent.close()
        await asyncio.sleep(0.05)
        assert pipe.opened == 0
        first, writer = await asyncio.open_unix_connection(dialler.path)
        writer.write(b"1")
        await pipe.nonce()
        _, second = await asyncio.open_unix_connection(dialler.path)
        second.write(b"2")
        assert await asyncio.wait_for(first.read(), 15) == b""
        await pipe.nonce()
        assert (pipe.opened, pipe.closed) == (2, 1)
    finally:
        await dialler.close()


class Stdio:
    """The stdin and stdout of an agent: one stream for all sessions, as a virtio-serial port is."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    async def open(self) -> Stdio:
        return self

    async def read(self) -> bytes:
        return await self._out.read(65536)

    async def write(self, data: bytes) -> None:
        self._in.write(data)
        await self._in.drain()

    async def close(self) -> None:
        pass


@pytest.mark.skipif(not BINARY.exists(), reason="the agent is not built")
async def test_a_real_agent_through_its_serial_transport(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(BINARY),
        "--listen",
        "serial-stdio",
        env={"ROOST_AGENT_TOKEN": TOKEN, "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    dialler = Dialler(tmp_path / "d.sock", TOKEN, Stdio(process).open)
    await dialler.start()
    try:
        for turn in range(3):
            client = AgentClient(dialler.target, TOKEN)
            await client.wait_ready(10)
            request = pb.StartRequest(execution_id=ids.new(), shell="head -c 300000 /dev/zero")
            result = await client.run(request)
            assert len(result.stdout) == 300_000, turn
            # Leave in the middle of a stream: stale frames wait for the next session.
            endless = pb.StartRequest(execution_id=ids.new(), shell="yes | head -c 20000000")
            await client.start(endless)
            async for frame in client.attach(endless.execution_id):
                if frame.offset > 100_000:
                    break
            await client.close()
    finally:
        await dialler.close()
        process.kill()
        process._transport.close()  # type: ignore[attr-defined]  # wait() would wait for its output to be read


async def test_fifos_carry_both_ways(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    os.mkfifo(tmp_path / "in")
    near = await FifoStream.open(tmp_path / "out", tmp_path / "in")
    far = await FifoStream.open(tmp_path / "in", tmp_path / "out")
    await near.write(b"down")
    await far.write(b"up")
    assert await asyncio.wait_for(far.read(), 15) == b"down"
    assert await asyncio.wait_for(near.read(), 15) == b"up"
    await near.close()
    await far.close()
