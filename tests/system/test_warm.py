"""Warm machines through a real daemon, on every rung of this host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from roost import Client, Machine

from . import clocks
from .conftest import Daemon

pytestmark = pytest.mark.system

# The smallest a kind can be, and no other test's.
SIZE = {"vcpu": 0.5, "memory_mib": 256}


@pytest.fixture(scope="module")
def warm(daemon: Daemon) -> Iterator[Daemon]:
    daemon.delete_machines()
    daemon.env["ROOST_WARM_MACHINES"] = "1"
    daemon.restart()
    try:
        yield daemon
    finally:
        daemon.env["ROOST_WARM_MACHINES"] = "0"
        daemon.restart()


def until_ready(count: int) -> None:
    deadline = time.monotonic() + 120
    while Client().host()["capacity"]["warm_machines"]["ready"] < count:
        assert time.monotonic() < deadline, "no warm machine was made"
        time.sleep(0.2)


def taken(m: Machine) -> bool:
    return any("warm" in each["message"] for each in m.logs())


def take(**options: Any) -> Machine:
    """Of this kind: those that are ready may be of one that was asked for before."""
    deadline = time.monotonic() + 120
    while not taken(m := Machine.create(**options)):
        m.destroy()
        assert time.monotonic() < deadline, "no warm machine was made"
        time.sleep(2)  # they are made once nobody asks
    return m


@pytest.mark.parametrize("driver", ["gvisor", "runc", "qemu"])
def test_one_is_handed_out_and_is_its_owners(warm: Daemon, driver: str) -> None:
    rungs = {rung["driver"]: rung for rung in Client().host()["rungs"]}
    if not rungs.get(driver, {}).get("available"):
        pytest.skip(f"{driver} is not available here")
    first = Machine.create(driver=driver, **SIZE)
    second = None
    try:
        assert not taken(first)
        until_ready(1)
        name = "mine" if driver == "qemu" else None  # elsewhere a machine that runs keeps its name
        second = take(driver=driver, name=name, env={"COLOUR": "red"}, **SIZE)
        said = second.exec("hostname; cat /etc/hostname; echo $COLOUR; cat /etc/machine-id").check()
        hostname, in_etc, colour, machine_id = said.stdout.split()
        assert hostname == in_etc == (name or second.id)
        assert colour == "red"
        assert machine_id != first.exec("cat /etc/machine-id").stdout.strip()
        assert clocks.is_right(second)
        second.exec("echo kept >/root/file; sync").check()
        second.sleep()
        assert second.exec("cat /root/file; hostname").stdout.split() == ["kept", hostname]
    finally:
        first.destroy()
        if second is not None:
            second.destroy()


def test_a_daemon_that_dies_leaves_none_behind(warm: Daemon) -> None:
    m = Machine.create(driver="runc", **SIZE)
    try:
        until_ready(1)
        warm.restart(sig=9)
        with warm.http() as http:
            held = http.get("/v1/host").json()["capacity"]["machines_running"]
        assert held == 1
        assert m.exec("true").exit_code == 0
    finally:
        m.destroy()
