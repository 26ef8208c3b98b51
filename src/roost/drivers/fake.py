"""A driver in memory, for tests of the layers above: scriptable failures, hangs, deaths and leaks."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from roost.drivers.interface import (
    Capabilities,
    Capture,
    Driver,
    Exit,
    ForkKind,
    Handle,
    Isolation,
    Probe,
    Size,
    StartSpec,
    Usage,
)
from roost.errors import ConflictError, MachineError, UnsupportedError

_BOOT = "fake-boot"


@dataclass(slots=True)
class FakeMachine:
    spec: StartSpec
    handle: Handle
    size: Size
    exit: asyncio.Future[Exit]
    frozen: bool = False
    disk_frozen: bool = False
    restored_from: Path | None = None
    token: str = ""  # the agent's: of the machine captured until it is renewed
    used_token: str = ""  # what the driver was told that it is


@dataclass(slots=True)
class Script:
    """Per method name: errors are raised once each, in order; a hang waits for its event."""

    errors: dict[str, list[BaseException]] = field(default_factory=dict)
    hangs: dict[str, asyncio.Event] = field(default_factory=dict)
    leave_debris: bool = False  # a failed start forgets to clean up, as a crash would


class FakeDriver(Driver):
    """``machines`` is the host: a second FakeDriver given the same dict adopts what the first made."""

    name = "fake"
    renames = True
    volumes = True

    def __init__(
        self,
        *,
        machines: dict[str, FakeMachine] | None = None,
        memory_snapshot: bool = False,
        available: bool = True,
        target: str = "127.0.0.1:1",
        bakes: bool = False,
        first_token: str = "",
        **is_: Any,
    ) -> None:
        """``is_``: capabilities that are others than a container's."""
        self.machines = {} if machines is None else machines
        self.debris: set[str] = set()
        self.known: set[str] = set()  # started or adopted by this daemon
        self.calls: Counter[str] = Counter()
        self.script = Script()
        self.target = target
        self._memory = memory_snapshot
        self._available = available
        self.refused: Probe | None = None  # what ``probe`` says instead
        self.bakes = bakes
        self.first_token = first_token
        self.depends: dict[str, Any] = {}  # ``traits``
        self.files: dict[str, bytes] = {}  # ``given``
        self._is = is_
        self._pids = itertools.count(1000)

    async def _enter(self, method: str) -> None:
        self.calls[method] += 1
        if (event := self.script.hangs.get(method)) is not None:
            await event.wait()
        if errors := self.script.errors.get(method):
            raise errors.pop(0)

    # --- scripting -----------------------------------------------------------------------------

    def fail(self, method: str, *errors: BaseException) -> None:
        self.script.errors.setdefault(method, []).extend(errors)

    def hang(self, method: str) -> asyncio.Event:
        """Calls wait until the event is set; delete it from ``script.hangs`` to end it for later ones."""
        return self.script.hangs.setdefault(method, asyncio.Event())

    def die(self, machine_id: str, exit: Exit | None = None) -> None:
        """The machine's main process ends by itself."""
        machine = self.machines[machine_id]
        if not machine.exit.done():
            machine.exit.set_result(exit or Exit("exited", 0))

    # --- Driver --------------------------------------------------------------------------------

    async def probe(self) -> Probe:
        await self._enter("probe")
        if self.refused is not None:
            return self.refused
        return Probe(
            self._available, version="1", reason=None if self._available else "scripted to be away"
        )

    async def prepare(self) -> None:
        await self._enter("prepare")

    def traits(self) -> Mapping[str, Any]:
        return self.depends

    def given(self) -> Mapping[str, bytes]:
        return self.files

    def capabilities(self) -> Capabilities:
        container = Capabilities(
            isolation=Isolation.CONTAINER,
            boundary="none: a fake for tests",
            claim="sandboxed by nothing (fake)",
            own_kernel=False,
            own_network=True,
            disk_image=True,
            raw_disk=False,
            memory_snapshot=self._memory,
            fork=ForkKind.MEMORY if self._memory else ForkKind.DISK,
            egress_enforced=False,
            needs_root=False,
            accelerated=None,
            freeze=True,
        )
        return replace(container, **self._is)

    async def start(self, spec: StartSpec) -> Handle:
        return await self._boot("start", spec, None)

    async def restore(self, spec: StartSpec, capture: Capture) -> Handle:
        """Checks what a real machine could not survive: memory on another disk than its own."""
        self._needs_memory()
        if not (capture.directory / "memory").exists():
            raise ConflictError("the capture is gone", code="SNAPSHOT_INVALID")
        if _disk(spec) != capture.manifest["disk"]:
            raise AssertionError("memory on a disk of another instant")
        if spec.agent_token != capture.manifest["token"]:
            raise AssertionError("a token that the captured agent does not know")
        return await self._boot("restore", spec, capture)

    async def _boot(self, method: str, spec: StartSpec, capture: Capture | None) -> Handle:
        if self.script.leave_debris:
            self.debris.add(spec.machine_id)
        await self._enter(method)
        pid = next(self._pids)
        handle = Handle(self.name, spec.machine_id, pid, pid, _BOOT, self.target)
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.machines[spec.machine_id] = FakeMachine(
            spec,
            handle,
            spec.size,
            future,
            restored_from=None if capture is None else capture.directory,
            token=self.first_token or spec.agent_token
            if capture is None
            else str(capture.manifest["token"]),
        )
        if spec.root.image is not None:  # a machine that runs writes
            _write(spec.root.image, f"{_disk(spec)}.{pid}")
        self.debris.discard(spec.machine_id)
        self.known.add(spec.machine_id)
        return handle

    async def remove(self, machine_id: str) -> None:
        await self._enter("remove")
        self.debris.discard(machine_id)
        machine = self.machines.pop(machine_id, None)
        if machine is not None and not machine.exit.done():
            machine.exit.set_result(Exit("killed"))

    async def adopt(self, handle: Handle) -> bool:
        await self._enter("adopt")
        machine = self.machines.get(handle.machine_id)
        lives = machine is not None and machine.handle == handle and not machine.exit.done()
        if lives:
            self.known.add(handle.machine_id)
        return lives

    async def wait(self, handle: Handle) -> Exit:
        await self._enter("wait")
        machine = self.machines.get(handle.machine_id)
        if machine is None or machine.handle != handle:
            return Exit("unknown")
        return await asyncio.shield(machine.exit)

    async def list_ids(self) -> set[str]:
        await self._enter("list_ids")
        return set(self.machines) | self.debris

    def use_token(self, handle: Handle, token: str) -> None:
        self._machine(handle).used_token = token

    async def usage(self, handle: Handle) -> Usage:
        await self._enter("usage")
        machine = self._machine(handle)
        return Usage(1_000_000, 64 << 20, machine.size.memory_mib << 20, 3)

    async def resize(self, handle: Handle, size: Size) -> None:
        await self._enter("resize")
        self._machine(handle).size = size

    async def freeze(self, handle: Handle) -> None:
        await self._enter("freeze")
        self._own(handle).frozen = True

    async def thaw(self, handle: Handle) -> None:
        await self._enter("thaw")
        self._own(handle).frozen = False

    async def frozen(self, handle: Handle) -> bool:
        return self._machine(handle).frozen

    async def freeze_disk(self, handle: Handle) -> None:
        await self._enter("freeze_disk")
        self._machine(handle).disk_frozen = True

    async def thaw_disk(self, handle: Handle) -> None:
        await self._enter("thaw_disk")
        self._machine(handle).disk_frozen = False

    async def capture(
        self,
        handle: Handle,
        into: Path,
        disk_to: Path,
        *,
        durable: bool = True,
        memory: bool = True,
    ) -> Capture:
        await self._enter("capture")
        captured = self._capture(handle, into, memory)
        _write(disk_to, _disk(self._machine(handle).spec))
        return captured

    async def hibernate(self, handle: Handle, into: Path) -> Capture:
        self._needs_memory()
        await self._enter("hibernate")
        captured = self._capture(handle, into)
        (into / "manifest").write_text(json.dumps(captured.manifest))
        machine = self.machines.pop(handle.machine_id)
        machine.exit.set_result(Exit("killed"))
        return captured

    async def kept(self, directory: Path) -> Capture | None:
        manifest = directory / "manifest"
        return Capture(directory, json.loads(manifest.read_text())) if manifest.exists() else None

    def _capture(self, handle: Handle, into: Path, memory: bool = True) -> Capture:
        machine = self._machine(handle)
        if machine.frozen:
            raise AssertionError("a frozen machine cannot be captured")
        manifest: Mapping[str, Any] = {"disk": _disk(machine.spec), "token": machine.token}
        if self._memory and memory:
            (into / "memory").touch()
        return Capture(into, manifest, paused_ms=1.0, memory=self._memory and memory)

    def _own(self, handle: Handle) -> FakeMachine:
        """One that this daemon has taken over: no real driver knows another."""
        if handle.machine_id not in self.known:
            raise MachineError(f"Machine {handle.machine_id} was not adopted.")
        return self._machine(handle)

    def _machine(self, handle: Handle) -> FakeMachine:
        machine = self.machines.get(handle.machine_id)
        if machine is None or machine.exit.done():
            raise MachineError(f"Machine {handle.machine_id} does not run any more.")
        return machine

    def _needs_memory(self) -> None:
        if not self._memory:
            raise UnsupportedError("The fake driver was made without memory snapshots.")


def _disk(spec: StartSpec) -> str:
    image = spec.root.image
    return image.read_text() if image is not None and image.exists() else ""


def _write(path: Path, text: str) -> None:
    path.write_text(text)
