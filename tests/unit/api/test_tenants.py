"""Tenants, keys, tokens, quotas and rates over HTTP; the machines are the engine's, on the fake driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.engine.reservations import HostSize
from roost.errors import AuthError
from roost.services.models import Role
from tests.unit.api.kit import Served, serving
from tests.unit.engine.kit import daemon

SMALL = {"vcpu": 0.1, "memory_mib": 64}


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Served]:
    async with daemon(tmp_path) as engine, serving(tmp_path, None, engine=engine) as found:
        yield found


@pytest.fixture
async def admin(whole: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with whole.client(whole.admin) as http:
        yield http


async def made(http: httpx.AsyncClient, path: str, body: Any, status: int = 201) -> Any:
    answer = await http.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def tenant(whole: Served, admin: httpx.AsyncClient, name: str, **quotas: Any) -> Any:
    """Its client; ``info`` is the tenant."""
    info = await made(admin, "/v1/tenants", {"name": name, "quotas": quotas})
    key = await made(admin, "/v1/keys", {"name": "k", "tenant": name})
    assert key["role"] == "tenant" and key["tenant_id"] == info["tenant_id"]
    http: Any = whole.client(key["key"], limits=httpx.Limits(max_connections=None))
    http.info = info
    return http


async def test_a_tenants_life(whole: Served, admin: httpx.AsyncClient) -> None:
    async with await tenant(whole, admin, "acme", vcpu=4, request_burst=None) as acme:
        info = acme.info
        assert info["quotas"] == {
            "machines": 10, "awake_machines": None, "vcpu": 4.0, "memory_mib": None,
            "storage_gib": None, "forks_per_minute": None, "requests_per_second": 1e6,
            "request_burst": None,
        }  # fmt: skip
        twice = await admin.post("/v1/tenants", json={"name": "acme"})
        assert (twice.status_code, twice.json()["error_code"]) == (409, "ALREADY_EXISTS")
        machine = await made(acme, "/v1/machines", SMALL)
        mine = (await acme.get("/v1/quotas")).json()
        assert mine["used"] == {
            "machines": 1, "awake_machines": 1, "vcpu": 0.1, "memory_mib": 64, "storage_gib": 10,
        }  # fmt: skip
        for which in ("acme", info["tenant_id"]):
            assert (await admin.get(f"/v1/tenants/{which}")).json() == mine
        names = [t["name"] for t in (await admin.get("/v1/tenants")).json()["items"]]
        assert "acme" in names and "default" in names and ":nobody" not in names
        # The admin's own machines and the tenant's do not show each other.
        missing = await admin.get(f"/v1/machines/{machine['machine_id']}")
        assert (missing.status_code, missing.json()["error_code"]) == (404, "MACHINE_NOT_FOUND")
        changed = await admin.patch(
            "/v1/tenants/acme", json={"name": "acme-2", "quotas": {"machines": 1, "vcpu": None}}
        )
        assert changed.json()["quotas"]["machines"] == 1
        assert changed.json()["quotas"]["vcpu"] is None
        over = await acme.post("/v1/machines", json=SMALL)
        assert over.status_code == 429 and "retry-after" not in over.headers
        told = over.json()
        assert told["error_code"] == "QUOTA_EXCEEDED" and not told["retryable"]
        told["details"].pop("request_id")
        assert told["details"] == {"quota": "machines", "limit": 1, "used": 1, "asked": 1}
        held = await admin.delete("/v1/tenants/acme-2")
        assert (held.status_code, held.json()["error_code"]) == (409, "IN_USE")
        assert held.json()["details"]["machines"] == 1
        assert (await acme.delete(f"/v1/machines/{machine['machine_id']}")).status_code == 200
        assert (await admin.delete("/v1/tenants/acme-2")).status_code == 204
        gone = await acme.get("/v1/machines")
        assert (gone.status_code, gone.json()["error_code"]) == (401, "AUTH_INVALID")
    for which in ("acme-2", info["tenant_id"], ":nobody"):
        missing = await admin.get(f"/v1/tenants/{which}")
        assert (missing.status_code, missing.json()["error_code"]) == (404, "TENANT_NOT_FOUND")
    assert (await admin.delete("/v1/tenants/default")).json()["error_code"] == "IN_USE"


@pytest.mark.parametrize(
    "quotas",
    [{"machines": -1}, {"machines": 1.5}, {"machines": True}, {"nonsense": 1}, {"vcpu": "2"},
     {"requests_per_second": 0}, {"request_burst": 0}, {"memory_mib": 10**13}],
)  # fmt: skip
async def test_quotas_that_are_none(
    whole: Served, admin: httpx.AsyncClient, quotas: dict[str, Any]
) -> None:
    body = {"name": "x", "quotas": quotas}
    assert (await admin.post("/v1/tenants", json=body)).status_code == 422
    assert (await admin.post("/v1/tenants", json={"name": "No Name"})).status_code == 422


async def test_two_hundred_creates_at_once(whole: Served, admin: httpx.AsyncClient) -> None:
    """Ten machines, however many are asked for at once; and another tenant gets its own."""
    async with (
        await tenant(whole, admin, "many") as many,
        await tenant(whole, admin, "other", machines=2) as other,
    ):
        limit = asyncio.Semaphore(100)

        async def create(http: httpx.AsyncClient) -> httpx.Response:
            async with limit:
                return await http.post("/v1/machines", json=SMALL)

        answers = await asyncio.gather(
            *(create(many) for _ in range(200)), *(create(other) for _ in range(3))
        )
        for found, fits in ((answers[:200], 10), (answers[200:], 2)):
            codes = [a.status_code for a in found]
            assert (codes.count(201), codes.count(429)) == (fits, len(found) - fits)
            refused = [a.json() for a in found if a.status_code == 429]
            assert {a["error_code"] for a in refused} == {"QUOTA_EXCEEDED"}
        listed = (await many.get("/v1/machines", params={"limit": 500})).json()["items"]
        assert len(listed) == 10 and {m["phase"] for m in listed} == {"running"}
        assert (await many.get("/v1/quotas")).json()["used"]["machines"] == 10
    # The admin's own tenant has none.
    mine = await asyncio.gather(*(admin.post("/v1/machines", json=SMALL) for _ in range(12)))
    assert {a.status_code for a in mine} == {201}


async def test_roles_of_keys(whole: Served, admin: httpx.AsyncClient) -> None:
    assert (await made(admin, "/v1/keys", {"name": "mine"}))["role"] == "admin"
    async with await tenant(whole, admin, "acme") as acme:
        own = await made(acme, "/v1/keys", {"name": "ci"})
        assert own["role"] == "tenant" and own["tenant_id"] == acme.info["tenant_id"]
        reader = await made(acme, "/v1/keys", {"name": "r", "role": "read_only", "ttl": "1h"})
        assert reader["expires_at"] is not None
        for body, status in (
            ({"name": "x", "role": "admin"}, 403),
            ({"name": "x", "tenant": "acme"}, 403),
            ({"name": "x", "role": "machine"}, 422),
            ({"name": "x", "ttl": "1h", "expires_at": "2100-01-01T00:00:00Z"}, 422),
            ({"name": "x", "expires_at": "2000-01-01T00:00:00Z"}, 422),
            ({"name": "x", "expires_at": "0001-01-01T00:00:00+14:00"}, 422),
        ):
            assert (await acme.post("/v1/keys", json=body)).status_code == status, body
        wrong = await admin.post("/v1/keys", json={"name": "x", "role": "admin", "tenant": "acme"})
        assert wrong.status_code == 422
        unknown = await admin.post("/v1/keys", json={"name": "x", "tenant": "nope"})
        assert unknown.json()["error_code"] == "TENANT_NOT_FOUND"
        listed = (await acme.get("/v1/keys")).json()["items"]
        assert [k["name"] for k in listed] == ["k", "ci", "r"]
        assert all("key" not in k for k in listed)
        assert (await admin.get("/v1/keys", params={"tenant": "acme"})).json()["items"] == listed
        assert (await acme.get("/v1/keys", params={"tenant": "acme"})).status_code == 403
        admins = (await admin.get("/v1/keys")).json()["items"]
        foreign = await acme.delete(f"/v1/keys/{admins[0]['key_id']}")
        missing = await acme.delete(f"/v1/keys/{'a' * 26}")
        assert foreign.status_code == missing.status_code == 404
        # A tenant keeps a key that lasts; the admin may take them all.
        assert (await acme.delete(f"/v1/keys/{own['key_id']}")).status_code == 204
        last = await acme.delete(f"/v1/keys/{listed[0]['key_id']}")
        assert (last.status_code, last.json()["error_code"]) == (409, "IN_USE")
        assert (await admin.delete(f"/v1/keys/{listed[0]['key_id']}")).status_code == 204
        assert (await acme.get("/v1/machines")).status_code == 401


async def test_who_is_no_admin_does_not_touch_admins_keys(
    whole: Served, admin: httpx.AsyncClient
) -> None:
    """Also with a key of the admin's own tenant."""
    helper = await made(admin, "/v1/keys", {"name": "helper", "role": "tenant"})
    (first, *_) = (await admin.get("/v1/keys")).json()["items"]
    async with whole.client(helper["key"]) as http:
        assert (await http.delete(f"/v1/keys/{first['key_id']}")).status_code == 403
        assert (await http.post("/v1/keys", json={"name": "x", "role": "admin"})).status_code == 403
        assert (await http.get("/v1/host")).json()["daemon"]["pid"] is None
    assert (await admin.get("/v1/host")).json()["daemon"]["pid"] == 1


async def test_an_admin_key_that_ends_is_not_the_last(
    whole: Served, admin: httpx.AsyncClient
) -> None:
    """Else a day later nobody could come in."""
    (first,) = (await admin.get("/v1/keys")).json()["items"]
    await made(admin, "/v1/keys", {"name": "soon", "ttl": "1h"})
    await made(admin, "/v1/keys", {"name": "less", "role": "tenant"})
    last = await admin.delete(f"/v1/keys/{first['key_id']}")
    assert (last.status_code, last.json()["error_code"]) == (409, "IN_USE")
    await made(admin, "/v1/keys", {"name": "lasts"})
    assert (await admin.delete(f"/v1/keys/{first['key_id']}")).status_code == 204


async def test_a_key_is_shown_once_and_kept_nowhere(
    whole: Served, admin: httpx.AsyncClient
) -> None:
    """Also where the request could be repeated: its answer is kept for that, but for the secret."""
    mid = (await made(admin, "/v1/machines", SMALL))["machine_id"]
    secrets = []
    for path, body, name in (
        ("/v1/keys", {"name": "x"}, "key"),
        (f"/v1/machines/{mid}/tokens", {"scope": "machine"}, "token"),
    ):
        headers = {"idempotency-key": name}
        first = await admin.post(path, json=body, headers=headers)
        assert first.headers["cache-control"] == "no-store"
        secrets.append(first.json()[name].partition("_")[2])
        again = await admin.post(path, json=body, headers=headers)
        assert (again.status_code, again.json()["error_code"]) == (409, "INVALID_STATE")
        assert secrets[-1] not in again.text
    directory = whole.engine.host.directory
    raw = b"".join(file.read_bytes() for file in directory.glob("roost.db*"))
    assert secrets[0] and not any(secret.encode() in raw for secret in secrets)
    assert len((await admin.get("/v1/keys")).json()["items"]) == 2


async def test_how_full_the_host_is_is_the_admins_to_know(
    whole: Served, admin: httpx.AsyncClient
) -> None:
    whole.engine.host.size = HostSize(4.0, 100, None)
    await made(admin, "/v1/machines", SMALL)
    whole.engine.engine.settings.memory_overcommit = 1.0
    async with await tenant(whole, admin, "acme") as acme:
        for http, known in ((admin, True), (acme, False)):
            full = await http.post("/v1/machines", json=SMALL)
            assert (full.status_code, full.json()["error_code"]) == (503, "CAPACITY_EXCEEDED")
            assert full.json()["retryable"] and full.headers["retry-after"]
            assert ("machines" in full.json()["details"]) == known
            assert ("promised" in full.json()["message"]) == known


async def test_why_a_rung_cannot_be_had_is_the_admins_to_know(
    whole: Served, admin: httpx.AsyncClient
) -> None:
    probes = whole.engine.engine.rungs.probes
    name, found = next(iter(probes.items()))
    async with await tenant(whole, admin, "acme") as acme:
        asleep = {}
        for http in (admin, acme):
            asleep[http] = f"/v1/machines/{(await made(http, '/v1/machines', SMALL))['machine_id']}"
            assert (await http.post(f"{asleep[http]}/sleep")).status_code == 200
        probes[name] = replace(found, available=False, reason="no /dev/thing", remedy="load it")
        for http, known in ((admin, True), (acme, False)):
            refused = await http.post("/v1/machines", json={**SMALL, "driver": name})
            assert (refused.status_code, refused.json()["error_code"]) == (422, "RUNG_UNAVAILABLE")
            assert f"No driver for {name}" in refused.json()["message"]
            assert ("/dev/thing" in refused.text) == ("load it" in refused.text) == known
            refused = await http.post(f"{asleep[http]}/wake")
            assert (refused.status_code, refused.json()["error_code"]) == (422, "RUNG_UNAVAILABLE")
            assert "promote" in refused.json()["message"]
            assert ("/dev/thing" in refused.text) == ("load it" in refused.text) == known
            assert (await http.get(asleep[http])).json()["phase"] == "sleeping"


async def test_revoked_and_expired_at_once(whole: Served, admin: httpx.AsyncClient) -> None:
    soon = await made(admin, "/v1/keys", {"name": "s", "ttl": "1h"})
    other = await made(admin, "/v1/keys", {"name": "o"})
    async with whole.client(soon["key"]) as http, whole.client(other["key"]) as second:
        assert (await http.get("/v1/machines")).status_code == 200
        assert (await second.get("/v1/machines")).status_code == 200
        assert (await admin.delete(f"/v1/keys/{other['key_id']}")).status_code == 204
        assert (await second.get("/v1/machines")).status_code == 401
        whole.later(timedelta(minutes=59))
        assert (await http.get("/v1/machines")).status_code == 200
        whole.later(timedelta(hours=1))
        late = await http.get("/v1/machines")
        assert (late.status_code, late.json()["error_code"]) == (401, "AUTH_INVALID")
    names = [k["name"] for k in (await admin.get("/v1/keys")).json()["items"]]
    assert "s" not in names and "o" not in names


async def test_tokens(whole: Served, admin: httpx.AsyncClient) -> None:
    async with await tenant(whole, admin, "acme") as acme, await tenant(whole, admin, "b") as b:
        mid = (await made(acme, "/v1/machines", SMALL))["machine_id"]
        path = f"/v1/machines/{mid}/tokens"
        machine = await made(acme, path, {"scope": "machine", "name": "inside"})
        preview = await made(acme, path, {"scope": "preview", "port": 8080, "ttl": "1h"})
        assert machine["token"].startswith("rmt_") and preview["token"].startswith("rpt_")
        for body in (
            {"scope": "preview"},
            {"scope": "machine", "port": 1},
            {"scope": "preview", "port": 0},
            {"scope": "preview", "port": 65536},
            {"scope": "tenant"},
        ):
            assert (await acme.post(path, json=body)).status_code == 422, body
        listed = (await acme.get(path)).json()["items"]
        assert [(t["scope"], t["port"]) for t in listed] == [("machine", None), ("preview", 8080)]
        assert all("token" not in t for t in listed)
        assert (await acme.get("/v1/keys")).json()["items"][1:] == []  # tokens are no keys
        for method in ("get", "post"):
            body = {"json": {"scope": "machine"}} if method == "post" else {}
            assert (await b.request(method, path, **body)).status_code == 404
        # The preview proxy's question.
        found = await whole.keys.preview(preview["token"], mid, 8080)
        assert (found.tenant, found.machine_id) == (acme.info["tenant_id"], mid)
        for token, where, port in (
            (preview["token"], mid, 8081),
            (preview["token"], "a" * 26, 8080),
            (machine["token"], mid, 8080),
            (whole.admin, mid, 8080),
            ("rpt_" + "0" * 64, mid, 8080),
        ):
            with pytest.raises(AuthError):
                await whole.keys.preview(token, where, port)
        # Under another prefix it is the same token, not more.
        async with whole.client("roost_" + machine["token"].partition("_")[2]) as http:
            assert (await http.get(f"/v1/machines/{mid}")).json()["machine_id"] == mid
            assert (await http.get("/v1/machines")).status_code == 403
            token_path = f"{path}/{machine['token_id']}"
            assert (await b.delete(token_path)).status_code == 404
            assert (await acme.delete(f"/v1/keys/{machine['token_id']}")).status_code == 404
            assert (await acme.delete(token_path)).status_code == 204
            assert (await http.get(f"/v1/machines/{mid}")).status_code == 401
        assert (await acme.delete(token_path)).status_code == 404
        await acme.delete(f"{path}/{preview['token_id']}")
        with pytest.raises(AuthError):
            await whole.keys.preview(preview["token"], mid, 8080)


async def test_so_many_requests_a_second(whole: Served, admin: httpx.AsyncClient) -> None:
    async with await tenant(whole, admin, "acme", requests_per_second=0.1, request_burst=5) as acme:
        second = await made(acme, "/v1/keys", {"name": "second"})
        async with whole.client(second["key"]) as more:  # of the same tenant: it counts there
            answers = [await each.get("/v1/quotas") for each in (acme, more) * 3]
        codes = [a.status_code for a in answers]
        assert codes == [200] * 4 + [429] * 2
        told = answers[-1].json()
        assert (told["error_code"], told["retryable"]) == ("RATE_LIMITED", True)
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        assert (await admin.get("/v1/machines")).status_code == 200  # it has none
        assert (await acme.get("/healthz")).status_code == 200
        await admin.patch("/v1/tenants/acme", json={"quotas": {"requests_per_second": None}})
        assert {(await acme.get("/v1/quotas")).status_code for _ in range(20)} == {200}


async def test_a_token_does_not_use_up_what_its_tenant_has(
    whole: Served, admin: httpx.AsyncClient
) -> None:
    async with await tenant(
        whole, admin, "acme", requests_per_second=0.1, request_burst=30
    ) as acme:
        mid = (await made(acme, "/v1/machines", SMALL))["machine_id"]
        token = await made(acme, f"/v1/machines/{mid}/tokens", {"scope": "machine"})
        whole.rates._per_token = 0.1
        async with whole.client(token["token"]) as http:
            codes = [(await http.get(f"/v1/machines/{mid}")).status_code for _ in range(25)]
        assert codes == [200] * 20 + [429] * 5
        assert (await acme.get("/v1/quotas")).status_code == 200


async def test_an_old_database_keeps_its_admin(tmp_path: Path) -> None:
    """Keys from before there were roles could do everything."""
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    from roost.clock import SystemClock
    from roost.services.keys import Keys
    from roost.store import Store, sqlite
    from roost.store.upgrade import MIGRATIONS

    engine = sqlite.make_engine(tmp_path / "a.db", 1.0)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.connect().execution_options(roost_write=True) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    import hashlib

    digest = hashlib.sha256(b"ab" * 32).hexdigest()
    with engine.begin() as c:
        now = "2026-01-01 00:00:00.000000"
        c.execute(sa.text(f"INSERT INTO tenants VALUES ('default', 'default', '{now}')"))
        c.execute(
            sa.text(
                "INSERT INTO keys (id, tenant_id, name, secret_sha256, created_at) "
                f"VALUES ('k', 'default', 'first', '{digest}', '{now}')"
            )
        )
    engine.dispose()
    store = Store.open(tmp_path / "a.db", SystemClock())
    keys = Keys(store, store.clock, tmp_path)
    assert await keys.bootstrap() is None
    who = await keys.authenticate("roost_" + "ab" * 32)
    assert (who.role, who.tenant) == (Role.ADMIN, "default")
    await store.close()
