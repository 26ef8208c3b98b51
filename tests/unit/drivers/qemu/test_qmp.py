"""The monitor's client against a scripted VMM, honest and not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.drivers.qemu.qmp import LINE_BYTES, Qmp, VmmError

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}}


class Vmm:
    """The other end, line by line."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self._kept = b""

    async def send(self, *messages: Any) -> None:
        data = b"".join(
            m if isinstance(m, bytes) else json.dumps(m).encode() + b"\r\n" for m in messages
        )
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self) -> dict[str, Any]:
        while b"\n" not in self._kept:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            if not data:
                raise EOFError
            self._kept += data
        line, _, self._kept = self._kept.partition(b"\n")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    async def answer(self, value: Any = None, **extra: Any) -> dict[str, Any]:
        command = await self.receive()
        await self.send({"return": {} if value is None else value, "id": command["id"], **extra})
        return command


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Qmp, Vmm]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    vmm = Vmm(theirs)
    await vmm.send(GREETING)
    greeted = asyncio.create_task(vmm.answer())
    qmp = await Qmp.over(ours, 2)
    assert (await greeted)["execute"] == "qmp_capabilities"
    yield qmp, vmm
    await qmp.close()
    theirs.close()


async def test_a_command_and_its_value(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    assert qmp.version == "10.0.2"
    task = asyncio.create_task(qmp.execute("query-status", {"a": 1}))
    assert await vmm.answer({"status": "running"}) == {
        "execute": "query-status",
        "arguments": {"a": 1},
        "id": 2,
    }
    assert await task == {"status": "running"}


async def test_replies_find_their_commands_in_any_order(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    tasks = [asyncio.create_task(qmp.execute(name)) for name in ("a", "b")]
    first, second = await vmm.receive(), await vmm.receive()
    await vmm.send(
        {"return": second["execute"], "id": second["id"]},
        {"return": first["execute"], "id": first["id"]},
    )
    assert await asyncio.gather(*tasks) == ["a", "b"]


async def test_a_refusal_names_the_command(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    task = asyncio.create_task(qmp.execute("cont"))
    command = await vmm.receive()
    await vmm.send(
        {"error": {"class": "GenericError", "desc": "no " + "x" * 9000}, "id": command["id"]}
    )
    with pytest.raises(VmmError, match="refused cont: no x") as caught:
        await task
    assert len(caught.value.message) < 400
    assert qmp.alive


async def test_a_late_reply_is_dropped(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    with pytest.raises(VmmError) as caught:
        await qmp.execute("slow", timeout_s=0.02)
    assert caught.value.code == "TIMEOUT"
    slow = await vmm.receive()
    await vmm.send({"return": "late", "id": slow["id"]})
    task = asyncio.create_task(qmp.execute("next"))
    await vmm.answer("prompt")
    assert await task == "prompt"


async def test_events_reach_those_who_listen(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    with qmp.listen("STOP") as stops, qmp.listen("STOP", "RESUME") as both:
        await vmm.send(
            {"event": "RESUME", "timestamp": {}},
            {"event": "OTHER"},
            {"event": "STOP", "data": {"a": 1}},
        )
        assert (await stops.next(1)).data == {"a": 1}
        assert [(await both.next(1)).name for _ in range(2)] == ["RESUME", "STOP"]
        with pytest.raises(VmmError) as caught:
            await stops.next(0.01)
        assert caught.value.code == "TIMEOUT"


async def test_a_flood_of_events_is_bounded(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    with qmp.listen("E") as events:
        await vmm.send(*({"event": "E", "data": {"n": n}} for n in range(5000)))
        task = asyncio.create_task(qmp.execute("x"))
        await vmm.answer()
        await task
        assert (await events.next(1)).data["n"] >= 5000 - 256


async def test_a_descriptor_goes_along(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    read, write = os.pipe()
    task = asyncio.create_task(qmp.execute("add-fd", {"fdset-id": 1}, fd=write))
    await asyncio.sleep(0.01)
    data, fds, _, _ = socket.recv_fds(vmm.socket, 65536, 1)
    os.write(fds[0], b"through")
    assert os.read(read, 10) == b"through"
    await vmm.send({"return": {}, "id": json.loads(data)["id"]})
    await task
    for fd in (read, write, *fds):
        os.close(fd)


@pytest.mark.parametrize(
    "said",
    [
        b"no json\r\n",
        b"[]\r\n",
        b'{"return": 1}\r\n',
        b'{"id": "x", "return": 1}\r\n',
        b'{"error": {"class": "C", "desc": "what?"}}\r\n',
        b"[" * 200_000 + b"\r\n",
        b"\xff\xfe\r\n",
        b"x" * (LINE_BYTES + 1),
    ],
)
async def test_what_is_no_protocol_ends_the_connection(pair: tuple[Qmp, Vmm], said: bytes) -> None:
    qmp, vmm = pair
    with qmp.listen("STOP") as stops:
        task = asyncio.create_task(qmp.execute("query-status"))
        await vmm.receive()
        sending = asyncio.create_task(vmm.send(said))
        with pytest.raises(VmmError, match="gone"):
            await task
        with pytest.raises(VmmError, match="gone"):
            await stops.next(1)
        sending.cancel()
    assert not qmp.alive
    with pytest.raises(VmmError):
        await qmp.execute("cont")


async def test_the_end_of_the_vmm_fails_who_waits(pair: tuple[Qmp, Vmm]) -> None:
    qmp, vmm = pair
    task = asyncio.create_task(qmp.execute("query-status"))
    await vmm.receive()
    vmm.socket.close()
    with pytest.raises(VmmError, match="gone"):
        await task


async def test_a_silent_vmm_is_given_up(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "qmp"))
    listener.listen()
    with pytest.raises(VmmError, match="silent"):
        await Qmp.connect(tmp_path / "qmp", 0.05)
    listener.close()
    with pytest.raises(VmmError, match="does not answer"):
        await Qmp.connect(tmp_path / "qmp", 0.05)


async def test_a_greeting_without_a_version_is_refused() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    vmm = Vmm(theirs)
    await vmm.send({"QMP": {"version": "ten"}})
    with pytest.raises(VmmError, match="no version"):
        await Qmp.over(ours, 1)
    theirs.close()
