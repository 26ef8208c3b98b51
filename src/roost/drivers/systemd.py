"""Machines of one user as transient units, for hosts whose init is systemd.

``user_unit`` says what a unit is; here its image is put where systemd mounts from (the first process's mount table,
shown by the numbers of the machine's block), the unit started, and both taken away. Offered where an operator names it:
``user`` does the same by a runtime, and is what is tested with machines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from roost import claims
from roost.drivers import account, oci, user_unit
from roost.drivers.interface import Capabilities, Handle, Probe, Size, StartSpec
from roost.drivers.user import UserDriver
from roost.errors import InternalError, MachineError
from roost.host import advisories, cgroups, console, run, syscalls
from roost.network.addresses import instance_tag
from roost.settings import Settings

_TIMEOUT_S = 30.0
_OLDEST = 249  # PrivateIPC
_ENVIRONMENT = "config.json"  # what a start reads, and is gone once it runs
_SHOWN = "shown"  # in the machine's directory: the image, and its volumes by number


class SystemdDriver(UserDriver):
    name = "systemd"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._slice = f"roostuser{instance_tag(settings.run_dir)}.slice"
        self.cgroups = cgroups.Cgroups(self._slice, delegated=False)

    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities(),
            boundary=claims.boundary(self.name),
            claim=claims.claim(self.name),
        )

    async def probe(self) -> Probe:
        return await self._run(_probe)

    # --- names: a machine's group is its unit's -----------------------------------------------------

    def _group(self, machine_id: str) -> str:
        return user_unit.name(machine_id)

    def _list(self) -> set[str]:
        found = {p.name for p in self._home.iterdir()} if self._home.exists() else set()
        return found | {
            machine_id for name in self.cgroups.names() if (machine_id := user_unit.machine(name))
        }

    # --- start --------------------------------------------------------------------------------------

    def _write_bundle(
        self, spec: StartSpec, directory: Path, places: oci.Places, users: oci.Users | None
    ) -> None:
        """What the unit names, in the table that systemd mounts from."""
        passwd, group = account.alone(places.root, user_unit.number(spec))
        for name, text, mode in (
            (_ENVIRONMENT, user_unit.environment(spec, self.environment()), 0o600),
            ("passwd", passwd, 0o644),
            ("group", group, 0o644),
        ):
            (directory / name).touch(mode)
            (directory / name).write_text(text)
        shown = directory / _SHOWN
        pairs = [(places.root, shown / "root")]
        pairs += [(places.volumes / str(n), shown / str(n)) for n in range(len(spec.volumes))]
        with contextlib.ExitStack() as held:
            trees = [syscalls.open_tree(at, syscalls.OPEN_TREE_CLONE) for at, _ in pairs]
            for tree in trees:
                held.callback(os.close, tree)
            _enter_first()
            for tree, (_, target) in zip(trees, pairs, strict=True):
                target.mkdir(parents=True, exist_ok=True, mode=0o700)
                syscalls.move_mount(tree, target)

    def _launch(
        self, spec: StartSpec, directory: Path, command: list[str], fifo: console.Console
    ) -> int:
        unit, shown = user_unit.name(spec.machine_id), directory / _SHOWN
        homes = account.homes(shown / "root", user_unit.number(spec))
        made = user_unit.properties(
            spec,
            size=self._limits(spec.size),
            places=user_unit.Places(
                root=shown / "root",
                passwd=directory / "passwd",
                group=directory / "group",
                environment=directory / _ENVIRONMENT,
                console=directory / "console",
                volumes=shown,
            ),
            homes=homes,
            part_of=self._slice,
        )
        assert spec.slot is not None
        self._enter_network(spec.slot)
        try:
            run.run(
                user_unit.command(unit, made, user_unit.program(spec, homes)),
                timeout_s=self.settings.operation_timeout_s,
            )
            return int(_systemctl("show", "--property=MainPID", "--value", unit))
        except (OSError, TimeoutError, ValueError) as exc:
            raise MachineError(
                f"systemd refused to start the machine: {exc}.", code="MACHINE_FAILED"
            ) from exc

    # --- life ---------------------------------------------------------------------------------------

    async def resize(self, handle: Handle, size: Size) -> None:
        said = [f"{key}={value}" for key, value in user_unit.limits(self._limits(size))]
        unit = user_unit.name(handle.machine_id)
        try:
            await self._run(lambda: _systemctl("set-property", "--runtime", unit, *said))
        except (OSError, TimeoutError) as exc:
            raise MachineError(
                f"The machine cannot be resized now: {exc}.", code="MACHINE_FAILED"
            ) from exc

    def _remove(self, machine_id: str, disk: Path | None) -> None:
        unit, shown = user_unit.name(machine_id), self._directory(machine_id) / _SHOWN
        if self.cgroups.exists(unit):
            with contextlib.suppress(OSError, TimeoutError):
                _systemctl("kill", "--signal=SIGKILL", unit)
                _systemctl("stop", unit)
        _in_first(lambda: _unmount(shown))
        super()._remove(machine_id, disk)


def _unmount(shown: Path) -> None:
    for target in shown.glob("*"):
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # else it is no mount (any more)
                raise
        target.rmdir()


def _enter_first() -> None:
    """The calling thread sees the mounts of the host's first process; for one that ends afterwards."""
    syscalls.join("/proc/1/ns/mnt", syscalls.CLONE_NEWNS)


def _in_first(function: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def body() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
            _enter_first()
            function()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=body, name="first", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise InternalError(f"The image cannot be unmounted: {failed[0]}.") from failed[0]


def _systemctl(*words: str) -> str:
    return run.run(["systemctl", "--no-pager", *words], timeout_s=_TIMEOUT_S).stdout.strip()


def _probe() -> Probe:
    if not Path("/run/systemd/system").is_dir():
        return Probe(False, reason="systemd is not this host's init: `user` does the same without")
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return Probe(False, reason="systemd's control groups are not of version 2")
    try:
        words = _systemctl("--version").split()
    except (OSError, TimeoutError) as exc:
        return Probe(False, reason=f"systemctl does not run: {exc}")
    version = words[1] if len(words) > 1 else ""
    if not version.isdigit() or int(version) < _OLDEST:
        return Probe(False, reason=f"systemd {version} is older than {_OLDEST}", version=version)
    if why := advisories.refusal(SystemdDriver.name):
        return Probe(False, reason=why, remedy=advisories.REMEDY)
    return Probe(True, version=version, details={"tested": False})
