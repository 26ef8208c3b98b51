"""The daemon's start: every row means something on the host again, and nothing on the host is nobody's.

1. The network keeps the slots of the machines that have one; it sweeps the others.
2. Machines said to run are adopted where they live (pid, start time, boot id). Those that do not: after a reboot
   asleep, "host restarted", to start again with the next call; otherwise failed, "crashed", or, where they were
   frozen, asleep without their memory.
3. Open operations are finished or undone, each as its plan says; stuck ones are tried again.
4. Machines between two states with no operation are settled (the daemon died between two rows).
5. What no living machine owns is removed: drivers' debris, disks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from structlog.contextvars import bind_contextvars

from roost.drivers.interface import Isolation
from roost.engine import climbing, flows, keeping, metering
from roost.engine.journal import Context, Operation, Plan
from roost.engine.lifecycle import (
    HOLDING,
    DestroyAsked,
    Failed,
    Phase,
    Tier,
    WentDown,
)
from roost.engine.machine import OPEN, Machine, MemoryImage, capabilities_to_json
from roost.engine.transitions import advance
from roost.errors import RoostError, UnavailableError
from roost.store import machines, operations, snapshots

if TYPE_CHECKING:
    from roost.engine.engine import Engine

log = logging.getLogger(__name__)
AT_ONCE = 8
ADOPT_S = 45.0


def host_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def recover(engine: Engine) -> None:
    rows = await engine.store.read(machines.living)
    in_use = {row["id"]: row["slot_index"] for row in rows if row["slot_index"] is not None}
    await engine.parts.network.open(in_use)
    unfinished = {row["machine_id"] for row in await engine.store.read(operations.open_ones)}
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(machine_id: str) -> None:
        bind_contextvars(machine_id=machine_id)  # in a task of its own
        async with limit:
            try:
                await settle(engine, machine_id)
                now = await engine.load(machine_id)
                # Once it is adopted its end may come at any time, and is then the engine's.
                lives = now.phase == Phase.RUNNING or now.frozen
                if lives and not await _adopt(engine, now):
                    await settle(engine, machine_id)
            except Exception:
                log.exception("machine %s could not be recovered", machine_id)

    # Most sleep, and nobody was at work on them: those are as they should be.
    still = (Phase.SLEEPING, Phase.FAILED)
    doubtful = [
        row["id"]
        for row in rows
        if row["phase"] not in still or row["tier"] == Tier.FROZEN or row["id"] in unfinished
    ]
    await asyncio.gather(*(one(machine_id) for machine_id in doubtful))
    await _end_half_made_forks(engine)
    await _sweep(engine)


async def unstick(engine: Engine, machine_id: str) -> None:
    """Tries what is stuck on a machine again; raises what keeps it stuck."""
    rows = await engine.store.read(lambda c: operations.open_ones(c, machine_id, "stuck"))
    for row in rows:
        await _recover_one(engine, Operation.from_row(row))


async def adopted(parts: flows.Parts, machine: Machine) -> bool:
    """Whether it lives, and is the driver's and the network's again. One that its egress policy cannot be put upon is
    none: it must not run on."""
    handle = machine.handle
    if handle is None:
        return False
    alive = False
    try:
        async with asyncio.timeout(ADOPT_S):
            alive = await parts.rungs.driver(machine.driver).adopt(handle)
        if alive and machine.slot_index is not None:
            intercepts = await parts.boundary.intercepts(machine.id)
            try:
                await parts.network.reattach(
                    machine.id, machine.slot_index, machine.egress, intercepts
                )
            except UnavailableError as error:  # the rules hold; the rest the network tells later
                log.warning("names of %s are not proven yet: %s", machine.id, error)
    except (RoostError, OSError, TimeoutError) as error:
        log.warning("machine %s could not be adopted: %s", machine.id, error)
        alive = alive and machine.egress == OPEN
    return alive


async def _adopt(engine: Engine, machine: Machine) -> bool:
    handle = machine.handle
    if await adopted(engine.parts, machine):
        machine = await _up_to_date(engine, machine)
        await _as_told(engine, machine)
        config = await engine.store.read(lambda c: flows.config_of(c, machine.template_id))
        engine.enlist(machine, config)
        if machine.frozen:  # it cannot answer now
            engine.strangers.add(machine.id)
        else:
            engine.background(acquainted(engine, machine))
        return True
    rebooted = handle is not None and handle.boot_id != engine.boot_id()
    event = WentDown("host restarted") if rebooted else Failed("crashed", True)
    message = None if rebooted else "it could not be taken over when the daemon started"
    if machine.frozen:
        event = WentDown("host restarted" if rebooted else "its memory was lost")

    def fn(connection: sa.Connection) -> None:
        metering.forgive(connection, machine.id, engine.clock.now())
        advance(connection, machine.id, event, engine.clock.now(), None, message)
        engine.journal.open(connection, "reap", machine.id, step=1)

    await engine.store.write(fn)
    return False


async def _up_to_date(engine: Engine, machine: Machine) -> Machine:
    """A release before this one may have started it, which did not know that it can be frozen."""
    able = engine.rungs.capabilities(machine.driver)
    if able is None or able.freeze == machine.capabilities.freeze:
        return machine
    now = replace(machine.capabilities, freeze=able.freeze)
    values = {"capabilities": capabilities_to_json(now)}
    await engine.store.write(lambda c: machines.update(c, machine.id, values))
    return replace(machine, capabilities=now)


async def _as_told(engine: Engine, machine: Machine) -> None:
    """It stands still if, and only if, its row says so: the daemon before may have died in between."""
    assert machine.handle is not None
    driver = engine.rungs.driver(machine.driver)
    try:
        async with asyncio.timeout(ADOPT_S):
            if await driver.frozen(machine.handle) == machine.frozen:
                return
            if machine.frozen:
                await driver.freeze(machine.handle)
                return
            await driver.thaw(machine.handle)
            if machine.capabilities.own_clock:
                token = engine.identity.agent_token(machine.id, machine.generation)
                target = machine.handle.agent_target
                agent = engine.parts.agents.get(machine.id, target, token)
                await agent.set_clock(int(engine.clock.now().timestamp() * 1e9))
    except (RoostError, OSError, TimeoutError) as error:
        log.warning("machine %s does not stand as its row says: %s", machine.id, error)


async def acquainted(engine: Engine, machine: Machine) -> None:
    """An adopted machine's agent may be of another release: then every call to it says so, and so does its log. One
    that is silent is told by the calls that need it."""
    assert machine.handle is not None
    token = engine.identity.agent_token(machine.id, machine.generation)
    agent = engine.parts.agents.get(machine.id, machine.handle.agent_target, token)
    try:
        await agent.acquaint(engine.parts.agent_timeout_s)
    except RoostError as error:
        log.warning("the agent of %s: %s", machine.id, error)
        if "contract" in error.details:
            now, said = engine.clock.now(), error.message
            await engine.store.write(lambda c: machines.record(c, machine.id, now, "agent", said))


async def settle(engine: Engine, machine_id: str) -> None:
    """Every open operation of a machine, oldest first; then a state nobody is working on."""
    for row in await engine.store.read(lambda c: operations.open_ones(c, machine_id)):
        try:
            await _recover_one(engine, Operation.from_row(row))
        except RoostError as error:
            log.error("operation %s of %s stays stuck: %s", row["kind"], machine_id, error)
    machine = await engine.load(machine_id)
    if machine.phase in (Phase.SLEEPING, Phase.RUNNING, Phase.FAILED, Phase.DESTROYED):
        return
    destroying = machine.phase == Phase.DESTROYING
    event = DestroyAsked() if destroying else Failed("interrupted: the daemon stopped", True)

    def fn(connection: sa.Connection) -> Operation:
        advance(connection, machine_id, event, engine.clock.now())
        kind = "destroy" if destroying else "reap"
        return engine.journal.open(connection, kind, machine_id, step=1)

    await _recover_one(engine, await engine.store.write(fn))


async def _recover_one(engine: Engine, operation: Operation) -> None:
    machine = await engine.load(operation.machine_id)
    await engine.journal.recover(operation, plan_of(engine, operation, machine))


def plan_of(engine: Engine, operation: Operation, machine: Machine) -> Plan:
    if operation.kind in ("create", "wake"):
        fresh = operation.kind == "create" or bool(operation.context.get("fresh_disk"))
        start = flows.Start(engine.parts, machine, {}, fresh)
        return flows.create(start) if operation.kind == "create" else flows.wake(start)
    if operation.kind == "snapshot":
        snapshot_id = str(operation.context["snapshot_id"])
        return keeping.snapshot(keeping.Keep(engine.parts, machine, snapshot_id))
    if operation.kind == "rollback":
        snapshot_id = str(operation.context["snapshot_id"])
        return keeping.rollback(keeping.Rollback(engine.parts, machine, snapshot_id))
    if operation.kind == "climb":
        return climbing.plan(climbing.Climb(engine.parts, machine, ""), None)
    if operation.kind in ("freeze", "thaw"):
        still = flows.Still(engine.parts, machine)
        return flows.freeze(still) if operation.kind == "freeze" else flows.thaw(still)
    if operation.kind == "sleep":
        return flows.sleep(CutSleep(engine, machine, operation.context))
    end = flows.End(engine.parts, machine, hush=False)
    return {"reap": flows.reap, "destroy": flows.destroy}[operation.kind](end)


class CutSleep(flows.End):
    """A sleep in whose midst the daemon went: a machine that still runs is put to sleep as was asked; one that has
    ended may have left its memory whole, and where it did not, that is told."""

    def __init__(self, engine: Engine, machine: Machine, asked: Mapping[str, Any]) -> None:
        keep_memory = bool(asked.get("keep_memory")) and machine.capabilities.memory_snapshot
        frozen = bool(asked.get("frozen"))
        super().__init__(engine.parts, machine, keep_memory=keep_memory, frozen=frozen)
        # What was written before a reboot need not have reached the disk, nor the machine's own disk.
        self._same_boot = machine.handle is not None and machine.handle.boot_id == engine.boot_id()

    async def hush(self, context: Context) -> None:
        handle, machine = self.machine.handle, self.machine
        if handle is None:
            return
        driver = self.parts.rungs.driver(machine.driver)
        if await adopted(self.parts, machine):
            driver.use_token(
                handle, self.parts.identity.agent_token(machine.id, machine.generation)
            )
            await super().hush(context)
        elif self._keep_memory:
            kept = await driver.kept(self.parts.storage.memory(machine.id))
            if kept is not None and self._same_boot:
                image = MemoryImage(kept.manifest, (machine.id, machine.generation))
                context.data["memory_image"] = image.to_json()
            else:
                context.data["memory_lost"] = "the daemon and the machine ended while it was saved"


async def _end_half_made_forks(engine: Engine) -> None:
    """A fork that was cut off made no children, also where some were ready: nobody was told of them, and what others
    would start from need not have reached the disk. Nor does anything need its snapshot any more; one that came to its
    end has taken that away before it answered."""

    def fn(connection: sa.Connection) -> list[str]:
        made = snapshots.of_forks(connection, whole=False)
        return [m for s in made for m in snapshots.children(connection, s)]

    for machine_id in await engine.store.read(fn):
        await _quietly(engine.destroy(machine_id))
    await _quietly(engine.collect())


async def _sweep(engine: Engine) -> None:
    rows = await engine.store.read(machines.living)
    living = {row["id"] for row in rows}
    disks = {row["id"] for row in rows if row["disk_ready"] or row["phase"] != Phase.FAILED}
    holding = {r["id"] for r in rows if r["phase"] in HOLDING or r["tier"] == Tier.FROZEN}
    for name, driver in engine.rungs.drivers.items():
        for machine_id in await driver.list_ids() - holding:
            log.warning("sweeping what the driver %s has of %s", name, machine_id)
            await _quietly(driver.remove(machine_id))
    for machine_id in await engine.parts.storage.list_disks() - disks:
        owner = "a failed machine" if machine_id in living else "no machine"
        log.warning("sweeping the disk %s of %s", machine_id, owner)
        await _quietly(engine.parts.storage.delete(machine_id))
    remembered = {
        row["id"]
        for row in rows
        if row["memory_image"] is not None and row["memory_image"].get("snapshot_id") is None
    }
    for machine_id in await engine.parts.storage.list_memory() - remembered:
        await _quietly(engine.parts.storage.delete_memory(machine_id))
    directories = {row["id"] for row in rows if row["isolation"] == Isolation.WORKSPACE.value}
    for machine_id in (await engine.parts.storage.list_homes() & living) - directories:
        log.warning("sweeping the directory that %s had before it was promoted", machine_id)
        await _quietly(engine.parts.storage.delete_home(machine_id))
    brought = {row["id"] for row in rows if row["brings_tree"]}
    for machine_id in await engine.parts.storage.list_trees() - brought:
        await _quietly(engine.parts.storage.delete_tree(machine_id))
    kept = await engine.store.read(snapshots.ids)
    for snapshot_id in await engine.parts.storage.list_snapshots() - kept:
        log.warning("sweeping the snapshot %s of no row", snapshot_id)
        await _quietly(engine.parts.storage.delete_snapshot(snapshot_id))


async def _quietly(work: Any) -> None:
    try:
        await work
    except Exception:
        log.exception("debris could not be swept; the next start tries again")
