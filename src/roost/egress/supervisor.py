"""The daemon's ``Egress``: finds the process, or starts it; watches it; starts it again.

```
open -> found, same version ----------------------------> up --(ends, or hangs)--> down
     -> found, another version: stopped -> started -----> up                        |
     -> not found ----------------------> started         ^                         v
                                                          '-- configured <- started, ever later
                                                                 |
                                                                 '-> ``on_restart``: all slots attached anew
```
While it is down nobody holds the slots' listeners: what machines send meets nothing, and calls wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from roost.egress import control
from roost.egress.dialling import UpstreamProxy
from roost.egress.interface import Decision, Intercept, Listeners
from roost.egress.link import Link
from roost.egress.policy import Policy, Reach
from roost.errors import InternalError, RoostError, UnavailableError
from roost.host import cgroups, files, processes
from roost.settings import Settings

log = structlog.get_logger(__name__)

START_S = 20.0
WAIT_S = 15.0  # how long a call waits for a process that is being started
PING_S = 15.0
STOP_S = 5.0
_DELAY_S, _MOST_DELAY_S = 0.1, 10.0
_STEADY_S = 60.0  # after so long the next start is a first one again
_LOG_BYTES = 5 * 2**20
_BACKLOG = 16
_MEMORY_BYTES = 1 << 30
_PIDS = 64
_PASSED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")


class Supervisor:
    """See ``roost.egress.interface.Egress``. ``servers``: resolvers to ask, address and port, instead of those that
    the settings or the host name."""

    def __init__(
        self, settings: Settings, servers: Sequence[tuple[str, int]] | None = None
    ) -> None:
        self._run_dir = settings.run_dir
        self._path = settings.run_dir / "egress.sock"
        self._record = settings.run_dir / "egress.json"
        self._log = settings.data_dir / "logs" / "egress.log"
        if servers is None:
            servers = [(settings.dns, 53)] if settings.dns else []
        self._servers = [list(each) for each in servers]
        self._proxy = settings.egress_proxy.get_secret_value()
        self._reach: Reach | None = None
        self._again: Callable[[], Awaitable[None]] | None = None
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._groups = cgroups.Cgroups("")
        self._group = f"roost-egress-{_tag(settings.run_dir)}"
        self.restarts = 0

    # --- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        if self._proxy:
            UpstreamProxy.parse(self._proxy)  # raises CONFIG_INVALID
        link = await self._find()
        if link is None:
            await asyncio.to_thread(self._end_recorded)
            link = await self._start()
        await self._take(link)
        self._watching = asyncio.create_task(self._watch(), name="egress-watch")

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._link is not None:
            await self._link.close()
            self._link = None
        self._up.clear()

    async def purge(self) -> None:
        await self.close()
        with contextlib.suppress(OSError, RoostError):
            link = await Link.open(self._path)
            await self._stop(link)
        await asyncio.to_thread(self._end_recorded)
        self._path.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._groups.remove, self._group)

    async def _find(self) -> Link | None:
        """What an earlier daemon left, if it is of this version and answers."""
        try:
            link = await Link.open(self._path)
        except OSError:
            return None
        try:
            hello = await link.call("hello")
        except RoostError as failure:
            log.warning("egress.deaf", error=failure.message)
            await link.close()
            return None
        if hello.get("version") == control.version():
            log.info("egress.found", pid=hello.get("pid"), connections=hello.get("connections"))
            return link
        log.info("egress.replaced", pid=hello.get("pid"), connections=hello.get("connections"))
        await self._stop(link)
        return None

    async def _stop(self, link: Link) -> None:
        with contextlib.suppress(RoostError, TimeoutError):
            await link.call("stop")
            async with asyncio.timeout(STOP_S):
                await link.closed.wait()
        await link.close()

    async def _start(self) -> Link:
        """Raises INTERNAL."""
        begun = time.monotonic()
        pid = await asyncio.to_thread(self._spawn)
        link = None
        try:
            link = await Link.open(self._path)
            async with asyncio.timeout(START_S):
                while True:
                    with contextlib.suppress(UnavailableError):
                        await link.call("hello")
                        break
                    if link.closed.is_set() or processes.start_ticks(pid) is None:
                        raise OSError("it ended")
        except (OSError, TimeoutError) as exc:
            if link is not None:
                await link.close()
            await asyncio.to_thread(self._end_recorded)
            raise InternalError(
                f"The process that proves names did not start; see {self._log}.", retryable=True
            ) from exc
        log.info("egress.started", pid=pid, seconds=round(time.monotonic() - begun, 2))
        return link

    def _spawn(self) -> int:
        for directory in (self._run_dir, self._log.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.rename(self._log.with_suffix(".log.1"))
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._path.unlink(missing_ok=True)
            sock.bind(str(self._path))
            self._path.chmod(0o600)
            sock.listen(_BACKLOG)
            out = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, out)
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "roost.egress"),
                    *("--control", str(sock.fileno()), "--version", control.version()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(sock.fileno(),),
                cwd="/",
                env={name: os.environ[name] for name in _PASSED if name in os.environ},
                start_new_session=True,
            )
        process.returncode = 0  # whoever notices its end reaps it; subprocess must not
        ticks = processes.start_ticks(process.pid)
        files.write_json(
            self._record,
            {"pid": process.pid, "ticks": ticks, "boot": processes.boot_id()},
            durable=False,
        )
        self._confine(process.pid)
        return process.pid

    def _confine(self, pid: int) -> None:
        """A bound on its memory: what machines make it hold must not be the host's last."""
        try:
            self._groups.prepare()
            limits = cgroups.Limits(float(os.cpu_count() or 1), _MEMORY_BYTES, _PIDS)
            self._groups.create(self._group, limits)
            self._groups.add(self._group, pid)
        except OSError as exc:
            log.warning("egress.unbounded", error=str(exc))

    def _end_recorded(self) -> None:
        """The process of the record, if it still is that one. Blocking."""
        record = files.read_json(self._record)
        if record is None or not processes.is_same(
            int(record["pid"]), int(record["ticks"] or 0), str(record["boot"])
        ):
            if record is not None:
                processes.reap(int(record["pid"]))
            return
        pidfd = processes.open_pidfd(int(record["pid"]), int(record["ticks"]))
        if pidfd is not None:
            try:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                processes.wait_pidfds([pidfd], STOP_S)
            finally:
                os.close(pidfd)
        processes.reap(int(record["pid"]))

    async def _take(self, link: Link) -> None:
        """It is told what holds for all slots, and calls go there from now on."""
        await link.call("upstream", servers=self._servers, proxy=self._proxy)
        if self._reach is not None:
            await link.call("reach", reach=control.reach_to_json(self._reach))
        self._link = link
        self._up.set()

    # --- watching -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        delay, started = _DELAY_S, time.monotonic()
        while True:
            assert self._link is not None
            # At the same time: a process may hang while it is being given the slots.
            attaching = asyncio.create_task(self._attach_again()) if self.restarts else None
            try:
                await self._until_dead(self._link)
            finally:
                if attaching is not None:
                    attaching.cancel()
                    await asyncio.gather(attaching, return_exceptions=True)
            self._up.clear()
            await self._link.close()
            if time.monotonic() - started > _STEADY_S:
                delay = _DELAY_S
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MOST_DELAY_S)
                try:
                    await asyncio.to_thread(self._end_recorded)
                    await self._take(await self._start())
                    break
                except (RoostError, OSError) as failure:
                    log.error("egress.start", error=str(failure))
            self.restarts += 1
            started = time.monotonic()

    async def _until_dead(self, link: Link) -> None:
        while not link.closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_S):
                    await link.closed.wait()
            if link.closed.is_set():
                break
            try:
                await link.call("hello")
            except RoostError as failure:
                log.error("egress.hangs", error=failure.message)
                return
        log.error("egress.died", message="Nothing that must prove a name goes through meanwhile.")

    async def _attach_again(self) -> None:
        """Until it is done, or that process dies, too."""
        delay = _DELAY_S
        while self._again is not None and self._link is not None and not self._link.closed.is_set():
            try:
                await self._again()
                return
            except Exception as failure:
                log.error("egress.attach_again", error=str(failure))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MOST_DELAY_S)

    # --- calls ----------------------------------------------------------------------------------

    def on_restart(self, again: Callable[[], Awaitable[None]]) -> None:
        self._again = again

    async def reach(self, reach: Reach) -> None:
        self._reach = reach
        await self._call("reach", reach=control.reach_to_json(reach))

    async def slots(self) -> set[int]:
        return set(await self._call("slots"))

    async def attach(self, slot: int, listeners: Listeners) -> None:
        fds = [each.fileno() for each in (listeners.dns_udp, listeners.dns_tcp, listeners.proxy)]
        await self._call("attach", fds, slot=slot)

    async def detach(self, slot: int) -> None:
        await self._call("detach", slot=slot)

    async def apply(
        self, slot: int, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        await self._call(
            "apply",
            slot=slot,
            machine_id=machine_id,
            policy=policy.to_json(),
            intercept=control.intercepts_to_json(intercept),
        )

    async def decisions(self, slot: int) -> list[Decision]:
        return control.read_decisions(await self._call("decisions", slot=slot))

    async def _call(self, name: str, fds: Sequence[int] = (), **args: Any) -> Any:
        """Raises UnavailableError, InternalError."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self._up.wait()
        except TimeoutError:
            raise UnavailableError(
                f"The process that proves names does not start; see {self._log}."
            ) from None
        assert self._link is not None
        return await self._link.call(name, fds, **args)


def _tag(run_dir: Path) -> str:
    """As of the network's things; it is the network that calls here."""
    return hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:4]
