from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from roost.clock import SystemClock
from roost.errors import CapacityError, RoostError, UnavailableError
from roost.store import Store, keys, sqlite
from roost.store.schema import metadata, tenants
from roost.store.upgrade import HEAD, MIGRATIONS, upgrade

NOW = SystemClock().now()


def put(name: str):
    return lambda c: keys.put_tenant(c, name, NOW)


async def names(store: Store) -> set[str]:
    return set(await store.read(lambda c: c.execute(sa.select(tenants.c.id)).scalars().all()))


async def test_writes_last_and_threads_are_the_stores(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock())
    assert await store.write(lambda c: threading.current_thread().name) == "store-write"
    await asyncio.gather(*(store.write(put(f"t{n}")) for n in range(100)))
    await store.close()
    with pytest.raises(UnavailableError) as caught:
        await store.write(put("late"))
    assert caught.value.code == "SHUTTING_DOWN"
    assert (tmp_path / "a.db").stat().st_mode & 0o077 == 0
    store = Store.open(tmp_path / "a.db", SystemClock())
    assert len(await names(store)) == 100
    mode = await store.write(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar())
    assert mode == 2
    await store.close()


async def test_one_bad_write_of_a_group_spoils_no_other(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock())
    gate = threading.Event()
    held = asyncio.ensure_future(store.write(lambda c: gate.wait(5)))
    await asyncio.sleep(0.01)

    def bad(c: sa.Connection) -> None:
        put("half")(c)
        raise ValueError("after a change")

    def twice(c: sa.Connection) -> None:
        c.execute(sa.insert(tenants).values(id="good", name="x", created_at=NOW))

    waiting = [
        asyncio.ensure_future(store.write(f)) for f in (put("good"), bad, twice, put("last"))
    ]
    await asyncio.sleep(0.01)
    gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    await held
    assert [type(r) for r in results] == [type(None), ValueError, IntegrityError, type(None)]
    assert await names(store) == {"good", "last"}
    await store.close()


async def test_close_finishes_what_was_asked(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock())
    writes = [asyncio.ensure_future(store.write(put(f"t{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    store = Store.open(tmp_path / "a.db", SystemClock())
    assert len(await names(store)) == 20
    await store.close()


async def test_a_caller_that_goes_away_leaves_its_write(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock())
    task = asyncio.ensure_future(store.write(put("x")))
    await asyncio.sleep(0)
    task.cancel()
    await store.write(put("y"))
    assert await names(store) == {"x", "y"}
    await store.close()


async def test_a_locked_database_is_a_typed_error_and_passes(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock(), busy_timeout_s=0.05)
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    results = await asyncio.gather(
        *(store.write(put(f"t{n}")) for n in range(3)), return_exceptions=True
    )
    assert all(isinstance(r, UnavailableError) and r.retryable for r in results)
    assert {r.code for r in results} == {"DATABASE_UNAVAILABLE"}
    assert await names(store) == set()  # reads go on
    other.execute("ROLLBACK")
    other.close()
    await store.write(put("after"))
    assert await names(store) == {"after"}
    await store.close()


async def test_a_full_disk_is_a_typed_error_and_nothing_half_written(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock())
    await store.write(put("before"))

    def limit(c: sa.Connection) -> None:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar()
        c.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    await store.write(limit)

    def many(c: sa.Connection) -> None:
        for n in range(2000):
            c.execute(sa.insert(tenants).values(id=f"{n:040}", name=f"{n:063}", created_at=NOW))

    with pytest.raises(CapacityError) as caught:
        await store.write(many)
    assert caught.value.code == "STORAGE_FULL"
    assert await names(store) == {"before"}
    await store.close()


@pytest.mark.parametrize("damage", ["header", "page", "text"])
def test_a_damaged_database_refuses_to_start(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.db"
    engine = sqlite.make_engine(path, 1.0)
    upgrade(engine)
    with engine.connect() as c:
        c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:16] = b"not a database!!"
    elif damage == "page":
        data[4096:] = b"\xff" * (len(data) - 4096)
    else:
        data = bytearray(b"hello\n" * 1000)
    path.write_bytes(data)
    with pytest.raises(UnavailableError) as caught:
        Store.open(path, SystemClock())
    assert caught.value.code == "DATABASE_CORRUPT"
    assert path.read_bytes() == bytes(data)


async def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "a.db", SystemClock())
    await store.write(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num='9999'"))
    await store.close()
    with pytest.raises(RoostError) as caught:
        Store.open(tmp_path / "a.db", SystemClock())
    assert "9999" in caught.value.message
    assert not caught.value.retryable


def test_migrations_make_the_schema(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
    engine = sqlite.make_engine(tmp_path / "a.db", 1.0)
    upgrade(engine)
    with engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), metadata) == []
    engine.dispose()
