"""Lists of tools in the life of machines: at create, live, asleep, forked, handed out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from roost.engine.tools import OFF, Tools
from roost.errors import ConflictError, InvalidRequestError, NotFoundError
from roost.services import warm
from roost.services.models import ForkMachine
from roost.services.toolsets import Toolsets
from roost.store.schema import machine_events
from tests.unit.engine.kit import OTHER, TENANT, Daemon, daemon, small, until

ASK = Tools.read({"mode": "ask", "allow": [{"program": "git", "args": ["status", "..."]}]})
DENY = Tools.read("deny")


@pytest.fixture
async def d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    monkeypatch.setattr(warm, "REFILL_AFTER_S", 0.0)
    async with daemon(tmp_path) as running:
        yield running


async def test_it_is_the_machines_from_the_first_on(d: Daemon) -> None:
    made = await d.machines.create(TENANT, small(tools=ASK))
    assert made.tools == ASK
    live = await d.machines.awake(TENANT, made.id)
    assert live.machine.tools == ASK
    assert (await d.machines.create(TENANT, small())).tools == OFF


async def test_what_is_handed_out_warm_has_it(tmp_path: Path) -> None:
    async with daemon(tmp_path, warm_machines=1) as d:
        await d.machines.create(TENANT, small())
        await until(lambda: d.warm.count == 1)
        made = await d.machines.create(TENANT, small(tools=DENY))
        assert made.tools == DENY
        assert (await d.machines.awake(TENANT, made.id)).machine.tools == DENY


async def test_changed_while_it_runs_and_while_it_sleeps(d: Daemon) -> None:
    made = await d.machines.create(TENANT, small())
    toolsets = Toolsets(d.engine, d.machines)
    changed = await toolsets.replace(TENANT, made.id, ASK, made.revision)
    assert changed.revision == made.revision + 1
    assert (await d.machines.awake(TENANT, made.id)).machine.tools == ASK
    same = await toolsets.replace(TENANT, made.id, ASK)
    assert same.revision == changed.revision
    await d.machines.sleep(TENANT, made.id)
    await toolsets.replace(TENANT, made.id, DENY)
    assert (await d.machines.awake(TENANT, made.id)).machine.tools == DENY
    told = sa.select(machine_events.c.message).where(machine_events.c.event == "tools")
    lines = await d.store.read(lambda c: list(c.execute(told).scalars()))
    assert lines == ["ask beyond 1: git", "deny"]
    with pytest.raises(ConflictError):
        await toolsets.replace(TENANT, made.id, ASK, made.revision)
    with pytest.raises(NotFoundError):
        await toolsets.replace(OTHER, made.id, OFF)
    assert not await d.machines.over(made.id)
    await d.machines.delete(TENANT, made.id)
    assert await d.machines.over(made.id)
    with pytest.raises(ConflictError):
        await toolsets.replace(TENANT, made.id, ASK)


async def test_copies_have_their_parents(d: Daemon) -> None:
    made = await d.machines.create(TENANT, small(tools=ASK))
    for child in await d.machines.fork(TENANT, made.id, ForkMachine(2)):
        assert child.tools == ASK


async def test_an_unrestricted_machine_takes_none(d: Daemon) -> None:
    with pytest.raises(InvalidRequestError):
        await d.machines.create(TENANT, small(tools=ASK, unrestricted=True))
    made = await d.machines.create(TENANT, small(unrestricted=True))
    toolsets = Toolsets(d.engine, d.machines)
    with pytest.raises(ConflictError):
        await toolsets.replace(TENANT, made.id, DENY)
    assert (await toolsets.replace(TENANT, made.id, OFF)).revision == made.revision
