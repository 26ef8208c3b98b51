"""Tokens of sandboxes, and files' URLs that were signed with one."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

import pytest

from roost.dialects.e2b import app
from roost.dialects.e2b.access import Access
from roost.dialects.e2b.envd.place import Admission
from roost.errors import RoostError
from roost.services.rates import Rates
from tests.unit.api.kit import OTHER, TENANT, Served
from tests.unit.engine.kit import Daemon, small


@pytest.fixture
def access(served: Served) -> Access:
    return Access(served.machines, served.ports.places)


def scope(path: str, query: str = "", method: str = "GET", **headers: str) -> Any:
    fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {
        "type": "http",
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "headers": fields,
    }


def signed(token: str, path: str, operation: str, user: str = "", expires: str = "") -> str:
    raw = f"{path}:{operation}:{user}:{token}" + (f":{expires}" if expires else "")
    digest = base64.b64encode(hashlib.sha256(raw.encode()).digest()).rstrip(b"=").decode()
    from urllib.parse import urlencode

    said = {"path": path, "signature": f"v1_{digest}"}
    if user:
        said["username"] = user
    if expires:
        said["signature_expiration"] = expires
    return urlencode(said)


async def refused(access: Access, asked: Any) -> RoostError:
    with pytest.raises(RoostError) as found:
        await access.principal_of(asked)
    return found.value


async def test_a_token_is_good_for_its_sandbox_only(engine: Daemon, access: Access) -> None:
    one = await engine.machines.create(TENANT, small())
    two = await engine.machines.create(OTHER, small())
    rpc = "/process.Process/List"
    asked = scope(rpc, e2b_sandbox_id=one.id, x_access_token=access.token(one))
    who = await access.principal_of(asked)
    assert who is not None and (who.tenant, who.machine_id) == (TENANT, one.id)
    wrong = scope(rpc, e2b_sandbox_id=two.id, x_access_token=access.token(one))
    assert (await refused(access, wrong)).code == "AUTH_INVALID"
    none = scope(rpc, e2b_sandbox_id=one.id)
    assert (await refused(access, none)).code == "AUTH_REQUIRED"
    for missing in ("a" * 26, "../x", ""):
        found = await refused(access, scope(rpc, e2b_sandbox_id=missing or "-"))
        assert (found.code, found.message) == ("MACHINE_NOT_FOUND", "The sandbox was not found")
    await engine.machines.delete(TENANT, one.id)
    assert (await refused(access, asked)).code == "MACHINE_NOT_FOUND"


async def test_a_host_names_a_sandbox_and_counts_more_than_a_header(
    engine: Daemon, access: Access
) -> None:
    one = await engine.machines.create(TENANT, small())
    host = f"49983-{one.id}.localhost:7000"
    named = access.named(scope("/", host=host, e2b_sandbox_id="b" * 26))
    assert named is not None and (named.sandbox_id, named.port) == (one.id, 49983)
    named = access.named(
        scope("/", host="localhost:1", e2b_sandbox_id="b" * 26, e2b_sandbox_port="80")
    )
    assert named is not None and (named.sandbox_id, named.port) == ("b" * 26, 80)
    assert access.named(scope("/", host="localhost:1")) is None


async def test_a_signed_url_is_of_whose_token_it_was_made_with(
    engine: Daemon, access: Access
) -> None:
    one = await engine.machines.create(TENANT, small())
    two = await engine.machines.create(OTHER, small())
    later = str(int(time.time()) + 60)
    for machine in (one, two):
        token = access.token(machine)
        for query, method in (
            (signed(token, "/tmp/a b+ü", "read"), "GET"),
            (signed(token, "x", "write", "root", later), "POST"),
        ):
            who = await access.principal_of(scope("/files", query, method))
            assert who is not None and who.machine_id == machine.id
            named = scope("/files", query, method, e2b_sandbox_id=machine.id)
            assert (await access.principal_of(named)) == who
    query = signed(access.token(one), "x", "read")
    assert (await refused(access, scope("/files", query, "POST"))).message == "invalid signature"
    assert (await refused(access, scope("/files", query.replace("path=x", "path=y")))).code == (
        "AUTH_INVALID"
    )
    named = scope("/files", query, e2b_sandbox_id=two.id)
    assert (await refused(access, named)).message == "invalid signature"
    past = signed(access.token(one), "x", "read", "", str(int(time.time()) - 5))
    assert (await refused(access, scope("/files", past))).message == "signature is already expired"
    assert "missing signature" in (await refused(access, scope("/files", "path=x"))).message


async def test_a_signed_url_is_for_the_user_it_names(engine: Daemon, access: Access) -> None:
    """The signature has the user in it: a header beside it makes nobody root."""
    one = await engine.machines.create(TENANT, small())
    root = "Basic " + base64.b64encode(b"root:").decode()
    query = signed(access.token(one), "x", "write")
    for more in ({}, {"e2b_sandbox_id": one.id}, {"x_access_token": "any"}):
        asked = scope("/files", query, "POST", authorization=root, **more)
        await Admission(access)(asked)
        assert asked["e2b.user"] is None, more
    token = {"e2b_sandbox_id": one.id, "x_access_token": access.token(one)}
    asked = scope("/files", "path=x", "POST", authorization=root, **token)
    await Admission(access)(asked)
    assert asked["e2b.user"] == "root"


async def test_who_has_no_token_takes_nothing_from_who_has_one(
    engine: Daemon, access: Access, served: Served
) -> None:
    one = await engine.machines.create(TENANT, small())
    await served.ports.create(TENANT, one.id, 0, visibility="public")
    kernel = next(each for each in app.targets(served.services) if each.name == "e2b-kernel")
    rates = Rates(lambda: 0.0, 5.0)
    rates.set(TENANT, {"requests_per_second": 100, "request_burst": 100})
    for path, admit in (("/health", access.principal_of), ("/contexts", kernel.admit)):
        nobody = await admit(scope(path, e2b_sandbox_id=one.id))
        token = access.token(one)
        who = await admit(scope(path, e2b_sandbox_id=one.id, x_access_token=token))
        assert nobody is not None and who is not None
        assert nobody.is_token and not who.is_token and nobody.key_id != who.key_id
        with pytest.raises(RoostError):
            for _ in range(100):
                rates.take(nobody)
        for _ in range(50):
            rates.take(who)


async def test_searches_are_bounded(engine: Daemon, access: Access) -> None:
    await engine.machines.create(TENANT, small())
    for _ in range(200):  # what is no signature costs none
        assert (await refused(access, scope("/files", "path=x&signature=v1_x"))).code == (
            "AUTH_INVALID"
        )
    wrong = scope("/files", signed("0" * 64, "x", "read"))
    codes = {(await refused(access, wrong)).code for _ in range(200)}
    assert codes == {"AUTH_INVALID", "RATE_LIMITED"}
