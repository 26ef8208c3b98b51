"""Idempotency, executions, cursors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost import ids
from roost.clock import FakeClock
from roost.errors import InvalidRequestError
from roost.store import Store, executions, idempotency
from roost.store.cursor import Cursors
from roost.store.executions import ExecutionRow, Executions
from roost.store.idempotency import Idempotency, InProgress, Mismatch, New, Replay

CLOCK = FakeClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store.open(tmp_path / "a.db", FakeClock())
    yield opened
    await opened.close()


async def test_one_of_many_claims_is_new(store: Store) -> None:
    keys = Idempotency(store)
    claims = await asyncio.gather(*(keys.claim("t", "k", "a" * 64) for _ in range(20)))
    assert sorted(type(c).__name__ for c in claims) == ["InProgress"] * 19 + ["New"]
    assert isinstance(await keys.claim("t", "k", "b" * 64), Mismatch)
    assert isinstance(await keys.claim("other", "k", "b" * 64), New)
    await keys.finish("t", "k", 201, {"etag": "1"}, b"\x00body")
    assert await keys.claim("t", "k", "a" * 64) == Replay(201, {"etag": "1"}, b"\x00body")
    await keys.abandon("t", "k")  # an answered one stays
    assert isinstance(await keys.claim("t", "k", "a" * 64), Replay)
    await keys.abandon("other", "k")
    assert isinstance(await keys.claim("other", "k", "c" * 64), New)
    assert await keys.recover() == 1
    assert isinstance(await keys.claim("other", "k", "c" * 64), New)


async def test_no_more_answers_are_kept_than_a_tenant_may_have(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answered(keys: Idempotency, tenant: str, key: str, body: bytes) -> Replay:
        await keys.claim(tenant, key, "a")
        await keys.finish(tenant, key, 200, {"etag": "1"}, body)
        found = await keys.claim(tenant, key, "a")
        assert isinstance(found, Replay)
        return found

    monkeypatch.setattr(idempotency, "MAX_BYTES", 10)
    monkeypatch.setattr(idempotency, "MAX_ROWS", 4)
    not_kept = Replay(200, {idempotency.NOT_KEPT: "1"}, b"")
    keys = Idempotency(store)
    assert (await answered(keys, "t", "a", b"123456")).body == b"123456"
    assert await answered(keys, "t", "b", b"12345") == not_kept
    keys = Idempotency(store)  # the next daemon's
    assert await answered(keys, "t", "c", b"12345") == not_kept
    assert (await answered(keys, "u", "c", b"12345")).body == b"12345"  # another tenant's
    assert (await answered(keys, "t", "d", b"1234")).body == b"1234"
    assert await answered(keys, "t", "e", b"") == not_kept
    monkeypatch.setattr(idempotency, "MAX_ROWS", 5)
    await store.clock.advance(86_401)  # type: ignore[attr-defined]
    assert (await answered(keys, "t", "a", b"1")).body == b"1"  # in the place of an old one
    assert await keys.sweep() == 5
    assert (await answered(keys, "t", "f", b"123456789")).body == b"123456789"
    assert await answered(keys, "t", "g", b"1") == not_kept


async def test_claims_expire(store: Store) -> None:
    keys = Idempotency(store)
    await keys.claim("t", "k", "a")
    await keys.finish("t", "k", 200, {}, b"")
    await keys.claim("t", "l", "a")
    await store.clock.advance(86_399)  # type: ignore[attr-defined]
    assert isinstance(await keys.claim("t", "k", "a"), Replay)
    assert isinstance(await keys.claim("t", "l", "a"), InProgress)
    await store.clock.advance(2)  # type: ignore[attr-defined]
    assert isinstance(await keys.claim("t", "k", "b"), New)
    assert await keys.sweep() == 1
    assert await keys.sweep() == 0


def row(n: int, machine: str = "m", **changes: object) -> ExecutionRow:
    values = {
        "id": f"e{n:05}",
        "tenant_id": "t",
        "machine_id": machine,
        "command": ["echo", str(n)],
        "status": "running",
        "created_at": CLOCK.now() + timedelta(milliseconds=n // 2),
        **changes,
    }
    return ExecutionRow(**values)  # type: ignore[arg-type]


async def test_executions(store: Store) -> None:
    table = Executions(store)
    for n in range(7):
        await table.insert(row(n))
    await table.insert(row(9, "other"))
    assert await table.finish("e00003", {"status": "succeeded", "stdout": b"x", "exit_code": 0})
    assert not await table.finish("e00003", {"status": "failed"})  # the first ending counts
    assert not await table.finish("nope", {"status": "failed"})
    got = await table.get("t", "m", "e00003", output=True)
    assert got is not None
    assert (got.status, got.stdout, got.command) == ("succeeded", b"x", ["echo", "3"])
    light = await table.get("t", "m", "e00003")
    assert light is not None
    assert light.stdout is None
    assert await table.get("foreign", "m", "e00003") is None
    assert await table.get("t", "other", "e00003") is None
    seen: list[str] = []
    after = None
    while page := await table.list("t", "m", limit=3, after=after):
        seen += [r.id for r in page]
        after = (page[-1].created_at, page[-1].id)
    assert seen == [f"e{n:05}" for n in reversed(range(7))]
    assert [r.id for r in await table.list("t", "m", status="succeeded")] == ["e00003"]
    assert len(await table.running("m")) == 6
    assert len(await table.running()) == 7


async def test_old_executions_are_forgotten_but_not_running_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "KEEP_PER_MACHINE", 5)
    table = Executions(store)
    for n in range(10):
        await table.insert(row(n))
        if n != 1:
            await table.finish(f"e{n:05}", {"status": "succeeded", "ended_at": CLOCK.now()})
    assert await table.prune("m") == 4
    assert [r.id for r in await table.list("t", "m")] == [
        "e00009", "e00008", "e00007", "e00006", "e00005", "e00001",
    ]  # fmt: skip
    await store.clock.advance(31 * 86_400)  # type: ignore[attr-defined]
    assert await table.prune("m") == 5


@given(st.datetimes(timezones=st.just(CLOCK.now().tzinfo)), st.text("abc234", min_size=1))
def test_cursors_come_back_as_they_were(at, id: str) -> None:  # type: ignore[no-untyped-def]
    cursors = Cursors(b"s")
    assert cursors.decode("scope", cursors.encode("scope", at, id)) == (at, id)


@given(st.text(max_size=100))
def test_no_cursor_is_guessed(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Cursors(b"s").decode("scope", text)
    assert caught.value.code == "INVALID_CURSOR"


def test_a_cursor_counts_where_it_was_given() -> None:
    made = Cursors(b"s").encode("tenant a", CLOCK.now(), "x")
    for cursors, scope in ((Cursors(b"s"), "tenant b"), (Cursors(b"other"), "tenant a")):
        with pytest.raises(InvalidRequestError):
            cursors.decode(scope, made)


def test_ids() -> None:
    made = {ids.new() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(i) == 26 and i.isascii() and i.isalnum() and i == i.lower() for i in made)
