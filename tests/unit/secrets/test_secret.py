"""What may be a secret, how it is kept, and who is told."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from roost.clock import FakeClock
from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Isolation
from roost.errors import (
    ConflictError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from roost.secrets import Secret, SecretSpec, trust
from roost.secrets.secret import check_apart, check_value, check_weight, environment, made
from roost.secrets.vault import KEY_FILE, Vault
from roost.services.models import CreateMachine, ForkMachine
from roost.store import secrets as rows
from tests.unit.engine.kit import OTHER, TENANT, Daemon, daemon, small
from tests.unit.engine.test_idle import passes

NOW = datetime(2026, 1, 2, tzinfo=UTC)
VALUE = "canary-7Gk/2+fQ=x9Zb4"
BUNDLE = trust.BUNDLE.decode()


def spec(name: str = "TOKEN", **said: Any) -> SecretSpec:
    return SecretSpec(**{"name": name, "value": VALUE, "hosts": ["api.example.org"], **said})


def a(name: str = "TOKEN", **said: Any) -> Secret:
    return made(spec(name, **said), None, NOW)


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"name": "1A"}, "name"),
        ({"name": "A B"}, "name"),
        ({"hosts": None}, "hosts"),
        ({"hosts": []}, "hosts"),
        ({"hosts": ["x"] * 33}, "hosts"),
        ({"hosts": ["10.0.0.0/8"]}, "hosts"),
        ({"hosts": ["1.2.3.4"]}, "hosts"),
        ({"hosts": ["https://x.org"]}, "hosts"),
        ({"hosts": ["x.org:99999"]}, "hosts"),
        ({"header": "Host"}, "header"),
        ({"header": "content-length"}, "header"),
        ({"header": "Transfer-Encoding"}, "header"),
        ({"header": "A\r\nB"}, "header"),
        ({"header": "A", "placeholder": "0123456789abc"}, "header"),
        ({"header": "A", "format": "Bearer"}, "format"),
        ({"header": "A", "format": "{value}{value}"}, "format"),
        ({"header": "A", "format": "x\r\ny: {value}"}, "format"),
        ({"header": "A", "in_body": True}, "in_body"),
        ({"format": "Bearer {value}"}, "format"),
        ({"placeholder": "short"}, "placeholder"),
        ({"placeholder": "with a space in it"}, "placeholder"),
    ],
)
def test_what_may_not_be(said: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        made(spec(**said), None, NOW)
    assert caught.value.details["field"] == field
    assert VALUE not in caught.value.message


@pytest.mark.parametrize(
    "value",
    ["", "tiny123", "x" * 8193, "two\nlines-here", "nul\0-in-it", " before-it", "über-umlaut"],
)
def test_values(value: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_value(value)
    assert len(value) < 3 or value not in caught.value.message
    check_value("x" * 8192)


def test_all_values_together_are_bounded() -> None:
    check_weight(["x" * 100] * 64)
    with pytest.raises(InvalidRequestError) as caught:
        check_weight(['"' * 8000])
    assert caught.value.details["field"] == "value"


def test_what_is_not_named_stays() -> None:
    first = a(header="X-Key", format="key={value}")
    later = made(SecretSpec("TOKEN", value="another-value"), first, NOW.replace(year=2027))
    assert later == replace(first, updated_at=NOW.replace(year=2027))
    assert (later.created_at, later.header, later.format) == (NOW, "X-Key", "key={value}")
    marked = a()
    assert made(SecretSpec("TOKEN", in_body=True), marked, NOW).placeholder == marked.placeholder


def test_no_two_for_one_header_of_one_host() -> None:
    one = a(header="Authorization")
    for hosts in (
        ["api.example.org"],
        ["*.example.org"],
        ["x.org", "api.example.org:443"],
    ):
        with pytest.raises(InvalidRequestError):
            check_apart(a("B", header="authorization", hosts=hosts), [one])
    check_apart(a("B", header="X-Other"), [one])
    check_apart(a("B", header="Authorization", hosts=["api.example.org:8443"]), [one])
    check_apart(
        a("B", header="Authorization", hosts=["*.api.example.org"]), [a(header="Authorization")]
    )
    with pytest.raises(InvalidRequestError):
        check_apart(
            a("B", placeholder="roost-0123456789-longer"), [a(placeholder="roost-0123456789")]
        )


def test_no_repr_has_a_value() -> None:
    import roost

    theirs = roost.Secret("TOKEN", VALUE, ["api.example.org"])
    assert VALUE not in repr(spec()) + repr(a()) + repr(theirs)
    assert theirs.to_json()["value"] == VALUE


def test_the_vault(tmp_path: Path) -> None:
    vault = Vault.load(tmp_path)
    sealed = vault.seal(VALUE, "m", "TOKEN")
    assert VALUE.encode() not in sealed
    assert sealed != vault.seal(VALUE, "m", "TOKEN")
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Vault.load(tmp_path).open(sealed, "m", "TOKEN") == VALUE
    for belongs in (("n", "TOKEN"), ("m", "OTHER"), ("m",)):
        with pytest.raises(InternalError):
            vault.open(sealed, *belongs)
    path.write_text("nonsense")
    with pytest.raises(InternalError):
        Vault.load(tmp_path)


# --- the service ----------------------------------------------------------------------------------


def enforcing() -> FakeDriver:
    return FakeDriver(egress_enforced=True)


def everything_stored(d: Daemon) -> bytes:
    directory = d.host.directory
    return b"".join(p.read_bytes() for p in directory.glob("roost.db*"))


async def test_a_secret_from_its_making_to_its_end(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing()) as d:
        d.agents.written[BUNDLE] = b"the system's\n"
        m = await d.machines.create(TENANT, small())
        boundary: Any = d.keeper.process
        assert m.id not in boundary.states
        made_, new = await d.secrets.put(TENANT, m.id, spec(header="Authorization"))
        assert (made_.name, new) == ("TOKEN", True)
        state = boundary.states[m.id]
        assert state["secrets"][0]["value"] == VALUE
        (way,) = d.host.network.intercepts[m.id]
        assert (way.names, way.ports, way.user) == (("api.example.org",), (443,), m.id)
        assert (way.endpoint, way.password) == (boundary.endpoint, boundary.password)
        # its programs believe the authority, and are told so
        assert state["certificate"].encode() in d.agents.written[BUNDLE]
        assert d.agents.written[BUNDLE].startswith(b"the system's\n")
        assert d.agents.written[trust.CERTIFICATE.decode()] == state["certificate"].encode()
        live = await d.machines.awake(TENANT, m.id)
        assert live.told["REQUESTS_CA_BUNDLE"] == BUNDLE
        # rotated: the authority stays
        _, new = await d.secrets.put(TENANT, m.id, SecretSpec("TOKEN", value="another-value"))
        assert not new
        assert boundary.states[m.id]["secrets"][0]["value"] == "another-value"
        assert boundary.states[m.id]["certificate"] == state["certificate"]
        # another, by placeholder, on a port of its own
        marked, _ = await d.secrets.put(TENANT, m.id, spec("KEY", hosts=["*.example.org:8443"]))
        live = await d.machines.awake(TENANT, m.id)
        assert live.told["KEY"] == marked.placeholder == environment([marked])["KEY"]
        assert {w.ports for w in d.host.network.intercepts[m.id]} == {(443,), (8443,)}
        assert [each.name for each in await d.secrets.list(TENANT, m.id)] == ["KEY", "TOKEN"]
        for value in (VALUE, "another-value", "PRIVATE KEY"):
            assert value.encode() not in everything_stored(d)
        # it goes to sleep and comes back: all is as it was
        await d.machines.sleep(TENANT, m.id)
        d.agents.written[BUNDLE] = b"of the image\n"
        await d.machines.wake(TENANT, m.id)
        assert state["certificate"].encode() in d.agents.written[BUNDLE]
        assert len(d.host.network.intercepts[m.id]) == 2
        # the last one goes, and all with it
        await d.secrets.delete(TENANT, m.id, "KEY")
        await d.secrets.delete(TENANT, m.id, "TOKEN")
        with pytest.raises(NotFoundError):
            await d.secrets.delete(TENANT, m.id, "TOKEN")
        assert m.id not in boundary.states
        assert d.host.network.intercepts[m.id] == ()
        assert d.agents.written[BUNDLE] == b"of the image\n"
        assert trust.CERTIFICATE.decode() not in d.agents.written
        assert (await d.machines.awake(TENANT, m.id)).told == {}


async def test_one_that_is_not_root_has_its_authorities_beside_the_systems(tmp_path: Path) -> None:
    driver = FakeDriver(egress_enforced=True, isolation=Isolation.USER)
    async with daemon(tmp_path, driver=driver) as d:
        d.agents.written[BUNDLE] = b"the system's\n"
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec(header="Authorization"))
        boundary: Any = d.keeper.process
        certificate = boundary.states[m.id]["certificate"].encode()
        own = trust.OWN_BUNDLE.decode()
        assert d.agents.written[BUNDLE] == b"the system's\n"
        assert d.agents.written[own].startswith(b"the system's\n")
        assert certificate in d.agents.written[own]
        live = await d.machines.awake(TENANT, m.id)
        assert live.told["SSL_CERT_FILE"] == live.told["REQUESTS_CA_BUNDLE"] == own
        await d.secrets.delete(TENANT, m.id, "TOKEN")
        assert certificate not in d.agents.written[own]
        assert trust.OWN_CERTIFICATE.decode() not in d.agents.written


async def test_too_much_to_look_for(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing()) as d:
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec(value='"' * 3000))
        with pytest.raises(InvalidRequestError):
            await d.secrets.put(TENANT, m.id, spec("OTHER", value="'" * 3000))
        await d.secrets.put(TENANT, m.id, spec(value='"' * 3001))


async def stored(d: Daemon) -> int:
    def fn(c: sa.Connection) -> int:
        return len(rows.everything(c)) + len(rows.authorities(c))

    return await d.store.read(fn)


async def test_they_end_with_their_machine(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing()) as d:
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec())
        assert await stored(d) == 2
        await d.machines.delete(TENANT, m.id)
        assert await stored(d) == 0
        assert d.keeper.process.states == {}  # type: ignore[attr-defined]
        with pytest.raises(ConflictError):
            await d.secrets.put(TENANT, m.id, spec())


async def test_a_fork_has_none_unless_asked(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing(), memory=True) as d:
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec())
        boundary: Any = d.keeper.process
        (plain,) = await d.machines.fork(TENANT, m.id, ForkMachine())
        assert await d.secrets.list(TENANT, plain.id) == []
        assert d.host.network.intercepts[plain.id] == ()
        assert plain.id not in boundary.states
        children = await d.machines.fork(TENANT, m.id, ForkMachine(2, inherit_secrets=True))
        for child in children:
            assert boundary.states[child.id] == boundary.states[m.id]
            assert d.host.network.intercepts[child.id][0].user == child.id
            assert len(await d.secrets.list(TENANT, child.id)) == 1
        await d.secrets.put(TENANT, m.id, SecretSpec("TOKEN", value="another-value"))
        assert boundary.states[children[0].id]["secrets"][0]["value"] == VALUE
        snapshot = await d.snapshots.create(TENANT, m.id, "s")
        other = await d.machines.create(TENANT, CreateMachine(snapshot=snapshot.id))
        assert await d.secrets.list(TENANT, other.id) == []


async def test_a_new_daemon_knows_them(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing()) as d:
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec())
        known = d.keeper.environment(m.id)
        await d.kill()
        again = await Daemon.start(d.host, build=False)
        try:
            assert again.keeper.environment(m.id) == known
            assert d.host.network.intercepts[m.id][0].user == m.id
            everything = await again.keeper._everything()
            assert everything[m.id]["secrets"][0]["value"] == VALUE
        finally:
            await again.machines.delete(TENANT, m.id)
            d.engine, d.warm, d.templates = again.engine, again.warm, again.templates


async def test_another_key_stops_nobody(tmp_path: Path) -> None:
    """Hosts with secrets stay closed; all else goes on, and a secret can be set again."""
    async with daemon(tmp_path, driver=enforcing()) as d:
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec())
        await d.kill()
        key = next(d.host.directory.rglob(KEY_FILE))
        for damaged in ("nonsense", "00" * 32):
            key.write_text(damaged)
            again = await Daemon.start(d.host, build=False)
            assert await again.keeper._everything() == {}
            d.host.network.intercepts.clear()
            (way,) = await again.keeper.intercepts(m.id)
            assert way.names == ("api.example.org",)
            if damaged == "nonsense":
                await again.kill()
        try:
            await again.secrets.put(TENANT, m.id, spec(value="another-value"))
            state = again.keeper.process.states[m.id]  # type: ignore[attr-defined]
            assert state["secrets"][0]["value"] == "another-value"
        finally:
            await again.machines.delete(TENANT, m.id)
            d.engine, d.warm, d.templates = again.engine, again.warm, again.templates


async def test_a_boundary_that_does_not_answer(tmp_path: Path) -> None:
    """The network is told all the same; whoever asks again finishes it."""
    async with daemon(tmp_path, driver=enforcing()) as d:
        boundary: Any = d.keeper.process
        m = await d.machines.create(TENANT, small())
        boundary.up = False
        with pytest.raises(UnavailableError):
            await d.secrets.put(TENANT, m.id, spec())
        assert len(d.host.network.intercepts[m.id]) == 1
        boundary.up = True
        await d.secrets.put(TENANT, m.id, spec())
        assert m.id in boundary.states
        boundary.up = False
        with pytest.raises(UnavailableError):
            await d.secrets.delete(TENANT, m.id, "TOKEN")
        assert d.host.network.intercepts[m.id] == ()
        boundary.up = True
        await d.secrets.delete(TENANT, m.id, "TOKEN")
        assert m.id not in boundary.states
        with pytest.raises(NotFoundError):
            await d.secrets.delete(TENANT, m.id, "TOKEN")
        await d.secrets.put(TENANT, m.id, spec())
        boundary.up = False
        await d.machines.delete(TENANT, m.id)
        assert await stored(d) == 0


async def test_one_frozen_meanwhile_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(egress_enforced=True, memory_snapshot=True)
    async with daemon(tmp_path, FakeClock(), memory=True, driver=driver) as d:
        m = await d.machines.create(
            TENANT, small(autosleep_seconds=60, hibernate_after_seconds=600)
        )
        refresh = d.keeper.refresh

        async def slow(machine_id: str) -> None:
            await refresh(machine_id)
            await passes(d, 61)
            assert (await d.machines.get(TENANT, m.id)).frozen

        monkeypatch.setattr(d.keeper, "refresh", slow)
        await d.secrets.put(TENANT, m.id, spec())
        assert trust.CERTIFICATE.decode() in d.agents.written
        assert len(d.host.network.intercepts[m.id]) == 1


async def test_what_was_read_last_is_told_last(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing()) as d:
        boundary: Any = d.keeper.process
        m = await d.machines.create(TENANT, small())
        await d.secrets.put(TENANT, m.id, spec())
        tell, waits = boundary.tell, [0.05, 0.0]

        async def slow(machines: Any) -> None:
            await asyncio.sleep(waits.pop(0))
            await tell(machines)

        boundary.tell = slow
        first = asyncio.create_task(d.keeper.refresh(m.id))
        await asyncio.sleep(0.02)
        await d.store.write(
            lambda c: d.keeper.put(c, TENANT, m.id, SecretSpec("TOKEN", value="another-value"))
        )
        await asyncio.gather(first, d.keeper.refresh(m.id))
        assert boundary.states[m.id]["secrets"][0]["value"] == "another-value"


async def test_given_at_create(tmp_path: Path) -> None:
    async with daemon(tmp_path, driver=enforcing()) as d:
        d.secrets.check([spec(), spec("OTHER")])
        for wrong in ([spec(), spec()], [spec(value=None)], [spec(value="short")]):
            with pytest.raises(InvalidRequestError):
                d.secrets.check(wrong)
        m = await d.machines.create(TENANT, small(), wait=False)
        await d.secrets.give(m, [spec()], wait=False)
        await d.machines.awake(TENANT, m.id)
        assert d.keeper.process.states[m.id]  # type: ignore[attr-defined]
        n = await d.machines.create(TENANT, small())
        with pytest.raises(InvalidRequestError):
            await d.secrets.give(n, [spec(header="Host")], wait=True)
        await d.engine.settled(n.id)
        assert (await d.machines.get(TENANT, n.id)).phase == "destroyed"


async def test_who_cannot_have_one(tmp_path: Path) -> None:
    async with daemon(tmp_path) as d:
        m = await d.machines.create(TENANT, small())
        with pytest.raises(UnsupportedError):
            await d.secrets.put(TENANT, m.id, spec())
    (tmp_path / "other").mkdir()
    async with daemon(tmp_path / "other", driver=enforcing()) as d:
        m = await d.machines.create(TENANT, small())
        for call in (
            d.secrets.put(OTHER, m.id, spec()),
            d.secrets.list(OTHER, m.id),
            d.secrets.delete(OTHER, m.id, "TOKEN"),
        ):
            with pytest.raises(NotFoundError):
                await call
        d.keeper.process.installed = False  # type: ignore[attr-defined]
        with pytest.raises(UnsupportedError):
            await d.secrets.put(TENANT, m.id, spec())
        assert await stored(d) == 0
