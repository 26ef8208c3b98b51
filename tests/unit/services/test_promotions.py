"""One machine in another's place, and who came of whom, with everything real but the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roost.clock import FakeClock
from roost.engine.engine import REMEMBER_DESTROYED, Engine
from roost.engine.machine import Machine
from roost.errors import ConflictError, LimitError, NotFoundError, RoostError
from roost.services.keys import Keys
from roost.services.models import CreateMachine, ForkMachine, PatchMachine, Role
from roost.services.places import Places
from roost.services.ports import PORTS, Ports
from roost.services.promotions import Promotions
from roost.services.trees import Trees
from roost.store import lineage
from tests.unit.engine.kit import OTHER, TENANT, Daemon, Host, small


@dataclass
class Kit:
    d: Daemon
    keys: Keys
    ports: Ports
    promotions: Promotions
    trees: Trees

    @classmethod
    async def start(cls, d: Daemon) -> Kit:
        keys = Keys(d.store, d.host.clock, d.host.directory)
        places = Places("localhost", "http://localhost:1")
        ports = Ports(d.store, d.machines, d.host.clock, b"secret", places)
        await ports.open()
        promotions = Promotions(d.engine, d.machines, ports, keys, d.templates)
        return cls(d, keys, ports, promotions, Trees(d.store, d.machines))

    async def family(self, **changes: object) -> tuple[Machine, Machine]:
        parent = await self.d.machines.create(TENANT, small(**{"key": "user-42", **changes}))
        (child,) = await self.d.machines.fork(TENANT, parent.id, ForkMachine())
        return parent, child

    async def now(self, machine: Machine) -> Machine:
        return await self.d.engine.load(machine.id)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path)
    yield host
    await host.close()


@pytest.fixture
async def kit(host: Host) -> AsyncIterator[Kit]:
    d = await Daemon.start(host)
    yield await Kit.start(d)
    await d.stop()


async def test_the_child_takes_key_name_end_ports_links_and_tokens(kit: Kit) -> None:
    parent, child = await kit.family(name="mine", ttl_seconds=3600, expiry="sleep")
    await kit.d.machines.patch(TENANT, child.id, PatchMachine(expiry="destroy"))
    shown = await kit.ports.create(TENANT, parent.id, 8080, visibility="private")
    named = await kit.ports.create(TENANT, parent.id, 3000, name="site")
    theirs = await kit.ports.create(TENANT, child.id, 8080)
    own = await kit.ports.create(TENANT, child.id, 9000)
    link = await kit.ports.link(TENANT, parent.id, 8080, 60)
    token = link.url.partition("roost_token=")[2]
    preview = await kit.keys.issue(TENANT, parent.id, Role.PREVIEW, port=8080)
    machine_token = await kit.keys.issue(TENANT, parent.id, Role.MACHINE)
    ended: list[str] = []
    kit.ports.on_end(ended.append)
    version = kit.ports.version

    promoted = await kit.promotions.promote(TENANT, child.id)

    before = await kit.now(parent)
    assert (promoted.key, promoted.name, promoted.ttl_seconds) == ("user-42", "mine", 3600)
    assert (promoted.expires_at, promoted.expiry) == (parent.expires_at, "sleep")
    assert promoted.replaces == parent.id and promoted.parent_id == parent.id
    assert (before.key, before.name, before.phase) == (None, None, "running")
    found = kit.ports.at(f"8080-{parent.id}")
    assert found is not None and (found.id, found.machine_id) == (shown.id, child.id)
    assert kit.ports.url(found) == f"http://8080-{parent.id}.localhost:1"
    assert kit.ports.link_expires(found, token) is not None
    assert kit.ports.at("site") is not None and kit.ports.at("site").machine_id == child.id  # type: ignore[union-attr]
    assert kit.ports.at(f"8080-{child.id}") is None
    assert kit.ports.at(f"9000-{child.id}") == own
    assert {shown.id, named.id, theirs.id} == set(ended) and own.id not in ended
    assert kit.ports.version > version
    who = await kit.keys.authenticate(str(preview.secret))
    assert (who.machine_id, who.port) == (child.id, 8080)
    assert (await kit.keys.authenticate(str(machine_token.secret))).machine_id == parent.id
    assert [p.port for p in await kit.ports.list(TENANT, child.id)] == [3000, 8080, 9000]
    assert await kit.ports.list(TENANT, parent.id) == []
    assert (await kit.d.machines.ensure(TENANT, "user-42", CreateMachine()))[0].id == child.id
    told = [e.event for e in await kit.d.machines.events(TENANT, child.id)]
    assert told[-1] == "promoted"
    assert [e.event for e in await kit.d.machines.events(TENANT, parent.id)][-1] == "replaced"
    # A host once given stays where it went.
    with pytest.raises(ConflictError):
        await kit.ports.create(TENANT, parent.id, 8080)


async def test_once_more_changes_nothing_and_there_is_a_way_back(kit: Kit) -> None:
    parent, child = await kit.family()
    await kit.ports.create(TENANT, parent.id, 8080)
    once = await kit.promotions.promote(TENANT, child.id, parent.id)
    again = await kit.promotions.promote(TENANT, child.id, parent.id)
    assert again.revision == once.revision
    back = await kit.promotions.promote(TENANT, parent.id, child.id)
    now = await kit.now(child)
    assert (back.key, now.key, now.replaces) == ("user-42", None, None)
    assert kit.ports.at(f"8080-{parent.id}").machine_id == parent.id  # type: ignore[union-attr]
    forth = await kit.promotions.promote(TENANT, child.id)
    assert forth.key == "user-42"


async def test_the_one_replaced_can_be_destroyed_with_it(kit: Kit) -> None:
    parent, child = await kit.family()
    await kit.promotions.promote(TENANT, child.id, destroy=True)
    gone = await kit.d.engine.settled(parent.id)
    assert gone.phase == "destroyed"
    assert (await kit.promotions.promote(TENANT, child.id, destroy=True)).key == "user-42"
    assert (await kit.now(child)).key == "user-42"
    assert not kit.d.host.leaks(await kit.d.all())


async def test_what_cannot_take_a_place(kit: Kit) -> None:
    parent, child = await kit.family()
    stranger = await kit.d.machines.create(TENANT, small())
    theirs = await kit.d.machines.create(OTHER, small())
    (sibling,) = await kit.d.machines.fork(TENANT, parent.id, ForkMachine())
    for machine, onto, code in (
        (stranger, parent, "INVALID_STATE"),
        (sibling, child, "INVALID_STATE"),
        (child, child, "INVALID_STATE"),
        (stranger, None, "VALIDATION_FAILED"),
        (child, theirs, "MACHINE_NOT_FOUND"),
        (theirs, parent, "MACHINE_NOT_FOUND"),
    ):
        with pytest.raises(RoostError) as found:
            async with asyncio.timeout(30):
                await kit.promotions.promote(TENANT, machine.id, None if onto is None else onto.id)
        assert found.value.code == code
    made = await kit.d.snapshots.create(TENANT, parent.id)
    keyed = await kit.d.machines.create(TENANT, CreateMachine(snapshot=made.id, key="another"))
    assert (keyed.parent_id, keyed.from_snapshot_id) == (parent.id, made.id)
    with pytest.raises(ConflictError):
        await kit.promotions.promote(TENANT, keyed.id)
    await kit.d.machines.delete(TENANT, child.id)
    with pytest.raises(ConflictError):
        await kit.promotions.promote(TENANT, child.id)
    await kit.d.machines.delete(TENANT, parent.id)
    with pytest.raises(ConflictError):
        await kit.promotions.promote(TENANT, sibling.id)
    assert (await kit.now(sibling)).key is None


async def test_it_takes_everything_or_nothing(kit: Kit) -> None:
    parent, child = await kit.family()
    for port in range(1, PORTS + 1):
        await kit.ports.create(TENANT, child.id, port)
    await kit.ports.create(TENANT, parent.id, 9000)
    with pytest.raises(LimitError):
        await kit.promotions.promote(TENANT, child.id)
    assert (await kit.now(parent)).key == "user-42"
    assert kit.ports.at(f"9000-{parent.id}").machine_id == parent.id  # type: ignore[union-attr]


@pytest.mark.parametrize("killed", ["before", "after"])
async def test_a_daemon_killed_in_between(
    host: Host, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the transaction nothing is done, after it everything, the destroying included."""
    d = await Daemon.start(host)
    kit = await Kit.start(d)
    parent, child = await kit.family()
    await kit.ports.create(TENANT, parent.id, 8080)
    preview = await kit.keys.issue(TENANT, parent.id, Role.PREVIEW, port=8080)

    reached = asyncio.Event()

    async def dead(*_: object, **__: object) -> Machine:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    if killed == "after":
        monkeypatch.setattr(Engine, "condemned", dead)
    else:
        monkeypatch.setattr(type(d.store), "write", dead)
    asked = asyncio.ensure_future(kit.promotions.promote(TENANT, child.id, destroy=True))
    await asyncio.wait_for(reached.wait(), 30)
    await d.kill()
    asked.cancel()
    monkeypatch.undo()

    d = await Daemon.start(host, build=False)
    kit = await Kit.start(d)
    mine, before = await kit.now(child), await kit.now(parent)
    holder = child.id if killed == "after" else parent.id
    assert {mine.key, before.key} == {"user-42", None}
    assert kit.ports.at(f"8080-{parent.id}").machine_id == holder  # type: ignore[union-attr]
    assert (await kit.keys.authenticate(str(preview.secret))).machine_id == holder
    assert before.desired_state == ("destroyed" if killed == "after" else "running")
    again = await kit.promotions.promote(TENANT, child.id, destroy=True)
    assert again.key == "user-42"
    if (last := d.engine.desk.last(parent.id)) is not None:
        await last
    assert (await kit.now(parent)).phase == "destroyed"
    assert not await d.open_operations()
    assert not host.leaks(await d.all())
    await d.stop()


async def test_two_at_once_have_one_order(kit: Kit) -> None:
    """Each other's lines are never waited for in a circle."""
    parent, child = await kit.family()
    pairs = [(child.id, parent.id), (parent.id, child.id)] * 3
    async with asyncio.timeout(30):
        await asyncio.gather(*(kit.promotions.promote(TENANT, *each) for each in pairs))
    keys = {(await kit.now(each)).key for each in (parent, child)}
    assert keys == {"user-42", None}


async def test_a_child_of_a_held_snapshot_is_a_fork_of_that_instant(kit: Kit) -> None:
    parent = await kit.d.machines.create(TENANT, small(labels={"a": "b"}))
    made = await kit.d.snapshots.create(TENANT, parent.id)
    captures = kit.d.host.driver.calls["capture"]
    for _ in range(3):
        (child,) = await kit.d.machines.fork(TENANT, parent.id, ForkMachine(snapshot=made.id))
        assert (child.labels, child.parent_id) == ({"a": "b"}, parent.id)
        assert child.from_snapshot_id == made.id
    assert kit.d.host.driver.calls["capture"] == captures
    other = await kit.d.machines.create(TENANT, small())
    theirs = await kit.d.snapshots.create(TENANT, other.id)
    for which, code in ((theirs.id, "INVALID_STATE"), ("nope", "SNAPSHOT_NOT_FOUND")):
        with pytest.raises(RoostError) as found:
            await kit.d.machines.fork(TENANT, parent.id, ForkMachine(snapshot=which))
        assert found.value.code == code


async def test_a_tree_hangs_together_after_its_middle_is_gone(tmp_path: Path) -> None:
    clock = FakeClock()
    host = Host(tmp_path, clock)
    d = await Daemon.start(host)
    kit = await Kit.start(d)
    try:
        root, middle = await kit.family(name="root")
        (leaf,) = await d.machines.fork(TENANT, middle.id, ForkMachine())
        made = await d.snapshots.create(TENANT, leaf.id, "kept")
        alone = await d.machines.create(TENANT, small())
        await d.machines.delete(TENANT, middle.id)
        assert (await d.machines.list(TENANT, parent=middle.id)).items[0].id == leaf.id

        def shown(tree: object) -> dict[str, str | None]:
            return {n.id: n.parent_id for n in tree.nodes}  # type: ignore[attr-defined]

        line = {middle.id: root.id, leaf.id: middle.id, made.id: leaf.id, root.id: None}
        for _ in range(2):
            assert shown(await kit.trees.tree(TENANT, leaf.id)) == line
            assert shown(await kit.trees.tree(TENANT)) == line | {alone.id: None}
            assert (await kit.trees.tree(OTHER)).nodes == []
            with pytest.raises(NotFoundError):
                await kit.trees.tree(OTHER, leaf.id)
            await clock.advance(REMEMBER_DESTROYED.total_seconds() + 1)
            await d.engine.forget()
        phases = {n.id: n.phase for n in (await kit.trees.tree(TENANT)).nodes}
        assert phases[middle.id] == "destroyed" and phases[made.id] is None
        await d.machines.delete(TENANT, leaf.id)
        await d.snapshots.delete(TENANT, "kept")
        await clock.advance(REMEMBER_DESTROYED.total_seconds() + 1)
        for _ in range(3):
            await d.engine.forget()
        assert shown(await kit.trees.tree(TENANT)) == {root.id: None, alone.id: None}
        _, lines, _ = await d.store.read(lambda c: lineage.of_tenant(c, TENANT, 10))
        assert lines == []
    finally:
        await d.stop()
        await host.close()
