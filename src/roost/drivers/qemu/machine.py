"""One running VMM, as this daemon holds it: its monitor, its watcher, the dialler to its agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable

from roost.agent.dialler import Dialler, SocketStream
from roost.drivers.interface import Exit, Handle
from roost.drivers.qemu import capture
from roost.drivers.qemu.launch import Place
from roost.drivers.qemu.qmp import Qmp, VmmError
from roost.host import console, processes

log = logging.getLogger(__name__)
_CONSOLE_BYTES = 16 << 10
_SPACE_S = 1.0  # between two looks whether a disk that found no space finds some
_PANIC = "Kernel panic"
# What a kernel says before it ends, where nobody listened to the VMM then.
_LAST_WORDS = {
    "reboot: Power down": "exited",
    "reboot: Restarting system": "rebooted",
    "sysrq: Resetting": "rebooted",
}
# Reasons of SHUTDOWN events (qapi/run-state.json) that are the guest's doing.
_REASONS = {"guest-shutdown": "exited", "guest-reset": "rebooted", "guest-panic": "panicked"}
_NO_SPACE = "io-error"
_STOPPED = ("paused", "postmigrate", "finish-migrate", "save-vm", "prelaunch")


class Machine:
    """Made by ``QemuDriver`` after a start or an adoption; ended by ``close``, which leaves the VMM as it
    is."""

    def __init__(
        self, handle: Handle, place: Place, qmp: Qmp, pidfd: int, log: console.Console, token: str
    ) -> None:
        self.handle = handle
        self.place = place
        self.qmp = qmp
        self.pidfd = pidfd
        self.log = log
        self.removing = False
        self.busy = asyncio.Lock()  # one capture, freeze or thaw at a time
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.dialler = Dialler(place.grpc, token, self._open_agent)
        self._ahead: SocketStream | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said = ""

    async def open(self, oom_kills: Callable[[], Awaitable[int]]) -> None:
        await self.dialler.start()
        loop = asyncio.get_running_loop()
        name = self.handle.machine_id
        self._tasks = [
            loop.create_task(self._follow_process(oom_kills), name=f"watch-{name}"),
            loop.create_task(self._follow_guest(), name=f"guest-{name}"),
            loop.create_task(self._follow_disk(), name=f"disk-{name}"),
        ]

    async def dial_ahead(self) -> None:
        """Before the guest's state is loaded: its port is then open from the first instruction on, as it was
        when it was saved, and the agent need not notice a hang-up and look again."""
        self._ahead = await SocketStream.open(self.place.agent)

    async def _open_agent(self) -> SocketStream:
        ahead, self._ahead = self._ahead, None
        return ahead or await SocketStream.open(self.place.agent)

    async def agent_answers(self) -> None:
        """Returns once the agent has answered a handshake; its stream is then free again."""
        await self.dialler.knock()

    async def close(self) -> None:
        if self._ahead is not None:
            await self._ahead.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.exit.done():
            self.exit.set_result(Exit("killed" if self.removing else "unknown"))
        await self.dialler.close()
        await self.qmp.close()
        os.close(self.pidfd)
        self.log.close()

    async def console_tail(self) -> str:
        """What the guest's console said last, else what the VMM did. Hostile text. The VMM tells all of it only once,
        and nothing after its end."""
        with contextlib.suppress(VmmError):
            said = await self.qmp.execute(
                "ringbuf-read", {"device": "console", "size": _CONSOLE_BYTES, "format": "utf8"}
            )
            self._said = (self._said + str(said))[-_CONSOLE_BYTES:]
        return self._said or self.log.tail()

    async def settle(self) -> None:
        """After an adoption: what a daemon that died left half-done is given up, and the guest runs unless it was
        frozen or has ended."""
        # Before a frozen guest goes on: what it says then has a place to go.
        with contextlib.suppress(OSError):
            await self.dial_ahead()
        status = (await self.qmp.execute("query-status")).get("status")
        if status == "shutdown":
            await self._guest_ended("")
        elif status in _STOPPED and not self.place.frozen.exists():
            await capture.give_up(self.qmp)
        elif status == _NO_SPACE:
            await self._try_disk_again()

    async def _follow_process(self, oom_kills: Callable[[], Awaitable[int]]) -> None:
        await processes.ended(self.pidfd)
        status = processes.reap(self.handle.pid)
        killed = await oom_kills()
        if not self.exit.done():
            self.exit.set_result(_exit(status, killed, self.removing))

    async def _follow_guest(self) -> None:
        """The VMM stays when its guest has ended; it is of no use then, so it is killed once it has said why."""
        with contextlib.suppress(VmmError), self.qmp.listen("SHUTDOWN") as events:
            while True:
                try:
                    event = await events.next(3600)
                except VmmError as exc:
                    if exc.code != "TIMEOUT":
                        raise
                    continue
                if event.data.get("guest") is True:
                    await self._guest_ended(str(event.data.get("reason")))
                    return

    async def _follow_disk(self) -> None:
        """A VMM that finds no space for what its guest writes stops it, so that the guest need not hear of it; it
        runs on, and writes the same again, once there is space."""
        with contextlib.suppress(VmmError), self.qmp.listen("BLOCK_IO_ERROR") as events:
            while True:
                try:
                    await events.next(3600)
                except VmmError as exc:
                    if exc.code != "TIMEOUT":
                        raise
                    continue
                log.warning("machine %s waits: no space for its disk", self.handle.machine_id)
                await asyncio.sleep(_SPACE_S)
                await self._try_disk_again()

    async def _try_disk_again(self) -> None:
        async with self.busy:
            if (await self.qmp.execute("query-status")).get("status") == _NO_SPACE:
                await self.qmp.execute("cont", timeout_s=_SPACE_S)

    async def _guest_ended(self, why: str) -> None:
        tail = await self.console_tail()
        reason = _REASONS.get(why) or _by_its_words(tail)
        if _PANIC in tail and reason != "exited":
            reason = "panicked"
        if not self.exit.done():
            self.exit.set_result(Exit(reason, 0 if reason == "exited" else None, tail))
        processes.kill(self.handle.pid, self.handle.pid_start_ticks)


def _by_its_words(tail: str) -> str:
    found = {tail.rfind(words): reason for words, reason in _LAST_WORDS.items() if words in tail}
    return found[max(found)] if found else "unknown"


def _exit(status: tuple[int | None, int | None] | None, oom_kills: int, removing: bool) -> Exit:
    code, killed_by = status if status is not None else (None, None)
    if removing:
        return Exit("killed")
    if oom_kills and code is None:
        return Exit("oom")
    if killed_by is not None:
        return Exit("killed")
    return Exit("unknown", code)
