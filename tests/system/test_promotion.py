"""Up the ladder: the same machine, with its id, key, disk, ports and policy, on a rung that stands on more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from roost import ConflictError, Machine
from roost.errors import UnsupportedError
from roost.guest import Guests
from roost.storage import mounting

from .conftest import Daemon

pytestmark = pytest.mark.system


def create(**options: Any) -> Machine:
    return Machine.create(**{"memory_mib": 256, **options})


@contextlib.contextmanager
def made(daemon: Daemon, **options: Any) -> Iterator[Machine]:
    with create(key="climber", name="climber", egress={"allow": ["198.51.100.7"]}, **options) as m:
        m.exec("mkdir -p /srv/app && echo kept > /srv/app/note && id -u > /srv/app/uid", check=True)
        m.files.write("/etc/profile.d/mine.sh", "export MINE=1\n")
        yield m


def unchanged(m: Machine, before: dict[str, Any]) -> None:
    now = m.to_json()
    same = (
        "machine_id",
        "key",
        "name",
        "labels",
        "egress",
        "template",
        "image_digest",
        "storage_gib",
    )
    assert [now[name] for name in same] == [before[name] for name in same]
    told = m.exec("cat /srv/app/note /srv/app/uid /etc/profile.d/mine.sh", check=True).stdout
    assert told.split() == ["kept", "0", "export", "MINE=1"]


def test_from_runc_to_gvisor_while_it_runs(daemon: Daemon) -> None:
    with made(daemon, driver="runc") as m:
        before = m.to_json()
        shown = m.ports.create(8080)
        m.executions.start("sleep 1000")
        m.promote(driver="gvisor")
        assert (m.phase, m.isolation["driver"]) == ("running", "gvisor")
        assert m.isolation["claim"] == "sandboxed by gVisor"
        unchanged(m, before)
        assert "gVisor" in m.exec("dmesg", check=True).stdout
        assert m.ports.list() == [shown]
        assert not [e for e in m.executions.list() if e.status == "running"]
        again = m.to_json()["status"]["revision"]
        assert m.promote(driver="gvisor").to_json()["status"]["revision"] == again
        assert m.promote(isolation="container").to_json()["status"]["revision"] == again
        with pytest.raises(ConflictError) as refused:
            m.promote(driver="runc")
        assert refused.value.code == "RUNG_LOWER"
        assert "promoted" in [each["event"] for each in m.logs()]


def test_from_gvisor_asleep_with_memory_to_a_microvm(daemon: Daemon, guests: Guests) -> None:
    """And from then on the host does not mount its disk any more."""
    with made(daemon, driver="gvisor") as m:
        before = m.to_json()
        disk = daemon.data_dir / "pool/disks" / f"{m.id}.ext4"
        m.exec("echo in memory alone > /dev/shm/lost", check=True)
        m.sleep(tier="hibernated")
        m.promote(isolation="microvm")
        assert (m.phase, m.tier, m.isolation["level"]) == ("sleeping", "stopped", 3)
        assert not known(disk)["raw_written"]  # nothing has run in it yet
        m.wake()
        assert m.isolation["driver"] == "qemu"
        unchanged(m, before)
        assert m.exec("uname -r", check=True).stdout != ""
        assert not m.exec("test -e /dev/shm/lost").ok
        assert known(disk)["raw_written"]
        with pytest.raises(ConflictError) as refused:
            m.promote(isolation="container")
        assert refused.value.code == "RUNG_LOWER"
        m.sleep(tier="stopped")
        with pytest.raises(UnsupportedError), mounting.attached(disk):
            pass
        child = m.fork()
        assert isinstance(child, Machine)
        with child:
            assert child.isolation["driver"] == "qemu"
            assert child.exec("cat /srv/app/note", check=True).stdout.split() == ["kept"]


def test_from_one_user_to_root_of_its_own(daemon: Daemon) -> None:
    with create(driver="user", key="climber") as m:
        assert m.isolation["claim"].startswith("isolated workspace")
        m.exec("echo kept > ~/note && id -u >> ~/note", check=True)
        m.promote(isolation="container")
        assert m.isolation["level"] == 2
        assert m.exec(
            "cat /home/user/note && stat -c %u /home/user/note", check=True
        ).stdout.split() == [
            "kept",
            "1000",
            "1000",
        ]
        assert m.exec("id -u && touch /srv/mine", check=True).stdout.strip() == "0"
        with pytest.raises(ConflictError) as refused:
            m.promote(isolation="user")
        assert refused.value.code == "RUNG_LOWER"


def test_the_contract_is_told_and_nothing_below_says_what_it_is_not(daemon: Daemon) -> None:
    from roost import Client

    told = Client().capabilities()
    rungs = {each["driver"]: each for each in told["rungs"]}
    assert set(rungs) >= {"workspace", "user", "runc", "gvisor", "qemu"}
    assert all(rungs[each]["available"] for each in ("workspace", "user", "runc", "gvisor")), rungs
    for driver, rung in rungs.items():
        assert ("sandboxed" in json.dumps(rung)) == (rung["level"] >= 2), driver
        lines = (*rung["can"], *rung["defends_against"], *rung["does_not"])
        assert ("measured" in {each["known"] for each in lines}) == rung["available"], driver
    with create(driver="workspace", unrestricted=True) as m:
        assert told["advice"] in m.warnings[0]
        assert "unrestricted" in [each["event"] for each in m.logs()]
        assert m.exec("ulimit -n", check=True).stdout.strip() != "4096"


def test_a_directory_gets_a_disk_with_all_that_was_in_it(daemon: Daemon) -> None:
    with create(driver="workspace", key="climber") as m:
        m.exec("mkdir -p a/deep && echo kept > a/deep/note && ln -s /etc/passwd link", check=True)
        m.exec(
            "printf '#!/bin/sh\necho ran\n' > a/run && chmod 755 a/run && mkfifo fifo", check=True
        )
        home = daemon.data_dir / "pool/homes" / m.id
        assert home.exists()
        before = m.id, m.key
        m.promote(driver="runc")
        assert (m.id, m.key, m.phase, m.isolation["driver"]) == (*before, "running", "runc")
        found = m.exec(
            "cd /root && cat a/deep/note && a/run && readlink link && stat -c %U a", check=True
        )
        assert found.stdout.split() == ["kept", "ran", "/etc/passwd", "root"]
        assert not m.exec("test -e /root/fifo").ok
        assert not home.exists()
        assert not (daemon.data_dir / "pool/disks" / f"{m.id}.tar").exists()
        m.exec("echo more >> /root/a/deep/note", check=True)
        m.sleep()
        m.wake()
        assert m.exec("cat /root/a/deep/note", check=True).stdout.split() == ["kept", "more"]
        with pytest.raises(ConflictError) as refused:
            m.promote(driver="workspace")
        assert refused.value.code == "RUNG_LOWER"


def test_a_daemon_that_is_killed_on_the_way_finds_it_on_one_of_the_two(daemon: Daemon) -> None:
    with made(daemon, driver="runc") as m:
        before = m.to_json()
        for delay in (0.02, 0.3):
            with daemon.http(timeout=delay) as http, contextlib.suppress(Exception):
                http.post(f"/v1/machines/{m.id}/promote", json={"driver": "gvisor"})
            daemon.restart(9)
            m.refresh()
            assert m.isolation["driver"] in ("runc", "gvisor")
            unchanged(m, before)
        m.promote(driver="gvisor")
        unchanged(m, before)


def known(disk: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(disk.with_suffix(".json").read_text())
    return found
