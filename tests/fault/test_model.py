"""Any history on a host in memory: see ``tests.fault.histories``."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from roost.drivers.interface import Exit
from roost.errors import RoostError
from roost.services.models import ForkMachine
from tests.attack.record import case
from tests.fault.histories import Histories, Host, Op, Seen
from tests.unit.engine import kit
from tests.unit.engine.kit import TENANT, Daemon, small

pytestmark = case("F8")


class InMemory(Host):
    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.host = self.runner.run(self._host())
        self.daemon: Daemon = self.runner.run(Daemon.start(self.host))
        self.newest: dict[str, str] = {}  # machine id -> snapshot id

    async def _host(self) -> kit.Host:
        return kit.Host(Path(self.directory.name), memory=True)

    def call(self, op: Op) -> str | None:
        return self.runner.run(self._call(op))

    async def _call(self, op: Op) -> str | None:
        try:
            await self._do(op)
        except RoostError as error:
            return error.code
        return None

    async def _do(self, op: Op) -> None:
        d = self.daemon
        if op.kind == "ensure":
            await d.machines.ensure(TENANT, op.key, small())
            return
        found = (await d.machines.list(TENANT, key=op.key)).items
        machine_id = found[0].id if found else "0" * 26
        if op.kind == "snapshot":
            made = await d.snapshots.create(TENANT, machine_id)
            self.newest[machine_id] = made.id
            return
        if op.kind == "fork":
            for child in await d.machines.fork(TENANT, machine_id, ForkMachine()):
                await d.machines.delete(TENANT, child.id)
            return
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "sleep": lambda: d.machines.sleep(TENANT, machine_id),
            "stop": lambda: d.machines.sleep(TENANT, machine_id, "stopped"),
            "bad": lambda: d.machines.sleep(TENANT, machine_id, "no tier"),
            "wake": lambda: d.machines.wake(TENANT, machine_id),
            "use": lambda: d.machines.awake(TENANT, machine_id),
            "delete": lambda: d.machines.delete(TENANT, machine_id),
            "rollback": lambda: self._rollback(machine_id),
        }
        await calls[op.kind]()

    async def _rollback(self, machine_id: str) -> None:
        await self.daemon.machines.get(TENANT, machine_id)
        if machine_id not in self.newest:
            raise RoostError("it has none", code="INVALID_STATE")
        await self.daemon.snapshots.rollback(TENANT, machine_id, self.newest[machine_id])

    def together(self, ops: Sequence[Op], kill_after_s: float | None) -> list[str | None]:
        return self.runner.run(self._together(ops, kill_after_s))

    async def _together(self, ops: Sequence[Op], kill_after_s: float | None) -> list[str | None]:
        tasks = [asyncio.ensure_future(self._call(op)) for op in ops]
        if kill_after_s is not None:
            await asyncio.wait(tasks, timeout=kill_after_s / 20)
            await self._again()
            for task in tasks:
                task.cancel()
        said = await asyncio.gather(*tasks, return_exceptions=True)
        await self._quiet()
        return ["CUT" if isinstance(each, BaseException) else each for each in said]

    async def _again(self) -> None:
        await self.daemon.kill()
        self.daemon = await Daemon.start(self.host)

    async def _quiet(self) -> None:
        desk = self.daemon.engine.desk
        while (busy := desk.busy()) and (future := desk.last(busy[0])):
            await asyncio.gather(future, return_exceptions=True)
            await asyncio.sleep(0)
        await self.daemon.engine.collect()

    def restart(self) -> None:
        self.runner.run(self._again())

    def crash(self, key: str) -> None:
        self.runner.run(self._crash(key))

    async def _crash(self, key: str) -> None:
        (machine,) = (await self.daemon.machines.list(TENANT, key=key)).items
        self.host.driver.die(machine.id, Exit("killed"))
        await kit.until(lambda: self._failed(machine.id))
        await self._quiet()

    async def _failed(self, machine_id: str) -> bool:
        return (await self.daemon.machines.get(TENANT, machine_id)).phase == "failed"

    def found(self) -> dict[str, Seen]:
        machines = [m for m in self.runner.run(self.daemon.all()) if m.phase != "destroyed"]
        # Children of a fork that was cut off after it was done have no key.
        keyed = [m for m in machines if m.key is not None]
        assert len({m.key for m in keyed}) == len(keyed)
        return {m.key: Seen(m.id, m.phase) for m in keyed}

    def whole(self) -> None:
        machines = self.runner.run(self.daemon.all())
        assert not self.host.leaks(machines)
        assert self.runner.run(self.daemon.open_operations()) == []
        assert all(m.reason for m in machines if m.phase == "failed")

    def write(self, key: str, mark: int) -> None:
        pass

    def read(self, key: str) -> int | None:
        return None

    def close(self) -> None:
        self.runner.run(self.daemon.stop())
        self.runner.run(self.host.close())
        self.runner.close()
        self.directory.cleanup()


class InMemoryHistories(Histories):
    def host(self) -> Host:
        return InMemory()


TestInMemory = InMemoryHistories.TestCase
TestInMemory.settings = settings(
    max_examples=4,
    stateful_step_count=20,
    suppress_health_check=list(HealthCheck),
)
