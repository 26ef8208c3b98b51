"""Control groups of machines, v1 and v2: one group each under a parent of ours.

Container runtimes make the groups (they are told the path and the limits); for what has no runtime ``create``
and ``add`` do. This reads them, changes limits, freezes, kills what is left and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
_UNLIMITED = 1 << 60
_V1_USED = ("cpu", "cpuacct", "memory", "pids")


@dataclass(frozen=True, slots=True)
class Limits:
    vcpu: float
    memory_bytes: int
    pids: int

    @property
    def quota_us(self) -> int:
        return max(1000, int(self.vcpu * _PERIOD_US))

    @property
    def period_us(self) -> int:
        return _PERIOD_US

    @property
    def shares(self) -> int:
        return max(2, int(self.vcpu * 1024))


@dataclass(frozen=True, slots=True)
class Reading:
    cpu_usage_us: int
    memory_bytes: int  # without what could be dropped at once
    memory_limit_bytes: int | None
    pids: int


class Cgroups:
    """The groups below ``/<parent>`` of every hierarchy."""

    def __init__(self, parent: str, root: Path = _ROOT, *, delegated: bool = True) -> None:
        """Not ``delegated``: somebody else's (systemd's), below the root of v2."""
        self._root = root
        self._delegated = delegated
        self.v2 = (root / "cgroup.controllers").exists()
        self._hierarchies = [root] if self.v2 else self._v1()
        self._parent = parent.strip("/")
        if self.v2 and delegated:
            self._parent = f"{_delegated(root)}{self._parent}"

    def _v1(self) -> list[Path]:
        return [
            p
            for p in sorted(self._root.iterdir())
            if p.is_dir() and not p.is_symlink() and (p / "cgroup.procs").exists()
        ]

    def prepare(self) -> None:
        """The parent, with the controllers a machine needs. v1 runtimes make theirs themselves."""
        if not self.v2 or not self._delegated:
            return
        if own := _delegated(self._root):
            # v2 lets no group hold both processes and groups with controllers.
            leaf = self._root / own / "daemon"
            leaf.mkdir(exist_ok=True)
            _write(leaf / "cgroup.procs", os.getpid())
        path = self._root
        for part in Path(self._parent).parts:
            _enable(path)
            path = path / part
            path.mkdir(exist_ok=True)
        _enable(path)

    def path_for_runtime(self, name: str) -> str:
        return f"/{self._parent}/{name}"

    def _directories(self, name: str) -> list[Path]:
        return [p for h in self._hierarchies if (p := h / self._parent / name).is_dir()]

    def exists(self, name: str) -> bool:
        """In any hierarchy."""
        return bool(self._directories(name))

    def _file(self, controller: str, name: str, file: str) -> Path:
        base = self._root if self.v2 else self._root / controller
        return base / self._parent / name / file

    def names(self) -> set[str]:
        return {
            p.name
            for h in self._hierarchies
            if (h / self._parent).is_dir()
            for p in (h / self._parent).iterdir()
            if p.is_dir()
        }

    def read(self, name: str) -> Reading:
        """Raises FileNotFoundError where the group is gone."""
        if self.v2:
            cpu = _keyed(self._file("", name, "cpu.stat"))["usage_usec"]
            used = _number(self._file("", name, "memory.current"))
            stat = _keyed(self._file("", name, "memory.stat"))
            limit = _number(self._file("", name, "memory.max"))
        else:
            cpu = _number(self._file("cpuacct", name, "cpuacct.usage")) // 1000
            used = _number(self._file("memory", name, "memory.usage_in_bytes"))
            stat = _keyed(self._file("memory", name, "memory.stat"))
            limit = _number(self._file("memory", name, "memory.limit_in_bytes"))
        idle = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        return Reading(
            cpu_usage_us=cpu,
            memory_bytes=max(0, used - idle),
            memory_limit_bytes=None if limit >= _UNLIMITED else limit,
            pids=_number(self._file("pids", name, "pids.current")),
        )

    def create(self, name: str, limits: Limits) -> None:
        """An empty group with its limits. Idempotent."""
        for base in [self._root] if self.v2 else [self._root / c for c in _V1_USED]:
            (base / self._parent / name).mkdir(parents=True, exist_ok=True)
        self.set_limits(name, limits)

    def add(self, name: str, pid: int) -> None:
        """The process, all its threads, and what it starts later."""
        for base in [self._root] if self.v2 else [self._root / c for c in _V1_USED]:
            _write(base / self._parent / name / "cgroup.procs", pid)

    def set_limits(self, name: str, limits: Limits) -> None:
        """CPU, memory, pids of a live group. Raises OSError (EBUSY) where more memory is in use than the
        new limit allows and cannot be reclaimed."""
        self.bound_memory(name, limits.memory_bytes)
        if self.v2:
            _write(self._file("", name, "cpu.max"), f"{limits.quota_us} {limits.period_us}")
            _write(self._file("", name, "cpu.weight"), _weight(limits.shares))
        else:
            _write(self._file("cpu", name, "cpu.cfs_quota_us"), limits.quota_us)
            _write(self._file("cpu", name, "cpu.shares"), limits.shares)
        _write(self._file("pids", name, "pids.max"), limits.pids)

    def bound_memory(self, name: str, limit: int) -> None:
        """Memory, and swap where that is counted: v2 has a number for it, as much again; v1 one for both together, which
        must never be below memory's on the way. The host may still swap out what is in it."""
        if self.v2:
            _write(self._file("", name, "memory.max"), limit)
            swap = self._file("", name, "memory.swap.max")
            if swap.exists():
                _write(swap, limit)
            return
        memory = self._file("memory", name, "memory.limit_in_bytes")
        both = self._file("memory", name, "memory.memsw.limit_in_bytes")
        if not both.exists():
            _write(memory, limit)
            return
        for file in (both, memory) if limit > _number(memory) else (memory, both):
            _write(file, limit)

    def oom_kills(self, name: str) -> int:
        file, key = ("memory.events", "oom_kill") if self.v2 else ("memory.oom_control", "oom_kill")
        try:
            return _keyed(self._file("memory", name, file)).get(key, 0)
        except OSError:
            return 0

    def freeze(self, name: str, on: bool, timeout_s: float = 5.0) -> None:
        """Returns when every process is stopped (or going). Raises TimeoutError, after undoing it."""
        if self.v2:
            _write(self._file("", name, "cgroup.freeze"), int(on))
        else:
            _write(self._file("freezer", name, "freezer.state"), "FROZEN" if on else "THAWED")
        deadline = time.monotonic() + timeout_s
        while self.frozen(name) != on:
            if time.monotonic() > deadline:
                if on:
                    self.freeze(name, False)
                raise TimeoutError(f"group {name} does not {'freeze' if on else 'thaw'}")
            time.sleep(0.0005)

    def frozen(self, name: str) -> bool:
        """Every process of it. Raises FileNotFoundError where the group is gone."""
        if self.v2:
            return _keyed(self._file("", name, "cgroup.events")).get("frozen") == 1
        return self._file("freezer", name, "freezer.state").read_text().strip() == "FROZEN"

    def deny_device(self, name: str, device: str) -> None:
        """``device`` as the kernel writes it, "c 10:200 rwm"; on v2, where a program decides, the runtime's
        word is the last."""
        if not self.v2:
            _write(self._file("devices", name, "devices.deny"), device)

    def procs(self, name: str) -> set[int]:
        """In every hierarchy and below."""
        found: set[int] = set()
        for directory in self._directories(name):
            for file in (directory / "cgroup.procs", *directory.glob("**/cgroup.procs")):
                with contextlib.suppress(OSError):
                    found.update(int(p) for p in file.read_text().split())
        return found - {0, os.getpid()}

    def kill(self, name: str) -> None:
        """SIGKILL to all that is in it now."""
        if self.v2:
            with contextlib.suppress(OSError):
                _write(self._file("", name, "cgroup.kill"), 1)
                return
        for pid in self.procs(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not self.v2 and self._file("freezer", name, "freezer.state").exists():
            with contextlib.suppress(OSError):  # a frozen process dies only when it is thawed
                _write(self._file("freezer", name, "freezer.state"), "THAWED")

    def remove(self, name: str, timeout_s: float = 5.0) -> None:
        """Kills and removes, children first. Idempotent. Raises OSError (EBUSY) past the deadline."""
        deadline = time.monotonic() + timeout_s
        delay = 0.001
        while directories := self._directories(name):
            try:
                for directory in directories:
                    _remove_tree(directory)
            except OSError as exc:
                if exc.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                self.kill(name)
                time.sleep(delay)
                delay = min(delay * 2, 0.05)

    def remove_parent(self) -> None:
        """When the last machine is gone; quiet where it is not."""
        for hierarchy in self._hierarchies:
            with contextlib.suppress(OSError):
                (hierarchy / self._parent).rmdir()


def _delegated(root: Path) -> str:
    """Under systemd only the daemon's own group is ours to divide (Delegate=yes); elsewhere the root."""
    if root != _ROOT or not Path("/run/systemd/system").is_dir():
        return ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = line[3:].strip("/").removesuffix("/daemon")
            return f"{own}/" if own else ""
    return ""


def _enable(directory: Path) -> None:
    for controller in ("cpu", "memory", "pids"):
        with contextlib.suppress(OSError):
            _write(directory / "cgroup.subtree_control", f"+{controller}")


def _remove_tree(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for child in directory.iterdir():
            if child.is_dir():
                _remove_tree(child)
        directory.rmdir()


def _write(path: Path, value: int | str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _number(path: Path) -> int:
    text = path.read_text().strip()
    return _UNLIMITED if text == "max" else int(text)


def _keyed(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdigit()}


def _weight(shares: int) -> int:
    """v2's scale, as the runtimes convert it."""
    return min(10_000, max(1, 1 + ((shares - 2) * 9999) // 262_142))
