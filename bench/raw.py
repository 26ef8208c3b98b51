"""The raw runtime on the very bundle, disk and namespace that the driver would use: what Roost is compared with.

Everything up to the runtime's own command is prepared outside the clock.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from pathlib import Path

from roost import ids
from roost.drivers.container import ContainerDriver, _put_address_back
from roost.drivers.gvisor import GVisorDriver
from roost.drivers.interface import NetworkSlot, Root, Size, StartSpec
from roost.drivers.runc import RuncDriver
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


class RawRuntime:
    """Starts machines of one driver by hand. One slot, one machine at a time."""

    def __init__(self, driver: str) -> None:
        self.settings = Settings(run_dir=Path("/run/roost-bench"), network_cidr="10.204.0.0/16", network_pool=0)
        self.driver = DRIVERS[driver](self.settings)
        self.storage = PoolStorage(self.settings)
        self.network = SlotNetwork(self.settings)
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._open())

    async def _open(self) -> None:
        await self.storage.open()
        await self.network.open({})
        self.image: Image = max(await self.storage.images(), key=lambda i: i.path.stat().st_mtime)
        self.slot: NetworkSlot = await self.network.take("bench")

    def close(self) -> None:
        self.loop.run_until_complete(self.network.purge())
        self.loop.close()

    def first_exec(self) -> float:
        """Milliseconds of ``RUNTIME run --detach`` and ``RUNTIME exec /bin/true`` one after the other."""
        machine_id = ids.new()
        disk = self.loop.run_until_complete(self.storage.clone(self.image, machine_id, 10))
        spec = StartSpec(machine_id, "bench", Size(1, 1024, 10), Root(image=disk), self.slot, "0" * 64)
        result: list[float | BaseException] = []

        def launch() -> None:
            try:
                result.append(self._timed(spec, disk))
            except BaseException as exc:
                result.append(exc)

        try:
            thread = threading.Thread(target=launch)
            thread.start()
            thread.join()
        finally:
            self.loop.run_until_complete(self.driver.remove(machine_id))
            self.loop.run_until_complete(self.storage.delete(machine_id))
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    def _timed(self, spec: StartSpec, disk: Path) -> float:
        driver = self.driver
        driver._prepare_host()
        directory = driver._directory(spec.machine_id)
        directory.mkdir(parents=True, mode=0o700)
        driver._prepare_disk(spec, disk, directory / "rootfs")
        driver._write_bundle(spec, directory)
        fifo = console.Console(directory / "console")
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        with self.slot.netns.open() as namespace:
            syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNET)
        _put_address_back(self.slot.interface, self.slot.address, self.slot.gateway)
        driver._in_namespace()
        output = fifo.open_for_machine()
        command = driver._command(directory, spec.machine_id)
        try:
            begun = time.perf_counter()
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True)
            subprocess.run([*command[:2], "exec", spec.machine_id, "/bin/true"], check=True)
            return (time.perf_counter() - begun) * 1e3
        finally:
            os.close(output)
            fifo.close()
