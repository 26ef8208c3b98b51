"""What a machine may ask of its daemon, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.engine.allowance import ALLOWABLE, NOTHING, Allowance
from roost.engine.machine import Machine
from roost.errors import CapacityError, InvalidRequestError, RoostError
from roost.prices import Prices
from roost.services.audit import Audit
from roost.services.inside import requests
from roost.services.inside.forks import Forks
from roost.services.inside.requests import Requests
from roost.services.inside.said import Answer, Asked, Body
from roost.services.models import ForkMachine, PatchMachine
from roost.services.places import Places
from roost.services.ports import Ports
from roost.services.usage import Usage
from roost.store.audit import Wanted
from roost.store.cursor import Cursors
from tests.unit.engine.kit import OTHER, TENANT, Daemon, daemon, small, until

KEY = "0123456789abcdef"


@dataclass
class Kit:
    d: Daemon
    ports: Ports
    audit: Audit
    requests: Requests

    async def machine(self, *allow: str, forks: int = 8, **changes: Any) -> Machine:
        inside = Allowance.of(allow, forks)
        return await self.d.machines.create(TENANT, small(inside=inside, **changes))

    async def ask(self, machine: Machine, method: str, path: str, **body: Any) -> Answer:
        raw = json.dumps(body).encode() if body else b""
        return await self.requests.answer(machine, Asked(method, path, raw, False))

    async def forked(self, machine: Machine, key: str = KEY) -> Answer:
        while (answer := await self.ask(machine, "GET", f"/v1/forks/{key}")).status == 202:
            pass
        return answer

    async def noted(self) -> list[tuple[str, str, int]]:
        found = await self.audit.query(Wanted(), 100, None)
        assert all(e.role == "machine" and e.key_id == e.machine_id for e in found.items)
        return [(e.action, e.machine_id or "", e.status) for e in reversed(found.items)]


@contextlib.asynccontextmanager
async def kit(tmp_path: Path, **options: Any) -> AsyncIterator[Kit]:
    async with daemon(tmp_path, **options) as d:
        where = Places("machines.example", "https://machines.example", False)
        secret = d.engine.identity.secret
        ports = Ports(d.store, d.machines, d.host.clock, secret, where)
        await ports.open()
        audit = Audit(d.store, d.host.clock, Cursors(secret), 30)
        await audit.open()
        usage = Usage(d.store, d.host.clock, Prices.read(""))
        asked = Requests(d.engine, d.machines, ports, usage, audit)
        try:
            yield Kit(d, ports, audit, asked)
        finally:
            await asked.close()
            await audit.close()


async def test_by_default_a_machine_looks_at_itself_and_nothing_else(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        m = await k.machine(key="user-42")
        assert m.inside == NOTHING
        status = await k.ask(m, "GET", "/v1/status")
        assert (status.status, status.data["machine_id"]) == (200, m.id)
        assert status.data["key"] == "user-42" and m.id in status.text
        used = await k.ask(m, "GET", "/v1/usage")
        assert used.status == 200 and used.data["total"]["cost"] == "0.000000"
        budget = await k.ask(m, "GET", "/v1/budget")
        assert budget.data["forks"] == {"limit": 0, "used": 0, "left": 0}
        assert (await k.ask(m, "GET", "/v1/ports")).data == {"items": []}
        for method, path, body in (
            ("POST", "/v1/ports", {"port": 80}),
            ("DELETE", "/v1/ports/80", {}),
            ("POST", "/v1/forks", {"key": KEY}),
            ("POST", "/v1/sleep", {}),
        ):
            refused = await k.ask(m, method, path, **body)
            assert (refused.status, refused.data["error_code"]) == (403, "FORBIDDEN"), path
        assert await k.noted() == [
            (f"inside_{name}", m.id, 403) for name in ("expose", "unexpose", "fork", "sleep")
        ]
        await k.ask(m, "POST", "/v1/sleep")  # again: not noted again
        assert len(await k.noted()) == 4
        assert (await k.d.machines.get(TENANT, m.id)).phase == "running"


async def test_ports(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        m = await k.machine("expose")
        made = await k.ask(m, "POST", "/v1/ports", port=8000)
        assert (made.status, made.data["visibility"]) == (201, "private")
        assert made.text == made.data["url"] == f"https://8000-{m.id}.machines.example"
        assert (await k.ask(m, "POST", "/v1/ports", port=8000)).status == 200  # it is so
        named = await k.ask(m, "POST", "/v1/ports", port=8000, name="shop")
        assert named.data["url"] == "https://shop.machines.example"
        public = await k.ask(m, "POST", "/v1/ports", port=8000, public=True)
        assert public.status == 403  # another right
        await k.d.machines.patch(TENANT, m.id, PatchMachine(allow_inside=["expose", "publish"]))
        public = await k.ask(m, "POST", "/v1/ports", port=8000, public=True)
        assert (public.status, public.data["visibility"]) == (200, "public")
        assert [p["port"] for p in (await k.ask(m, "GET", "/v1/ports")).data["items"]] == [8000]
        assert (await k.ask(m, "DELETE", "/v1/ports/8000")).status == 200
        assert (await k.ask(m, "DELETE", "/v1/ports/8000")).status == 404
        # What its owner shows it neither changes nor takes away.
        await k.ports.create(TENANT, m.id, 9000)
        assert (await k.ask(m, "POST", "/v1/ports", port=9000)).status == 200
        changed = await k.ask(m, "POST", "/v1/ports", port=9000, public=True)
        assert changed.data["error_code"] == "ALREADY_EXISTS"
        assert (await k.ask(m, "DELETE", "/v1/ports/9000")).status == 403
        assert not (await k.ports.get(TENANT, m.id, 9000)).public


async def test_names_are_few_and_one_that_is_refused_costs_none(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        m = await k.machine("expose")
        other = await k.d.machines.create(OTHER, small())
        await k.ports.create(OTHER, other.id, 80, name="taken")
        for name, code in (("taken", "ALREADY_EXISTS"), ("Not a name", "VALIDATION_FAILED")):
            said = await k.ask(m, "POST", "/v1/ports", port=80, name=name)
            assert said.data["error_code"] == code
        for number in range(requests.NAMES):
            said = await k.ask(m, "POST", "/v1/ports", port=80, name=f"name-{number}")
            assert said.status in (200, 201)
        said = await k.ask(m, "POST", "/v1/ports", port=80, name="one-more")
        assert said.data["details"] == {
            "quota": "inside_names", "limit": 8, "used": 8, "asked": 1,
        }  # fmt: skip


async def test_a_fork_is_heard_of_by_its_parent_and_its_copies(tmp_path: Path) -> None:
    async with kit(tmp_path, memory=True) as k:
        m = await k.machine("fork", "expose", forks=3, ttl_seconds=1000)
        stranger = await k.machine("fork")
        begun = await k.ask(m, "POST", "/v1/forks", key=KEY, count=2, name="copy")
        assert (begun.status, begun.data) == (202, {"key": KEY, "status": "running"})
        assert (await k.ask(m, "POST", "/v1/forks", key=KEY, count=2)).status == 202  # the same
        made = await k.forked(m)
        assert made.data["role"] == "parent" and len(made.data["children"]) == 2
        assert made.text.split("\n") == made.data["children"]
        for child_id in made.data["children"]:
            child = await k.d.machines.get(TENANT, child_id)
            told = await k.forked(child)
            assert told.data == {"role": "child", "machine_id": child_id, "parent": m.id}
            assert told.text == "child"
            # Nothing that the parent may, and no longer a life.
            assert child.inside.allow == () and child.name == "copy"
            assert child.ttl_seconds is not None and 900 < child.ttl_seconds <= 1000
            assert (await k.ask(child, "POST", "/v1/ports", port=80)).status == 403
        assert (await k.forked(stranger)).status == 404
        # The budget is of its life.
        more = await k.ask(m, "POST", "/v1/forks", key=KEY[::-1], count=2)
        assert more.data["error_code"] == "QUOTA_EXCEEDED"
        assert (await k.d.machines.get(TENANT, m.id)).inside.forked == 2
        assert ("inside_fork", m.id, 202) in await k.noted()


async def test_a_copy_inherits_only_where_that_is_said_and_never_to_fork(tmp_path: Path) -> None:
    async with kit(tmp_path, memory=True) as k:
        m = await k.machine("fork", "sleep")
        await k.ask(m, "POST", "/v1/forks", key=KEY, inherit=True)
        (child_id,) = (await k.forked(m)).data["children"]
        child = await k.d.machines.get(TENANT, child_id)
        assert (child.inside.allow, child.inside.forks) == (("sleep",), 0)
        assert (await k.ask(child, "POST", "/v1/forks", key=KEY)).status == 403
        # The owner's own forks and snapshots give nothing on, either.
        (other,) = await k.d.machines.fork(TENANT, m.id, ForkMachine())
        assert other.inside == NOTHING
        (told,) = await k.d.machines.fork(
            TENANT, m.id, ForkMachine(inside=Allowance.of(["fork"], 2))
        )
        assert (told.inside.allow, told.inside.forks) == (("fork",), 2)
        kept = await k.d.snapshots.create(TENANT, m.id)
        again = await k.d.machines.create(TENANT, small(snapshot=kept.id))
        assert again.inside == NOTHING


async def test_a_fork_that_fails_costs_nothing(tmp_path: Path) -> None:
    async with kit(tmp_path, memory=True) as k:
        m = await k.machine("fork", forks=2)
        k.d.host.storage.fail("begin_snapshot", CapacityError("full", code="STORAGE_FULL"))
        assert (await k.ask(m, "POST", "/v1/forks", key=KEY)).status == 202
        assert (await k.forked(m)).data["error_code"] == "STORAGE_FULL"
        await until(lambda: asyncio.sleep(0, True))
        assert (await k.d.machines.get(TENANT, m.id)).inside.forked == 0
        # Of its tenant's quotas, too.
        await k.d.quota(TENANT, machines=1)
        await k.ask(m, "POST", "/v1/forks", key=KEY[::-1])
        assert (await k.forked(m, KEY[::-1])).data["error_code"] == "QUOTA_EXCEEDED"
        assert len((await k.d.machines.list(TENANT)).items) == 1


async def test_many_forks_at_once_stay_within_the_budget(tmp_path: Path) -> None:
    async with kit(tmp_path, memory=True) as k:
        m = await k.machine("fork", forks=3)
        keys = [f"{number:016x}" for number in range(12)]
        said = await asyncio.gather(*(k.ask(m, "POST", "/v1/forks", key=key) for key in keys))
        begun = [key for key, each in zip(keys, said, strict=True) if each.status == 202]
        assert len(begun) == 3
        await asyncio.gather(*(k.forked(m, key) for key in begun))
        assert len((await k.d.machines.list(TENANT)).items) == 4


async def test_sleep_is_answered_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SLEEP_AFTER_S", 0.02)
    async with kit(tmp_path, memory=True) as k:
        m = await k.machine("sleep")
        assert (await k.ask(m, "POST", "/v1/sleep", tier="deeply")).status == 422
        said = await k.ask(m, "POST", "/v1/sleep", tier="stopped")
        assert said.status == 202
        assert (await k.d.machines.get(TENANT, m.id)).phase == "running"

        async def asleep() -> bool:
            return (await k.d.machines.get(TENANT, m.id)).phase == "sleeping"

        await until(asleep)
        assert (await k.d.machines.get(TENANT, m.id)).tier == "stopped"
        # What of it is still on the way wakes nothing.
        assert (await k.ask(m, "GET", "/v1/usage")).status == 409
        assert await asleep()


async def test_patches_keep_what_was_used(tmp_path: Path) -> None:
    async with kit(tmp_path, memory=True) as k:
        m = await k.machine("fork", forks=2)
        await k.ask(m, "POST", "/v1/forks", key=KEY)
        await k.forked(m)
        changed = await k.d.machines.patch(TENANT, m.id, PatchMachine(inside_forks=1))
        assert (changed.inside.allow, changed.inside.forked) == (("fork",), 1)
        assert (await k.ask(m, "POST", "/v1/forks", key=KEY[::-1])).status == 429
        for patch in (PatchMachine(allow_inside=["fly"]), PatchMachine(inside_forks=-1)):
            with pytest.raises(RoostError, match="inside"):
                await k.d.machines.patch(TENANT, m.id, patch)
        denied = await k.d.machines.patch(TENANT, m.id, PatchMachine(allow_inside=[]))
        assert denied.inside.allow == ()
        assert (await k.ask(m, "POST", "/v1/forks", key=KEY[::-1])).status == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", "/v1/machines", b"", 404),
        ("GET", "/v1/forks/../status", b"", 404),
        ("PATCH", "/v1/status", b"", 422),
        ("POST", "/v1/ports", b"{", 400),
        ("POST", "/v1/ports", b"[" * 16_000, 400),
        ("POST", "/v1/ports", b"[]", 400),
        ("POST", "/v1/ports", b'{"port": true}', 422),
        ("POST", "/v1/ports", b'{"port": 1e3}', 422),
        ("POST", "/v1/ports", b'{"port": 99999}', 422),
        ("POST", "/v1/ports", b'{"port": 2024}', 422),
        ("POST", "/v1/ports", b'{"port": 80, "machine_id": "x"}', 422),
        ("POST", "/v1/ports", b'{"port": 80, "name": "a\\u001b[31m"}', 422),
        ("POST", "/v1/ports", b"\xff\xfe{}", 400),
        ("DELETE", "/v1/ports/99999", b"", 404),
        ("POST", "/v1/forks", b'{"key": "../../x"}', 422),
        ("POST", "/v1/forks", b'{"key": "0123456789abcdef", "count": 101}', 422),
        ("POST", "/v1/forks", b'{"key": "0123456789abcdef", "count": 0}', 422),
        ("GET", "/v1/forks/0123456789abcdef", b"", 404),
    ],
)
async def test_nonsense(tmp_path: Path, method: str, path: str, body: bytes, status: int) -> None:
    async with kit(tmp_path) as k:
        m = await k.machine(*ALLOWABLE)
        said = await k.requests.answer(m, Asked(method, path, body, True))
        if path == "/v1/ports" and b"2024" in body:
            assert said.status in (201, 422)  # the agent's own port, whichever that is
        else:
            assert said.status == (405 if status == 422 and method == "PATCH" else status), said
        assert len((await k.d.machines.list(TENANT)).items) == 1


@given(st.binary(max_size=300))
def test_bodies_are_objects_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        body = Body(raw)
        assert isinstance(body.text("name"), str | None)
        assert isinstance(body.number("port", 1), int) and isinstance(body.flag("public"), bool)
        body.end()


async def test_a_database_that_is_away_is_an_answer(tmp_path: Path) -> None:
    async with kit(tmp_path) as k:
        m = await k.machine()

        async def broken(*_: Any) -> Any:
            raise RuntimeError("boom")

        k.d.machines.get = broken  # type: ignore[method-assign]
        said = await k.ask(m, "GET", "/v1/status")
        assert (said.status, said.data["error_code"]) == (500, "INTERNAL")
        assert "boom" not in json.dumps(said.data)


async def test_forks_are_forgotten(tmp_path: Path) -> None:
    now = 0.0
    forks = Forks(lambda: now)

    async def none() -> list[Machine]:
        return []

    for number in range(8):
        forks.check("m")
        await forks.begin("m", f"{number}", none())
    with pytest.raises(RoostError):
        forks.check("m")
    forks.check("other")
    now = 601.0
    forks.check("m")
    with pytest.raises(RoostError):
        await forks.look("m", "1")
