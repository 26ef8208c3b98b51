"""The core of both versions on a microVM: made natively, for nothing these clients say chooses a rung."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from roost.guest import Guests
from tests.system.conftest import Daemon

from .conftest import COUNTER, READ, V1, V2, Client

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def vm(daemon: Daemon, guests: Guests) -> Iterator[str]:
    with daemon.http(timeout=300) as http:
        made = http.post(
            "/v1/machines",
            json={"key": "boxd-vm", "isolation": "microvm", "memory_mib": 512, "autosleep": None},
        )
        made.raise_for_status()
        yield "boxd-vm"
        http.delete(f"/v1/machines/{made.json()['machine_id']}")


@pytest.mark.parametrize("version", [V1, V2])
def test_core(client: Callable[..., Client], version: str, vm: str) -> None:
    boxd = client(version)
    if version == V1:
        boxd.run("vm = boxd.box.get(name)", name=vm)
        run = "vm.exec('sh', '-c', c)"
    else:
        run = "boxd.machines.exec('boxd-vm', c)"

    def sh(command: str, run: str = run) -> str:
        boxd.run(f"r = {run}", c=command)
        assert boxd.value("r.exit_code") == 0
        return str(boxd.value("r.stdout"))

    assert sh("echo here") == "here\n"
    sh("kill $(cat /run/pid 2>/dev/null) 2>/dev/null; rm -f /run/counter")
    sh(f"nohup sh -c '{COUNTER}' >/dev/null 2>&1 & echo $! > /run/pid; sleep 2")
    before = int(sh(READ))
    if version == V1:
        boxd.value("vm.write_file(b'data', '/root/file')")
        assert boxd.value("vm.read_file('/root/file')") == {"bytes": "ZGF0YQ=="}
        boxd.value("vm.suspend()")
        boxd.value("vm.resume()")
        assert int(sh(READ)) >= before
        boxd.run("fork = boxd.box.fork(name, 'boxd-vm-fork')", name=vm)
        assert int(sh(READ, "fork.exec('sh', '-c', c)")) >= before
        boxd.value("fork.destroy()")
        return
    boxd.value("boxd.machines.files.upload(n, '/root/file', 'data')", n=vm)
    assert boxd.value("boxd.machines.files.download(n, '/root/file')", n=vm) == {
        "bytes": "ZGF0YQ=="
    }
    for sleep, wake in (("pause", "resume"), ("hibernate", "wake")):
        boxd.value(f"boxd.machines.{sleep}(n)", n=vm)
        boxd.value(f"boxd.machines.{wake}(n)", n=vm)
        assert int(sh(READ)) >= before
    boxd.value("boxd.machines.checkpoints.create(n, 'before')", n=vm)
    at = int(sh(READ))
    sh("touch /root/later; sleep 4")
    boxd.value("boxd.machines.checkpoints.restore(n, 'before')", n=vm)
    assert int(sh(READ)) < at + 60
    time.sleep(1)
    assert int(sh(READ)) > at
    sh("test ! -e /root/later")
    boxd.value("boxd.machines.checkpoints.delete(n, 'before')", n=vm)
    boxd.run("fork = boxd.machines.fork(n, 'boxd-vm-fork')", n=vm)
    assert int(sh(READ, "boxd.machines.exec(fork.id, c)")) >= at
    boxd.value("boxd.machines.delete(fork.id)")
