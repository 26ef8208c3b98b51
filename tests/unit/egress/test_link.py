from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.egress import link
from roost.egress.link import Link
from roost.egress.policy import Policy
from roost.egress.process import Process
from roost.egress.supervisor import Supervisor
from roost.errors import InternalError, UnavailableError
from roost.settings import Settings


@contextlib.asynccontextmanager
async def _process(path: Path) -> AsyncIterator[None]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        process = Process(sock, "1")
        running = asyncio.ensure_future(process.run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            process._stop.set()
            await running


async def test_a_slot_it_has_not_been_given_is_no_refusal(tmp_path: Path) -> None:
    async with _process(tmp_path / "s"):
        made = await Link.open(tmp_path / "s")
        policy = Policy.read("off").to_json()
        with pytest.raises(UnavailableError):
            await made.call("apply", slot=1, machine_id="m", policy=policy, intercept=[])
        with pytest.raises(InternalError):
            await made.call("nonsense")
        await made.close()


async def test_descriptors_outlive_a_call_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "CALL_S", 0.1)
    near, far = socket.socketpair()
    with far:
        near.setblocking(False)
        far.setblocking(False)
        made = Link(near)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(b"\0" * 65536)
        with (tmp_path / "given").open("w") as given:
            with pytest.raises(UnavailableError):
                await made.call("attach", [given.fileno()])
        fds: list[int] = []
        async with asyncio.timeout(30):
            while not fds:
                await asyncio.sleep(0)
                with contextlib.suppress(BlockingIOError):
                    _, fds, _, _ = socket.recv_fds(far, 2**20, 4)
        assert os.readlink(f"/proc/self/fd/{fds[0]}") == str(tmp_path / "given")
        os.close(fds[0])
        await made.close()


async def test_one_that_hangs_while_it_is_given_the_slots_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(Settings(run_dir=tmp_path, data_dir=tmp_path), servers=[])
    monkeypatch.setattr("roost.egress.supervisor.PING_S", 0.05)
    monkeypatch.setattr("roost.egress.link.CALL_S", 0.1)
    starts: list[socket.socket] = []

    async def start() -> Link:
        near, far = socket.socketpair()
        near.setblocking(False)
        starts.append(far)
        return Link(near)

    async def take(made: Link) -> None:
        supervisor._link = made
        supervisor._up.set()

    async def again() -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(supervisor, "_start", start)
    monkeypatch.setattr(supervisor, "_take", take)
    monkeypatch.setattr(supervisor, "_end_recorded", lambda: None)
    supervisor.on_restart(again)
    await take(await start())
    supervisor._watching = asyncio.create_task(supervisor._watch())
    async with asyncio.timeout(30):
        while supervisor.restarts < 2:
            await asyncio.sleep(0.02)
    await supervisor.close()
    for sock in starts:
        sock.close()
