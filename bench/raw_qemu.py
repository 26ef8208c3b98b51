"""The raw VMM on the very snapshot, disk and flags that the driver uses: what microVMs are compared with.

A clock starts when QEMU's process is made, and stops with the agent's first answer. No jail, no group, no
network rules, no checks; a tap where the snapshot had one, since without it the state does not load.

    python -m bench.raw_qemu SNAPSHOT_DIRECTORY DISK [--runs N] [--memory-mib N] [--token TOKEN]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from roost.agent.client import AgentClient
from roost.agent.dialler import Dialler, SocketStream
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.qemu import capture, options
from roost.drivers.qemu import manifest as manifests
from roost.drivers.qemu.qmp import Qmp
from roost.drivers.qemu.tap import open_tap
from roost.host import files

VMM = "qemu-system-x86_64"


@dataclass
class Restored:
    """Milliseconds since the process was made."""

    monitor: float
    loaded: float
    running: float
    ready: float
    first_exec: float
    private_mib: float  # after it


class RawVmm:
    """Restores of one snapshot, one after the other; all it makes lies in ``work``, on the snapshot's file
    system."""

    def __init__(self, snapshot: Path, disk: Path, modules: Path | None, token: str) -> None:
        self.manifest = manifests.read(snapshot)
        self._snapshot = snapshot / manifests.MEMORY
        self._disk = disk
        self._modules = modules
        self._token = token
        self._work = Path(tempfile.mkdtemp(prefix=".raw-", dir=snapshot.parent))
        self._number = 0

    def close(self) -> None:
        shutil.rmtree(self._work)

    async def run(self) -> Restored:
        self._number += 1
        disk = self._work / "disk"
        files.reflink(self._disk, disk, durable=False)
        begun = time.monotonic()
        with contextlib.ExitStack() as held:
            process = self._start(held, disk)
            held.callback(process.wait)
            held.callback(process.kill)
            return await self._drive(process, begun)

    def _start(self, held: contextlib.ExitStack, disk: Path) -> subprocess.Popen[bytes]:
        saved = self.manifest.fingerprint
        fds = options.Descriptors(
            qmp=self._listen(held, "qmp"),
            agent=self._listen(held, "agent"),
            disk=_opened(held, disk, os.O_RDWR),
            modules=_opened(held, self._modules, os.O_RDONLY) if self._modules else None,
            tap=_closed(held, open_tap(f"raw{os.getpid()}")) if saved["mac"] else None,
        )
        model, *features = str(saved["cpu_model"]).split(",")
        argv = options.arguments(
            options.Vmm(
                memory_mib=int(saved["memory_mib"]),
                start=options.SnapshotMemory(self.manifest.pages_offset),
                fds=fds,
                mac=saved["mac"] or "02:00:00:00:00:01",
                cpu=options.Cpu(model, tuple(features), int(saved["vcpus"])),
            )
        )
        memory = json.dumps(str(self._snapshot))
        argv = [word.replace(json.dumps(options.MEMORY), memory) for word in argv]
        firmware = argv.index("-L")
        del argv[firmware : firmware + 2]
        argv[0] = VMM
        return subprocess.Popen(
            argv, pass_fds=fds.all(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def _listen(self, held: contextlib.ExitStack, name: str) -> int:
        path = self._work / name
        path.unlink(missing_ok=True)
        sock = held.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(path))
        sock.listen(16)
        return sock.fileno()

    async def _drive(self, process: subprocess.Popen[bytes], begun: float) -> Restored:
        def ms() -> float:
            return (time.monotonic() - begun) * 1000

        qmp = await Qmp.connect(self._work / "qmp", 30)
        stream = await SocketStream.open(self._work / "agent")
        streams = [stream]

        async def opened() -> SocketStream:
            return streams.pop() if streams else await SocketStream.open(self._work / "agent")

        dialler = Dialler(self._work / "grpc", self._token, opened)
        await dialler.start()
        client = AgentClient(dialler.target, self._token)
        try:
            monitor = ms()
            await capture.load(qmp, str(self._snapshot))
            loaded = ms()
            await qmp.execute("cont")
            running = ms()
            await client.wait_ready(60)
            ready = ms()
            await client.run(pb.StartRequest(execution_id=f"e{self._number}", argv=["true"]))
            return Restored(monitor, loaded, running, ready, ms(), _private_mib(process.pid))
        finally:
            await client.close()
            await dialler.close()
            await qmp.close()


def _opened(held: contextlib.ExitStack, path: Path, flags: int) -> int:
    return _closed(held, os.open(path, flags | os.O_CLOEXEC))


def _closed(held: contextlib.ExitStack, fd: int) -> int:
    held.callback(os.close, fd)
    return fd


def _private_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+)", text, re.M)) / 1024


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("disk", type=Path)
    parser.add_argument("--modules", type=Path)
    parser.add_argument("--token", default="roost-guest")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    raw = RawVmm(arguments.snapshot, arguments.disk, arguments.modules, arguments.token)
    try:
        rows = [await raw.run() for _ in range(arguments.runs)]
    finally:
        raw.close()
    for name in Restored.__dataclass_fields__:
        samples = [getattr(row, name) for row in rows]
        print(f"{name:12} median {statistics.median(samples):8.1f}  least {min(samples):8.1f}")


if __name__ == "__main__":
    asyncio.run(_main())
