"""The raw runtime on the very bundle, disk and namespace that the driver would use: what Roost is compared with.

Everything up to the runtime's own command is prepared outside the clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from roost import ids
from roost.drivers.container import ContainerDriver, _put_address_back
from roost.drivers.gvisor import GVisorDriver
from roost.drivers.interface import NetworkSlot, Root, Size, StartSpec
from roost.drivers.runc import RuncDriver
from roost.egress.policy import Policy
from roost.host import console, syscalls
from roost.network import SlotNetwork
from roost.settings import Settings
from roost.storage import PoolStorage
from roost.storage.interface import Image

DRIVERS: dict[str, type[ContainerDriver]] = {"gvisor": GVisorDriver, "runc": RuncDriver}


def runtime_command(driver: str, machine_id: str) -> list[str]:
    """The runtime's own command line for a machine of the running daemon."""
    runtime = Settings().run_dir / "machines" / driver / machine_id / "runtime"
    return ["runsc" if driver == "gvisor" else "runc", f"--root={runtime}"]


def exec_true(driver: str, machine_id: str) -> list[str]:
    """``RUNTIME exec`` of ``/bin/true`` in a machine of the running daemon. The driver removes a bundle's
    ``config.json`` once the machine runs, and runc wants a process from somewhere."""
    if driver == "gvisor":
        return [*runtime_command(driver, machine_id), "exec", machine_id, "/bin/true"]
    process = Path(tempfile.gettempdir(), "roost-bench-process.json")
    process.write_text(
        json.dumps(
            {
                "args": ["/bin/true"],
                "cwd": "/",
                "env": ["PATH=/usr/bin:/bin"],
                "user": {"uid": 0, "gid": 0},
            }
        )
    )
    return [*runtime_command(driver, machine_id), "exec", "--process", str(process), machine_id]


class RawRuntime:
    """Starts machines of one driver by hand. One slot, one machine at a time."""

    def __init__(self, driver: str) -> None:
        self.settings = Settings(
            run_dir=Path("/run/roost-bench"), network_cidr="10.204.0.0/16", network_pool=0
        )
        self.driver = DRIVERS[driver](self.settings)
        self.storage = PoolStorage(self.settings)
        self.network = SlotNetwork(self.settings)
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self.storage.open()
        await self.network.open({})
        self.image: Image = max(await self.storage.images(), key=lambda i: i.path.stat().st_mtime)
        self.slot: NetworkSlot = await self.network.take("bench", Policy())

    def close(self) -> None:
        self.loop.run_until_complete(self._close())
        self.loop.close()

    async def _close(self) -> None:
        await self.network.purge()
        await self.storage.close()
        await asyncio.sleep(0)  # what was cancelled ends

    def first_exec(self) -> float:
        """Milliseconds of ``RUNTIME run --detach`` and ``RUNTIME exec /bin/true`` one after the other."""
        machine_id = ids.new()
        disk = self.loop.run_until_complete(self.storage.clone(self.image, machine_id, 10))
        spec = StartSpec(
            machine_id, "bench", Size(1, 1024, 10), Root(image=disk), self.slot, "0" * 64, "0" * 32
        )
        took: list[float] = []
        self.driver._launch = lambda *args: self._timed(took, *args)  # type: ignore[method-assign]
        failures: list[BaseException] = []

        def launch() -> None:
            try:
                _, pidfd, fifo = self.driver._start(spec, None)
                os.close(pidfd)
                fifo.close()
            except BaseException as exc:
                failures.append(exc)

        try:
            thread = threading.Thread(target=launch)
            thread.start()
            thread.join()
        finally:
            self.loop.run_until_complete(self.driver.remove(machine_id))
            self.loop.run_until_complete(self.storage.delete(machine_id))
        if failures:
            raise failures[0]
        return took[0]

    def _timed(
        self,
        took: list[float],
        spec: StartSpec,
        directory: Path,
        command: list[str],
        fifo: console.Console,
    ) -> int:
        """In the driver's place, in its own thread, namespaces and mounts: just the two commands."""
        with self.slot.netns.open() as namespace:
            syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNET)
        _put_address_back(self.slot.interface, self.slot.address, self.slot.gateway)
        self.driver._in_namespace()
        output = fifo.open_for_machine()
        try:
            begun = time.perf_counter()
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=True
            )
            subprocess.run(
                [*command[: command.index("run")], "exec", spec.machine_id, "/bin/true"],
                cwd="/",
                check=True,
            )
            took.append((time.perf_counter() - begun) * 1e3)
        finally:
            os.close(output)
        return int((directory / "pid").read_text())
