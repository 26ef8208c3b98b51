from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from roost import ids
from roost.clock import FakeClock
from roost.errors import AuthError, ConflictError, InvalidRequestError, LimitError, NotFoundError
from roost.services import keys as service_keys
from roost.services.keys import Keys
from roost.services.models import Principal, Role
from roost.services.rates import TOKEN_BURST, Rates
from roost.store import Store, schema
from roost.store.keys import put_tenant


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store.open(tmp_path / "a.db", FakeClock())
    yield opened
    await opened.close()


def service(store: Store, tmp_path: Path) -> Keys:
    return Keys(store, store.clock, tmp_path)


async def test_the_first_start_makes_a_key(store: Store, tmp_path: Path) -> None:
    keys = service(store, tmp_path)
    secret = await keys.bootstrap()
    assert secret is not None
    assert (tmp_path / "key").read_text().strip() == secret
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert await keys.bootstrap() is None
    assert (await keys.authenticate(secret)).tenant == "default"
    raw = (tmp_path / "a.db").read_bytes() + (tmp_path / "a.db-wal").read_bytes()
    hex_secret = secret.partition("_")[2]
    assert hex_secret.encode() not in raw
    assert hashlib.sha256(hex_secret.encode()).hexdigest().encode() in raw


async def test_a_start_that_died_after_the_file_uses_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("roost_" + "ab" * 32 + "\n")
    assert await service(store, tmp_path).bootstrap() == "roost_" + "ab" * 32


async def test_the_prefix_chooses_and_proves_nothing(store: Store, tmp_path: Path) -> None:
    keys = service(store, tmp_path)
    secret = await keys.bootstrap()
    assert secret is not None
    body = secret.partition("_")[2]
    for prefix in ("roost", "dsk", "e2b", "pds"):
        assert (await keys.authenticate(f"{prefix}_{body}")).prefix == prefix
    assert (await keys.authenticate(f"e2b_{body.upper()}")).tenant == "default"
    wrong = [
        "", "roost_", body, f"roost_{body[:-1]}", f"roost_{body}0", f"_{body}", f"ROOST_{body}",
        f"roost_{body}\n", "roost_" + "0" * 64, f"roost_{'٣' * 64}", "é", f"a b_{body}",
    ]  # fmt: skip
    for bad in wrong:
        with pytest.raises(AuthError) as caught:
            await keys.authenticate(bad)
        assert caught.value.code == "AUTH_INVALID"
        assert body not in caught.value.message


async def test_what_is_revoked_while_it_is_looked_up_is_not_known(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was told of its end had nothing of it open yet."""
    keys = service(store, tmp_path)
    await keys.bootstrap()
    made = await keys.create("default", "a", Role.TENANT)
    read = store.read

    async def slow(fn: Any) -> Any:
        found = await read(fn)
        monkeypatch.setattr(store, "read", read)
        await keys.revoke("default", made.id)
        return found

    monkeypatch.setattr(store, "read", slow)
    assert await keys.known(made.id) is None


async def test_revoked_is_revoked_at_once(store: Store, tmp_path: Path) -> None:
    keys = service(store, tmp_path)
    await keys.bootstrap()
    made = await keys.create("default", "ci")
    assert made.secret is not None
    await keys.authenticate(made.secret)
    await keys.revoke("default", made.id)
    with pytest.raises(AuthError):
        await keys.authenticate(made.secret)
    with pytest.raises(AuthError):
        await service(store, tmp_path).authenticate(made.secret)
    with pytest.raises(NotFoundError):
        await keys.revoke("default", made.id)


async def test_the_last_key_stays_and_foreign_ones_are_not_there(
    store: Store, tmp_path: Path
) -> None:
    keys = service(store, tmp_path)
    await keys.bootstrap()
    (only,) = await keys.list("default")
    with pytest.raises(ConflictError) as caught:
        await keys.revoke("default", only.id)
    assert caught.value.code == "IN_USE"
    await store.write(lambda c: put_tenant(c, "other", store.clock.now()))
    other = await keys.create("other", "x")
    with pytest.raises(NotFoundError):
        await keys.revoke("default", other.id)
    assert [k.id for k in await keys.list("default")] == [only.id]
    assert only.secret is None
    for bad in ("", "a" * 64, "a\nb"):
        with pytest.raises(InvalidRequestError):
            await keys.create("default", bad)


async def test_use_is_noted_lazily(store: Store, tmp_path: Path) -> None:
    keys = service(store, tmp_path)
    secret = await keys.bootstrap()
    assert secret is not None
    await keys.authenticate(secret)
    assert (await service(store, tmp_path).list("default"))[0].last_used_at is None
    await keys.flush()
    assert (await service(store, tmp_path).list("default"))[0].last_used_at == store.clock.now()


async def test_keys_and_tokens_are_bounded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each tenant and machine those that count, also where many are asked for at once; not the admin's."""
    monkeypatch.setattr(service_keys, "KEYS", 3)
    monkeypatch.setattr(service_keys, "TOKENS_OF_MACHINE", 2)
    keys = service(store, tmp_path)
    await keys.bootstrap()
    for tenant in ("a", "b"):
        await store.write(lambda c, t=tenant: put_tenant(c, t, store.clock.now()))  # type: ignore[misc]
    asked = await asyncio.gather(*(keys.create("a", "k") for _ in range(9)), return_exceptions=True)
    made = [each for each in asked if not isinstance(each, BaseException)]
    refused = [each for each in asked if isinstance(each, LimitError)]
    assert (len(made), len(refused)) == (3, 6)
    assert (refused[0].code, refused[0].retryable) == ("QUOTA_EXCEEDED", False)
    assert refused[0].details == {"quota": "keys", "limit": 3, "used": 3, "asked": 1}
    machines = [ids.new(), ids.new()]
    for machine_id in machines:
        await keys.issue("a", machine_id, Role.MACHINE)
        await keys.issue("a", machine_id, Role.PREVIEW, port=80)
        with pytest.raises(LimitError) as caught:
            await keys.issue("a", machine_id, Role.MACHINE)
        assert caught.value.details["quota"] == "tokens_of_a_machine"
    await keys.create("b", "k")
    for _ in range(5):
        await keys.create("default", "k")
    await keys.revoke("a", made[0].id)  # what does not count any more leaves room
    await keys.create("a", "k")


async def test_a_token_ends_with_its_machines_rows(store: Store, tmp_path: Path) -> None:
    """They go an hour after its end, by a hand that tells nobody."""
    keys = service(store, tmp_path)
    await keys.bootstrap()
    for role, port in ((Role.MACHINE, None), (Role.PREVIEW, 80)):
        machine_id = ids.new()
        secret = (await keys.issue("default", machine_id, role, port=port)).secret
        assert secret is not None
        for _ in range(2):
            assert (await keys.authenticate(secret)).machine_id == machine_id
        gone = sa.delete(schema.keys).where(schema.keys.c.machine_id == machine_id)
        await store.write(lambda c, gone=gone: c.execute(gone))  # type: ignore[misc]
        with pytest.raises(AuthError) as caught:
            await keys.authenticate(secret)
        assert caught.value.code == "AUTH_INVALID"


def test_the_tokens_of_a_tenant_draw_from_one_bucket_too() -> None:
    rates = Rates(lambda: 0.0, 10.0)
    rates.set("a", {"requests_per_second": 1.0, "request_burst": 30.0})

    def taken(tenant: str, role: Role, key_id: str) -> int:
        number = 0
        with contextlib.suppress(LimitError):
            while number < 100:
                rates.take(Principal(tenant, key_id, "roost", role, "m"))
                number += 1
        return number

    assert taken("a", Role.MACHINE, "t1") == TOKEN_BURST == 20
    assert (
        taken("a", Role.MACHINE, "t1") == 0
    )  # and what it is refused takes nothing from the others
    assert [taken("a", Role.MACHINE, f"t{n}") for n in (2, 3)] == [10, 0]
    assert taken("a", Role.TENANT, "k") == 30  # the tenant's own is untouched
    assert [taken("default", Role.MACHINE, f"d{n}") for n in (1, 2, 3)] == [20] * 3
    rates.set("a", {})
    assert taken("a", Role.MACHINE, "t4") == 20
