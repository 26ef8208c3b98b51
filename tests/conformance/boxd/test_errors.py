"""What a client raises: its own exception of the right kind, in both versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.system.conftest import Daemon

from .conftest import V1, V2, Client

GET = {V1: "boxd.box.get({})", V2: "boxd.machines.get({})"}
MAKE = {V1: "boxd.box.create({})", V2: "boxd.machines.create({})"}
VERSIONS = pytest.mark.parametrize("version", [V1, V2])
KINDS = {  # what each calls it
    V1: {
        "auth": "AuthenticationError",
        "permission": "AuthenticationError",
        "conflict": "InvalidArgumentError",
        "quota": "QuotaExceededError",
        "invalid": "InvalidArgumentError",
    },
    V2: {
        "auth": "AuthenticationError",
        "permission": "PermissionDeniedError",
        "conflict": "ConflictError",
        "quota": "RateLimitError",
        "invalid": "APIStatusError",
    },
}


@dataclass
class Tenant:
    id: str
    key: str
    reader: str


@pytest.fixture(scope="module")
def tenant(daemon: Daemon) -> Iterator[Tenant]:
    """Who may have two machines."""
    with daemon.http() as http:
        made = http.post("/v1/tenants", json={"name": "boxd-two", "quotas": {"machines": 2}})
        made.raise_for_status()
        id = made.json()["tenant_id"]
        keys = [
            http.post("/v1/keys", json={"name": role, "role": role, "tenant": id}).json()["key"]
            for role in ("tenant", "read_only")
        ]
        yield Tenant(id, *("bxk_" + each.rpartition("_")[2] for each in keys))
        http.delete(f"/v1/tenants/{id}")


@VERSIONS
@pytest.mark.parametrize("key", ["bxk_" + "0" * 64, "bxk_short", "nonsense"])
def test_a_wrong_key(client: Callable[..., Client], version: str, key: str) -> None:
    boxd = client(version, "sync", key)
    boxd.raises(GET[version].format("'x'"), KINDS[version]["auth"])
    boxd.found("errors: wrong key")


@VERSIONS
def test_a_wrong_token(client: Callable[..., Client], version: str) -> None:
    boxd = client(version)
    made = {V1: "Compute(token='x.y', api_url=u)", V2: "Boxd(token='x.y', base_url=u)"}[version]
    from .conftest import URL

    env = "import os; kept = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith('BOXD_API_KEY')}"
    boxd.run(f"{env}\nother = {made}\nos.environ.update(kept)", u=URL)
    boxd.raises(GET[version].replace("boxd.", "other.").format("'x'"), KINDS[version]["auth"])


@VERSIONS
def test_a_key_as_a_token(client: Callable[..., Client], version: str, daemon: Daemon) -> None:
    """Where the exchange cannot be reached, the key itself will do."""
    from .conftest import URL

    boxd = client(version)
    made = {V1: "Compute(token=k, api_url=u)", V2: "Boxd(token=k, base_url=u)"}[version]
    env = "import os; kept = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith('BOXD_API_KEY')}"
    boxd.run(f"{env}\nother = {made}\nos.environ.update(kept)", u=URL, k=daemon.key)
    every = {V1: "len(other.box.list())", V2: "len(other.machines.list())"}[version]
    assert boxd.value(every) >= 0
    boxd.found("token=", note="an exchanged token, or a key in any form")


@VERSIONS
def test_who_is_not_there(client: Callable[..., Client], version: str) -> None:
    boxd = client(version)
    for which in ("'nobody'", "'a' * 26", "''"):
        boxd.raises(GET[version].format(which), "NotFoundError")
    boxd.raises(MAKE[version].format("'x', image='no-such-image'"), "NotFoundError")
    boxd.found("errors: not found")


@VERSIONS
def test_what_is_no_name(client: Callable[..., Client], version: str) -> None:
    boxd = client(version)
    boxd.raises(MAKE[version].format("'Not A Name'"), KINDS[version]["invalid"])
    boxd.found("errors: invalid")


@VERSIONS
def test_two_of_one_name(client: Callable[..., Client], version: str, golden: str) -> None:
    boxd = client(version)
    boxd.raises(MAKE[version].format("g"), KINDS[version]["conflict"], g=golden)
    fork = {V1: "boxd.box.fork(g, g)", V2: "boxd.machines.fork(g, g)"}[version]
    boxd.raises(fork, KINDS[version]["conflict"], g=golden)
    boxd.found("errors: conflict")


@VERSIONS
def test_more_than_there_may_be(
    client: Callable[..., Client], version: str, tenant: Tenant
) -> None:
    boxd = client(version, "sync", tenant.key)
    config = {V1: "config=BoxConfig(memory='256M', disk='1G')", V2: "memory='256M', disk='1G'"}[
        version
    ]
    made = []
    try:
        for name in ("a", "b"):
            boxd.run(f"{name} = {MAKE[version].format(f'{name!r}, {config}')}")
            made.append(name)
        boxd.raises(MAKE[version].format(f"'c', {config}"), KINDS[version]["quota"])
    finally:
        for name in made:
            boxd.value({V1: f"{name}.destroy()", V2: f"boxd.machines.delete({name}.id)"}[version])
    boxd.found("errors: quota")


@VERSIONS
def test_a_key_that_only_reads(client: Callable[..., Client], version: str, tenant: Tenant) -> None:
    boxd = client(version, "sync", tenant.reader)
    every = {V1: "boxd.box.list()", V2: "boxd.machines.list()"}[version]
    assert boxd.value(every) == []
    boxd.raises(MAKE[version].format("'x'"), KINDS[version]["permission"])
    boxd.found("errors: permission")


@VERSIONS
def test_anothers_machine(
    client: Callable[..., Client], version: str, tenant: Tenant, golden: str
) -> None:
    boxd = client(version, "sync", tenant.key)
    boxd.raises(GET[version].format("g"), "NotFoundError", g=golden)


@VERSIONS
def test_a_port_nobody_listens_on(client: Callable[..., Client], version: str) -> None:
    boxd = client(version)
    made = {V1: "Compute(token='t', api_url=u)", V2: "Boxd(token='t', base_url=u, max_retries=0)"}[
        version
    ]
    env = "import os; kept = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith('BOXD_API_KEY')}"
    boxd.run(f"{env}\nother = {made}\nos.environ.update(kept)", u="http://127.0.0.1:9")
    kind = {V1: "ConnectionError", V2: "APIConnectionError"}[version]
    boxd.raises(GET[version].replace("boxd.", "other.").format("'x'"), kind)
    boxd.found("errors: connection")


@VERSIONS
def test_too_late(client: Callable[..., Client], version: str, golden: str) -> None:
    boxd = client(version)
    if version == V1:
        boxd.run("g = boxd.box.get(name)", name=golden)
        boxd.raises("g.exec('sleep', '9', timeout=0.5)", "TimeoutError")
    else:
        said = boxd.raises("boxd.machines.exec(g, 'sleep 9', timeout=0.5)", "BoxdError", g=golden)
        assert "timed out" in said.text
    boxd.found("errors: timeout")


@VERSIONS
def test_a_revoked_key(client: Callable[..., Client], version: str, daemon: Daemon) -> None:
    """Its token ends with it, within the hour it was good for."""
    with daemon.http() as http:
        made = http.post("/v1/keys", json={"name": "short"}).json()
        boxd = client(version, "sync", made["key"])
        every = {V1: "len(boxd.box.list())", V2: "len(boxd.machines.list())"}[version]
        assert boxd.value(every) >= 0
        http.delete(f"/v1/keys/{made['key_id']}").raise_for_status()
        boxd.raises(every, KINDS[version]["auth"])
    boxd.found("errors: revoked key")
