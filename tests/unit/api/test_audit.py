"""The audit log: every mutation once, nothing secret, durable, to each what is theirs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from roost.clock import SystemClock
from roost.errors import UnavailableError
from roost.services import audit as service
from roost.services.audit import Audit
from roost.services.models import Role
from roost.store import Store
from roost.store import audit as rows
from roost.store.audit import Wanted
from roost.store.cursor import Cursors
from tests.unit.api.kit import OTHER, TENANT, Served, events
from tests.unit.api.test_gate import ENDLESS, call, routes

SECRET = "hunter2-hunter2"


async def log(http: httpx.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    answer = await http.get("/v1/audit", params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def test_who_did_what_to_what_and_how_it_ended(bare: Served) -> None:
    made = await bare.http.post("/v1/machines", json={"name": "n", "env": {"TOKEN": SECRET}})
    mid = made.json()["machine_id"]
    await bare.http.get(f"/v1/machines/{mid}")
    await bare.http.patch(f"/v1/machines/{mid}", json={"name": 5})
    await bare.http.post("/v1/machines", json={"template": "no"})
    await bare.http.put("/v1/machines/by-key/user-1", json={})
    await bare.http.delete(f"/v1/machines/{mid}", params={"wait": "true", "x": SECRET})
    await bare.http.post("/v1/nothing", json={})
    assert (await bare.http.put("/v1/machines", json={})).status_code == 405
    entries = await log(bare.http)
    assert [(e["action"], e["status"], e["error_code"]) for e in reversed(entries)] == [
        ("machines_create", 201, None),
        ("machines_patch", 422, "VALIDATION_FAILED"),
        ("machines_create", 404, "TEMPLATE_NOT_FOUND"),
        ("machines_ensure", 201, None),
        ("machines_delete", 200, None),
    ]
    first = entries[-1]
    who = await bare.keys.authenticate(bare.key)
    assert first == {
        "id": first["id"],
        "at": first["at"],
        "tenant_id": TENANT,
        "key_id": who.key_id,
        "role": "tenant",
        "action": "machines_create",
        "method": "POST",
        "path": "/v1/machines",
        "machine_id": mid,
        "peer": "127.0.0.1",
        "status": 201,
        "error_code": None,
        "request_id": made.headers["x-request-id"],
    }
    assert entries[1]["machine_id"] in bare.machines.machines != mid
    assert SECRET not in json.dumps(entries) and bare.key not in json.dumps(entries)
    document = bare.app.openapi()["paths"]
    known = {o["operationId"] for path in document.values() for o in path.values()}
    assert {e["action"] for e in entries} <= known


async def test_every_mutation_is_in_it_once(bare: Served) -> None:
    """Of every route, also where it is refused; and no read is."""
    asked = []
    for method, path in routes(bare):
        if method == "get" and path.endswith(ENDLESS):
            continue
        for key, role in ((bare.admin, "admin"), (bare.key, "tenant")):
            async with bare.client(key) as http:
                answer = await call(http, method, path)
                asked.append((method, path, role, answer))
    entries = {}
    for entry in await log_all(bare):
        assert entry["request_id"] not in entries
        entries[entry["request_id"]] = entry
    document = bare.app.openapi()["paths"]
    for method, path, role, answer in asked:
        entry = entries.pop(answer.headers["x-request-id"], None)
        if method in ("get", "head"):
            assert entry is None, (method, path)
            continue
        assert entry is not None, (method, path, role)
        assert entry["action"] == document[path][method]["operationId"]
        assert (entry["status"], entry["role"]) == (answer.status_code, role)
        assert (entry["error_code"] is None) == (answer.status_code < 400)
        if "{machine_id}" in path:
            assert entry["machine_id"] == "a" * 26
    assert not entries


async def log_all(served: Served) -> list[dict[str, Any]]:
    async with served.client(served.admin) as http:
        found, cursor = [], None
        while True:
            params = {"limit": 7, **({"cursor": cursor} if cursor else {})}
            page = (await http.get("/v1/audit", params=params)).json()
            found += page["items"]
            if (cursor := page["next_cursor"]) is None:
                return found


async def test_to_each_what_is_theirs(bare: Served) -> None:
    async with bare.client(bare.other_key) as theirs, bare.client(bare.admin) as admin:
        mid = (await theirs.post("/v1/machines", json={})).json()["machine_id"]
        await bare.http.delete(f"/v1/machines/{mid}")  # of another: missing
        mine = await log(bare.http)
        assert [(e["tenant_id"], e["status"]) for e in mine] == [(TENANT, 404)]
        assert [e["action"] for e in await log(theirs)] == ["machines_create"]
        assert len(await log(admin)) == 2
        assert len(await log(admin, machine_id=mid)) == 2
        assert len(await log(admin, tenant_id=OTHER)) == 1
        assert await log(bare.http, tenant_id=OTHER) == []
        assert await log(bare.http, machine_id=mid, action="machines_create") == []
        reader = await bare.add_key(TENANT, Role.READ_ONLY)
        async with bare.client(reader) as http:
            assert len(await log(http)) == 1
            assert (await http.post("/v1/machines", json={})).status_code == 403
        denied = (await log(bare.http))[0]
        assert (denied["action"], denied["error_code"]) == ("machines_create", "FORBIDDEN")
        assert denied["role"] == "read_only"


async def test_asked_for_by_time_key_and_page(bare: Served) -> None:
    for _ in range(5):
        await bare.http.post("/v1/machines", json={})
    every = await log(bare.http)
    third = every[2]["at"]
    assert await log(bare.http, since=third, limit=500) == [e for e in every if e["at"] >= third]
    assert await log(bare.http, until=third) == [e for e in every if e["at"] < third]
    assert await log(bare.http, key_id=every[0]["key_id"]) == every
    assert await log(bare.http, key_id="a" * 26) == []
    page = (await bare.http.get("/v1/audit", params={"limit": 2})).json()
    assert page["items"] == every[:2]
    rest = await bare.http.get("/v1/audit", params={"limit": 3, "cursor": page["next_cursor"]})
    assert rest.json() == {"items": every[2:], "next_cursor": None}
    for params in (
        {"cursor": page["next_cursor"], "action": "machines_create"},
        {"cursor": "nonsense"},
        {"since": "yesterday"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"limit": 0},
    ):
        assert (await bare.http.get("/v1/audit", params=params)).status_code == 422, params


async def test_a_replay_and_a_limit_are_no_mutations(bare: Served) -> None:
    headers = {"idempotency-key": "once"}
    for _ in range(3):
        await bare.http.post("/v1/machines", json={}, headers=headers)
    bare.rates.set(TENANT, {"requests_per_second": 0.01, "request_burst": 1})
    codes = [(await bare.http.post("/v1/machines", json={})).status_code for _ in range(3)]
    assert codes == [201, 429, 429]
    assert len(await log_all(bare)) == 2


async def test_what_changes_the_platform_is_there_before_the_answer(
    bare: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from the database itself, as after a kill."""
    monkeypatch.setattr(service, "FLUSH_S", 3600.0)
    count = sa.select(sa.func.count()).select_from(sa.table("audit"))
    for n in range(1, 4):
        await bare.http.post("/v1/keys", json={"name": "k"})
        assert await bare.store.read(lambda c: c.execute(count).scalar()) == n


async def test_what_happens_in_machines_is_there_soon_and_at_a_stop(
    served: Served, tmp_path: Path
) -> None:
    mid = served.machine()
    for _ in range(3):
        answer = await served.http.post(
            f"/v1/machines/{mid}/executions", json={"command": f"echo {SECRET}"}
        )
        assert answer.status_code == 200
    await served.http.put(
        f"/v1/machines/{mid}/files", params={"path": str(tmp_path / SECRET)}, content=b"x"
    )
    wanted = Wanted(machine_id=mid)
    async with asyncio.timeout(10):
        while True:
            found = await served.store.read(lambda c: rows.before(c, wanted, None, 10))
            if len(found) == 4:
                break
            await asyncio.sleep(0.02)
    assert [row["action"] for row in found] == ["files_write"] + ["executions_start"] * 3
    assert SECRET not in str(found)


async def test_a_stop_loses_nothing_and_a_locked_database_delays(tmp_path: Path) -> None:
    from roost.clock import FakeClock

    clock = FakeClock()
    store = Store.open(tmp_path / "a.db", clock)
    audit = Audit(store, clock, Cursors(b"s"), days=90)
    await audit.open()
    entry = {
        "tenant_id": "t", "key_id": "k", "role": "tenant", "action": "a", "method": "POST",
        "path": "/", "machine_id": None, "peer": None, "status": 200, "error_code": None,
        "request_id": "r",
    }  # fmt: skip
    write = store.write

    async def locked(fn: Any) -> Any:
        raise UnavailableError("locked", code="DATABASE_UNAVAILABLE")

    store.write = locked  # type: ignore[method-assign]
    await audit.record(entry, lasting=True)  # the answer is not held back for ever
    await audit.record(entry, lasting=False)
    with pytest.raises(UnavailableError):
        await audit.query(Wanted(), 10, None)
    store.write = write  # type: ignore[method-assign]
    await audit.record(entry, lasting=False)
    await audit.close()
    found = await store.read(lambda c: rows.before(c, Wanted(), None, 10))
    assert len(found) == 3
    # Bounded by age, and ids never come back.
    await clock.advance(timedelta(days=91).total_seconds())
    assert await audit.tidy() == 3
    await audit.record(entry, lasting=True)
    (left,) = await store.read(lambda c: rows.before(c, Wanted(), None, 10))
    assert left["id"] == found[0]["id"] + 1
    assert await audit.tidy() == 0
    await store.close()


def an_entry(**values: Any) -> dict[str, Any]:
    entry = {
        "tenant_id": "t", "key_id": "k", "role": "tenant", "action": "a", "method": "POST",
        "path": "/", "machine_id": None, "peer": None, "status": 200, "error_code": None,
        "request_id": "r",
    }  # fmt: skip
    return {**entry, **values}


async def test_who_follows_holds_up_nobody(tmp_path: Path) -> None:
    """Nothing that changes something waits for a follower's look, nor one follower for another's."""
    store = Store.open(tmp_path / "a.db", SystemClock())
    audit = Audit(store, store.clock, Cursors(b"s"), days=90)
    read, looking, go = store.read, asyncio.Event(), asyncio.Event()

    async def slow(fn: Any) -> Any:
        looking.set()
        await go.wait()
        return await read(fn)

    store.read = slow  # type: ignore[method-assign]
    followed = [audit.follow(Wanted(tenant="t"), 0) for _ in range(2)]
    heard = [asyncio.create_task(anext(each)) for each in followed]
    await looking.wait()
    async with asyncio.timeout(10):
        await audit.record(an_entry(), lasting=True)
        go.set()
        assert [(await each).id for each in heard] == [1, 1]
        heard = [asyncio.create_task(anext(each)) for each in followed]
        await asyncio.sleep(0.1)
        await audit.record(an_entry(tenant_id="other"), lasting=True)
        await audit.record(an_entry(), lasting=True)
        assert [(await each).id for each in heard] == [3, 3]
    for each in followed:
        await each.aclose()
    assert audit._followers == set()
    await store.close()


async def test_who_follows_looks_at_so_many_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SCAN", 10)
    monkeypatch.setattr(service, "PIECE", 3)
    store = Store.open(tmp_path / "a.db", SystemClock())
    audit = Audit(store, store.clock, Cursors(b"s"), days=90)
    at = store.clock.now()
    entries = [an_entry(at=at, tenant_id="other") for _ in range(35)]
    entries += [an_entry(at=at) for _ in range(7)] + entries[:30] + [an_entry(at=at)]
    await store.write(lambda c: rows.insert(c, entries))
    looks: list[tuple[int, int]] = []
    after = service._after

    def counted(wanted: Wanted, id: int, connection: sa.Connection) -> Any:
        found, looked = after(wanted, id, connection)
        looks.append((len(found), looked - id))
        return found, looked

    monkeypatch.setattr(service, "_after", counted)
    async with asyncio.timeout(10), contextlib.aclosing(audit.follow(Wanted("t"), 0)) as followed:
        assert [(await anext(followed)).id for _ in range(8)] == [*range(36, 43), 73]
    assert len(looks) >= 8
    assert all(found <= 3 and looked <= 10 for found, looked in looks)
    await store.close()


async def test_followed(bare: Served) -> None:
    await bare.http.post("/v1/machines", json={"name": "before"})
    (first,) = await log(bare.http)

    begun = asyncio.Semaphore(0)

    async def follow(key: str, number: int, **kw: Any) -> list[Any]:
        found = []
        async with bare.client(key) as http:
            async with http.stream("GET", "/v1/audit/stream", **kw) as answer:
                assert answer.status_code == 200
                begun.release()
                async for name, data in events(answer.aiter_lines()):
                    assert name == "entry"
                    found.append(data)
                    if len(found) == number:
                        break
        return found

    live = asyncio.create_task(follow(bare.key, 2))
    every = asyncio.create_task(follow(bare.admin, 3))
    async with asyncio.timeout(10):  # what is written from here on is theirs
        await begun.acquire()
        await begun.acquire()
    again = {"last-event-id": str(first["id"] - 1)}
    assert await asyncio.wait_for(follow(bare.key, 1, headers=again), 10) == [first]
    async with bare.client(bare.other_key) as theirs:
        await bare.http.post("/v1/machines", json={})
        await theirs.post("/v1/machines", json={})
        await bare.http.post("/v1/keys", json={"name": "x"})
    mine = await asyncio.wait_for(live, 10)
    assert [e["action"] for e in mine] == ["machines_create", "keys_create_key"]
    assert {e["tenant_id"] for e in mine} == {TENANT}
    found = await asyncio.wait_for(every, 10)
    assert [e["tenant_id"] for e in found] == [TENANT, OTHER, TENANT]
    assert [e for e in found if e["tenant_id"] == TENANT] == mine
    missed = {"last-event-id": str(mine[0]["id"])}
    assert await asyncio.wait_for(follow(bare.key, 1, headers=missed), 10) == mine[1:]
