"""Machines that are a directory of this host, and programs of the host that work in it: rung 0, for what one trusts.

```
daemon -- listens on run/machines/workspace/<id>/agent.sock, hands the socket over as the agent's standard input
   '-- roost-agent --workspace HOME --limit ...       as the daemon's user, or, under root, as ROOST_WORKSPACE_USER
          '-- programs: in HOME, no_new_privs, rlimits, Landlock where the kernel has it, ROOST_WORKSPACE=HOME
```
The agent outlives the daemon: its socket keeps its name, and a later daemon finds it by pid and start time. There is no
boundary and none is claimed; what ends, ends by descent from the agent and by the mark in programs' environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from roost import claims
from roost.drivers import tree
from roost.drivers.interface import (
    Capabilities,
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
from roost.errors import InternalError, MachineError
from roost.host import account, console, ending, files, processes, reaper, syscalls
from roost.host.account import Account
from roost.lasting import to_the_end
from roost.settings import Settings
from roost.storage import disks

T = TypeVar("T")

OPEN_FILES = 4096
_KILL_TIMEOUT_S = 10.0
_KEEP_S = 1.0
_BACKLOG = 64
# For the kernel where memory is short, before the host's own and whatever the daemon was given itself: also of what it starts.
_FIRST_TO_GO = 'echo 500 > /proc/self/oom_score_adj; exec "$0" "$@"'
_LONGEST_SOCKET = 107  # bytes of a path that the kernel takes


@dataclass(slots=True)
class _Live:
    """A machine this daemon started or adopted."""

    handle: Handle
    pidfd: int
    console: console.Console
    exit: asyncio.Future[Exit]
    watcher: asyncio.Task[None] | None = None
    removing: bool = False


class WorkspaceDriver(Driver):
    name = "workspace"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._home = settings.run_dir / "machines" / self.name
        self._agent = tree.AgentBinary(tree.default_agent())
        self._threads = ThreadPoolExecutor(4, thread_name_prefix=self.name)
        self._live: dict[str, _Live] = {}
        self._binary: Path | None = None
        self._preparing = threading.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._reaper = reaper.Reaper(self._other_user())

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    # --- what it is --------------------------------------------------------------------------------

    async def probe(self) -> Probe:
        if not self._agent.path.exists():
            return Probe(False, reason="the agent is not built", remedy="scripts/up")
        try:
            owner = self._account()
        except LookupError as failure:
            return Probe(False, reason=str(failure), remedy="set ROOST_WORKSPACE_USER")
        return Probe(True, details={"user": owner.name, "landlock": landlock()})

    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation=Isolation.WORKSPACE,
            boundary=claims.boundary(self.name),
            claim=claims.claim(self.name),
            own_kernel=False,
            own_network=False,
            disk_image=False,
            raw_disk=False,
            memory_snapshot=False,
            fork=ForkKind.DISK,
            egress_enforced=False,
            needs_root=False,
            accelerated=None,
            own_clock=False,
        )

    def _account(self) -> Account:
        return account.of_workspaces(self.settings.workspace_user)

    def _other_user(self) -> int | None:
        with contextlib.suppress(LookupError):
            owner = self._account()
            return None if owner.ours else owner.uid
        return None

    # --- life --------------------------------------------------------------------------------------

    async def start(self, spec: StartSpec) -> Handle:
        if spec.root.directory is None:
            raise InternalError("A workspace is started from a directory.")
        starting = self._run(self._start, spec, spec.root.directory)
        try:
            handle, pidfd, fifo = await to_the_end(starting, _let_go)  # a thread cannot be stopped
        except BaseException:
            await self._run(self._remove, spec.machine_id)
            raise
        self._watch(handle, pidfd, fifo)
        return handle

    def _start(self, spec: StartSpec, home: Path) -> tuple[Handle, int, console.Console]:
        self._remove(spec.machine_id)
        binary = self._prepare()
        owner = self._account()
        place = self._place(spec.machine_id)
        place.mkdir(mode=0o700)
        record = place / "machine.json"
        files.write_json(record, {"home": str(home)}, durable=False)
        fifo = console.Console(place / "console")
        try:
            with _listener(place / "agent.sock") as listener:
                pid = self._spawn(binary, owner, spec, home, listener, fifo)
            ticks = processes.start_ticks(pid)
            pidfd = None if ticks is None else processes.open_pidfd(pid, ticks)
            if ticks is None or pidfd is None:
                raise MachineError(
                    f"The workspace's agent ended at once: {fifo.tail()[-500:]}",
                    code="MACHINE_FAILED",
                )
            handle = Handle(
                driver=self.name,
                machine_id=spec.machine_id,
                pid=pid,
                pid_start_ticks=ticks,
                boot_id=processes.boot_id(),
                agent_target=f"unix:{place / 'agent.sock'}",
                identity_on_disk=True,
            )
            files.write_json(record, {"home": str(home), **handle.to_json()}, durable=False)
            return handle, pidfd, fifo
        except BaseException as failure:
            fifo.close()
            if isinstance(failure, OSError):
                raise MachineError(
                    f"The workspace could not be started: {failure}.", code="MACHINE_FAILED"
                ) from failure
            raise

    def _spawn(
        self,
        binary: Path,
        owner: Account,
        spec: StartSpec,
        home: Path,
        listener: socket.socket,
        fifo: console.Console,
    ) -> int:
        command = ["/bin/sh", "-c", _FIRST_TO_GO, str(binary), *_listening(str(home))]
        if spec.unrestricted:
            command.append("--unguarded")
        else:
            for name, value in limits(spec.size, processes.tasks_of(owner.uid)).items():
                command += ["--limit", f"{name}={value}"]
        output = fifo.open_for_machine()
        try:
            process = account.start(
                owner,
                command,
                stdin=listener.fileno(),
                stdout=output,
                stderr=output,
                cwd="/",
                env={"ROOST_AGENT_TOKEN": spec.agent_token},
                start_new_session=True,  # a terminal's interrupt of the daemon is not for machines
            )
        finally:
            os.close(output)
        process.returncode = 0  # whoever watches it by its pidfd reaps it; subprocess must not
        return process.pid

    def _prepare(self) -> Path:
        """The agent's program, where whoever runs it can."""
        with self._preparing:
            if self._binary is None:
                self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
                syscalls.set_child_subreaper(True)
                self._binary = self._agent.path if self._account().ours else self._copied()
            return self._binary

    def _copied(self) -> Path:
        """Of root's: another user may not pass the directories that ours lies in."""
        digest = self._agent.digest.removeprefix("sha256:")
        copy = self.settings.data_dir / f"workspace-agent-{digest[:16]}"
        size = copy.stat().st_size if copy.exists() else -1
        if size != len(self._agent.content):  # after a power cut it may be there and empty
            for old in copy.parent.glob("workspace-agent-*"):
                old.unlink()
            made = copy.with_suffix(".new")
            made.write_bytes(self._agent.content)
            made.chmod(0o555)
            os.rename(made, copy)
        return copy

    def _place(self, machine_id: str) -> Path:
        return self._home / disks.check_id(machine_id)

    # --- watching ----------------------------------------------------------------------------------

    def _watch(self, handle: Handle, pidfd: int, fifo: console.Console) -> None:
        loop = asyncio.get_running_loop()
        live = _Live(handle, pidfd, fifo, loop.create_future())
        self._live[handle.machine_id] = live
        live.watcher = loop.create_task(self._follow(live), name=f"watch-{handle.machine_id}")
        if self._keeper is None or self._keeper.done():
            self._keeper = loop.create_task(self._keep(), name=f"{self.name}-keeper")

    async def _follow(self, live: _Live) -> None:
        await processes.ended(live.pidfd)
        status = processes.reap(live.handle.pid)
        if live.exit.done():
            return
        code, killed_by = status if status is not None else (None, None)
        if live.removing or killed_by is not None:
            live.exit.set_result(Exit("killed"))
        else:
            live.exit.set_result(Exit("unknown") if code is None else Exit("exited", code))

    async def _keep(self) -> None:
        """While there are machines: empties their consoles, reaps what they leave behind."""
        left = 0
        while self._live or left:
            await asyncio.sleep(_KEEP_S)
            for live in list(self._live.values()):
                live.console.drain()
            left = self._reaper.sweep()

    def _forget(self, machine_id: str) -> None:
        live = self._live.pop(machine_id, None)
        if live is None:
            return
        if live.watcher is not None:
            live.watcher.cancel()
        if not live.exit.done():
            live.exit.set_result(Exit("killed"))
        asyncio.get_running_loop().remove_reader(live.pidfd)
        os.close(live.pidfd)
        live.console.close()

    async def adopt(self, handle: Handle) -> bool:
        if handle.machine_id in self._live:
            return self._live[handle.machine_id].handle == handle
        if handle.driver != self.name or handle.boot_id != processes.boot_id():
            return False
        pidfd = processes.open_pidfd(handle.pid, handle.pid_start_ticks)
        if pidfd is None:
            return False
        try:
            await self._run(syscalls.set_child_subreaper, True)
            fifo = console.Console(self._place(handle.machine_id) / "console")
        except OSError:
            os.close(pidfd)
            return False
        self._watch(handle, pidfd, fifo)
        return True

    async def wait(self, handle: Handle) -> Exit:
        live = self._live.get(handle.machine_id)
        if live is None or live.handle != handle:
            if not await self.adopt(handle):
                return Exit("unknown")
            live = self._live[handle.machine_id]
        return await asyncio.shield(live.exit)

    async def console_tail(self, machine_id: str) -> str:
        live = self._live.get(machine_id)
        return live.console.tail() if live else ""

    # --- removal -----------------------------------------------------------------------------------

    async def remove(self, machine_id: str) -> None:
        if machine_id in self._live:
            self._live[machine_id].removing = True
        await self._run(self._remove, machine_id)
        self._forget(machine_id)

    def _remove(self, machine_id: str) -> None:
        """Every step is safe to repeat; the directory goes last, since it is what the rest is found by."""
        place = self._place(machine_id)
        if not place.exists():
            return
        record = files.read_json(place / "machine.json") or {}
        handle = {name: record.get(name) for name in ("pid", "pid_start_ticks", "boot_id")}
        tops: set[int] = set()
        home = record.get("home")
        if all(handle.values()):
            pid, ticks, boot = int(record["pid"]), int(record["pid_start_ticks"]), record["boot_id"]
            if processes.is_same(pid, ticks, str(boot)):
                tops = {pid}
        if home and not tops:
            # Its agent was ended, and its helpers, which outlive it a moment, are called as it was; or a daemon ended
            # between the agent's start and its record.
            tops = processes.called(*_listening(home))
        if home:
            ending.end_trees(tops, f"ROOST_WORKSPACE={home}", _KILL_TIMEOUT_S)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(place)

    async def list_ids(self) -> set[str]:
        return {p.name for p in self._home.iterdir()} if self._home.exists() else set()

    # --- while it runs -----------------------------------------------------------------------------

    async def usage(self, handle: Handle) -> Usage:
        """Of the agent and its descendants, as long as they live: nothing counts for the machine as a whole."""
        if processes.start_ticks(handle.pid) != handle.pid_start_ticks:
            raise MachineError(f"Machine {handle.machine_id} does not run any more.")
        pids = await self._run(_below, handle.pid)
        cpu, memory = processes.consumed(pids)
        return Usage(cpu, memory, None, len(pids))

    async def end_tree(self, handle: Handle, pid: int) -> bool:
        def end() -> bool:
            if pid == handle.pid or pid not in _below(handle.pid):
                return False
            ending.end_trees([pid], "", _KILL_TIMEOUT_S)
            return True

        return await self._run(end)


async def _let_go(started: tuple[Handle, int, console.Console]) -> None:
    """Of what nobody watches."""
    _, pidfd, fifo = started
    os.close(pidfd)
    fifo.close()


def limits(size: Size, tasks: int) -> dict[str, int]:
    """Of each process, as the kernel has them; ``nproc`` of all of that user, of whom ``tasks`` are there."""
    return {
        "core": 0,
        "data": size.memory_mib << 20,
        "fsize": size.storage_gib << 30,
        "nofile": OPEN_FILES,
        "nproc": tasks + size.pids,
    }


def landlock() -> int | None:
    """The version that the kernel has; None where it has none, or has it switched off."""
    version = syscalls.landlock_version()
    return version if version > 0 else None


def _listening(home: str) -> list[str]:
    return ["--listen", "unix-stdin", "--workspace", home]


def _below(pid: int) -> set[int]:
    return processes.tree(pid, processes.everyone())


@contextlib.contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise MachineError(
            f"The path of the workspace's socket is longer than {_LONGEST_SOCKET} bytes: set ROOST_RUN_DIR to a "
            "shorter one.",
            code="MACHINE_FAILED",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        yield listener
