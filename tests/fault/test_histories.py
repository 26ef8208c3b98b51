"""Many callers, many faults, one machine each and some shared: whatever the order, it was a legal history."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from roost.drivers.interface import Exit
from roost.errors import CapacityError, MachineError, RoostError
from roost.services.models import PatchMachine
from tests.attack.record import case
from tests.unit.engine.kit import TENANT, Daemon, Host, small

pytestmark = case("F8")

METHODS = {
    "driver": ["start", "remove", "freeze", "thaw"],
    "network": ["take", "release"],
    "storage": ["clone", "delete"],
    "agents": ["wait_ready", "reseed", "shutdown"],
}


@pytest.mark.parametrize("seed", range(3))
async def test_any_history_ends_well(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    host = Host(tmp_path)
    d = await Daemon.start(host)
    keys = ["a", "b", "c"]
    heard: set[str] = set()

    def part(d: Daemon, name: str):  # type: ignore[no-untyped-def]
        return d.agents if name == "agents" else getattr(host, name)

    async def caller(d: Daemon, dice: random.Random) -> None:
        for _ in range(6):
            key = dice.choice(keys)
            found = (await d.machines.list(TENANT, key=key)).items
            what = dice.choice(
                ["ensure", "sleep", "wake", "awake", "delete", "patch", "die", "fault"]
            )
            try:
                if what == "ensure" or not found:
                    m, _ = await d.machines.ensure(TENANT, key, small())
                    assert m.key == key
                elif what == "sleep":
                    tier = dice.choice([None, "frozen", "stopped"])
                    slept = await d.machines.sleep(TENANT, found[0].id, tier)
                    assert slept.phase == "sleeping"
                    assert slept.tier is not None
                elif what == "wake":
                    assert (await d.machines.wake(TENANT, found[0].id)).phase == "running"
                elif what == "awake":
                    await d.machines.awake(TENANT, found[0].id)
                elif what == "delete":
                    gone = await d.machines.delete(TENANT, found[0].id)
                    assert gone.phase == "destroyed"
                elif what == "patch":
                    change = PatchMachine(name="n", memory_mib=dice.choice([64, 128]))
                    await d.machines.patch(TENANT, found[0].id, change)
                elif what == "die" and found[0].id in host.driver.machines:
                    host.driver.die(found[0].id, Exit("exited", 1))
                else:
                    name = dice.choice(list(METHODS))
                    kind = dice.choice([MachineError, CapacityError, OSError])
                    part(d, name).fail(dice.choice(METHODS[name]), kind("injected"))
            except RoostError as error:
                heard.add(error.code)
            await asyncio.sleep(dice.random() * 0.005)

    for round in range(2):
        callers = [caller(d, random.Random(dice.random())) for _ in range(8)]
        if round == 0:
            await asyncio.gather(*callers)
        else:  # and a daemon that is killed in the middle of it
            tasks = [asyncio.ensure_future(c) for c in callers]
            await asyncio.sleep(dice.random() * 0.2)
            await d.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for name in METHODS:
                target = part(d, name)
                getattr(target, "script", target).errors.clear()
            d = await Daemon.start(host)
        await asyncio.sleep(0.02)
        while (busy := d.engine.desk.busy()) and (future := d.engine.desk.last(busy[0])):
            await asyncio.gather(future, return_exceptions=True)
            await asyncio.sleep(0)
        machines = await d.all()
        stuck = {o["machine_id"] for o in await d.engine.stuck()}
        assert not [leak for leak in host.leaks(machines) if leak.split()[-1] not in stuck]
        for m in machines:
            assert m.phase in ("running", "sleeping", "failed", "destroyed"), m.phase
            assert (m.id in host.driver.machines) == (
                m.phase == "running" or m.frozen
            ) or m.id in stuck
            assert (d.engine.roster.peek(m.id) is not None) == (m.phase == "running")
        living = [m.key for m in machines if m.phase != "destroyed"]
        assert len(living) == len(set(living))
    for m in await d.all():
        await d.machines.delete(TENANT, m.id)
    assert not host.leaks(await d.all())
    assert await d.open_operations() == []
    assert "INTERNAL" not in heard
    await d.stop()
    await host.close()
