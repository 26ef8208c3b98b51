"""One line of work a machine: what is asked of a machine happens one after the other.

A line's task lives only while there is work. A request of the kind that stands last in line joins it: fifty calls
that wake one machine are one wake. ``interrupt`` tells the job under way that a destroy waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from roost.engine.machine import Machine
from roost.errors import UnavailableError

Job = Callable[[asyncio.Event], Awaitable[Machine]]


@dataclass(slots=True)
class _Request:
    kind: str
    job: Job
    future: asyncio.Future[Machine]
    interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    about: dict[str, Any] = field(default_factory=get_contextvars)  # of whoever asked, for the log


@dataclass(slots=True)
class _Line:
    requests: deque[_Request] = field(default_factory=deque)  # the first is under way
    task: asyncio.Task[None] | None = None


class Desk:
    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._closed = False

    def check(self) -> None:
        """Raises SHUTTING_DOWN once the desk takes nothing more."""
        if self._closed:
            raise UnavailableError("The daemon is stopping; try again.", code="SHUTTING_DOWN")

    def submit(
        self, machine_id: str, kind: str, job: Job, join: bool = True
    ) -> asyncio.Future[Machine]:
        """Gets in line; await the answer shielded: the work goes on when its caller goes away. Raises
        SHUTTING_DOWN."""
        self.check()
        line = self._lines.setdefault(machine_id, _Line())
        if join and line.requests and line.requests[-1].kind == kind:
            return line.requests[-1].future
        future: asyncio.Future[Machine] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieve)
        line.requests.append(_Request(kind, job, future))
        if line.task is None:
            line.task = asyncio.ensure_future(self._drain(machine_id, line))
        return future

    def last(self, machine_id: str) -> asyncio.Future[Machine] | None:
        """The end of the work in line now."""
        line = self._lines.get(machine_id)
        return line.requests[-1].future if line and line.requests else None

    def interrupt(self, machine_id: str) -> None:
        for request in self._lines.get(machine_id, _Line()).requests:
            request.interrupt.set()

    def busy(self) -> list[str]:
        return list(self._lines)

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing more and lets what is in line end; what has not by then is cancelled and left to
        recovery."""
        self._closed = True
        tasks = [line.task for line in self._lines.values() if line.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        await self.kill()

    async def kill(self) -> None:
        self._closed = True
        tasks = [line.task for line in self._lines.values() if line.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, machine_id: str, line: _Line) -> None:
        try:
            while line.requests:
                request = line.requests[0]
                clear_contextvars()  # this task's own: a line outlives who began it
                bind_contextvars(**{**request.about, "machine_id": machine_id})
                try:
                    machine = await request.job(request.interrupt)
                except Exception as error:
                    _settle(request.future, None, error)
                else:
                    _settle(request.future, machine, None)
                line.requests.popleft()
        except BaseException as error:
            for request in line.requests:
                if isinstance(error, asyncio.CancelledError):
                    request.future.cancel()
                else:
                    _settle(request.future, None, error)
            line.requests.clear()
            raise
        finally:
            del self._lines[machine_id]


def _settle(
    future: asyncio.Future[Machine], machine: Machine | None, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif machine is not None:
        future.set_result(machine)


def _retrieve(future: asyncio.Future[Machine]) -> None:
    if not future.cancelled():
        future.exception()
