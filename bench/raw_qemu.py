"""The raw VMM on the very snapshot, disk and flags that the driver uses: what microVMs are compared with.

A clock starts when QEMU's process is made, and stops with the agent's first answer. No jail, no group, no
network rules, no checks, no renewal; a tap where the snapshot had one, since without it the state does not load.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
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
    private_mib: float  # of the VMM, after it
    saved: float = 0.0  # how long a full save of the stopped guest took, where that was asked


class RawVmm:
    """Restores of one snapshot, one after the other; all it makes lies in ``work``, on the snapshot's file
    system."""

    def __init__(self, snapshot: Path, guest: Path, token: str) -> None:
        """``snapshot``: as the pool has it; ``guest``: the directory of the guest that it was made with."""
        self.manifest = manifests.read(snapshot / "memory")
        self._snapshot = snapshot / "memory" / manifests.MEMORY
        self._disk = snapshot / "disk.ext4"
        self._guest = guest
        self._token = token
        self._work = Path(tempfile.mkdtemp(prefix=".raw-", dir=snapshot))
        self._number = 0

    def close(self) -> None:
        shutil.rmtree(self._work)

    async def run(self, save_after: str = "") -> Restored:
        """``save_after``: a shell command, and then the guest is saved whole."""
        self._number += 1
        disk = self._work / "disk"
        files.reflink(self._disk, disk, durable=False)
        begun = time.monotonic()
        with contextlib.ExitStack() as held:
            process = self._start(held, disk)
            held.callback(process.wait)
            held.callback(process.kill)
            return await self._drive(process, begun, save_after)

    def _start(self, held: contextlib.ExitStack, disk: Path) -> subprocess.Popen[bytes]:
        saved = self.manifest.fingerprint
        fds = options.Descriptors(
            qmp=self._listen(held, "qmp"),
            agent=self._listen(held, "agent"),
            disk=_opened(held, disk, os.O_RDWR),
            modules=_opened(held, self._guest / "modules.img", os.O_RDONLY),
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
        argv[argv.index(options.BIOS)] = str(self._guest / "firmware")
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

    async def _drive(
        self, process: subprocess.Popen[bytes], begun: float, save_after: str
    ) -> Restored:
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
            answered = ms()
            private = private_mib(process.pid)
            saved = await self._save(qmp, client, save_after) if save_after else 0.0
            return Restored(monitor, loaded, running, ready, answered, private, saved)
        finally:
            await client.close()
            await dialler.close()
            await qmp.close()

    async def _save(self, qmp: Qmp, client: AgentClient, after: str) -> float:
        argv = ["/bin/sh", "-c", after]
        await client.run(pb.StartRequest(execution_id=f"s{self._number}", argv=argv))
        target = self._work / "saved"
        begun = time.monotonic()
        await qmp.execute("stop")
        await qmp.execute("migrate", {"uri": f"file:{target}"})
        while (await qmp.execute("query-migrate")).get("status") != "completed":
            await asyncio.sleep(0.001)
        fd = os.open(target, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        took = (time.monotonic() - begun) * 1000
        target.unlink()
        return took


def _opened(held: contextlib.ExitStack, path: Path, flags: int) -> int:
    return _closed(held, os.open(path, flags | os.O_CLOEXEC))


def _closed(held: contextlib.ExitStack, fd: int) -> int:
    held.callback(os.close, fd)
    return fd


def private_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_\w+:\s+(\d+)", text, re.M)) / 1024
