from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.clock import FakeClock
from roost.errors import AuthError, ConflictError, InvalidRequestError, NotFoundError
from roost.services.keys import Keys
from roost.store import Store
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
