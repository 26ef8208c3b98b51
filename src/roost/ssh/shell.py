"""A shell, or a command, on a terminal: a terminal of the machine with one viewer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from roost.errors import RoostError
from roost.services.terminals import MAX_SIDE, OpenTerminal, Viewer
from roost.ssh import outcome
from roost.ssh.outcome import Outcome
from roost.ssh.pipe import Pipe
from roost.ssh.visit import Visit

WAITING = 16  # signals and sizes that were not delivered yet


@dataclass(frozen=True, slots=True)
class Pty:
    term: str
    width: int
    height: int


class Controls:
    """What a client says besides bytes: signals, and its window's size, of which only the last counts."""

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._size: tuple[int, int] | None = None
        self._came = asyncio.Event()

    def signal(self, name: str) -> None:
        number = outcome.number(name)
        if number is not None and len(self._signals) < WAITING:
            self._signals.append(number)
            self._came.set()

    def resize(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._came.set()

    async def next(self) -> tuple[list[int], tuple[int, int] | None]:
        """What has come since; waits for something."""
        await self._came.wait()
        self._came.clear()
        signals, self._signals = self._signals, []
        size, self._size = self._size, None
        return signals, size


def bounded(width: int, height: int) -> tuple[int, int]:
    """A size that a terminal can have; clients without one say 0."""
    return min(width, MAX_SIDE) or 80, min(height, MAX_SIDE) or 24


async def run(
    visit: Visit,
    pipe: Pipe,
    controls: Controls,
    pty: Pty,
    command: str | None,
    env: Mapping[str, str],
) -> Outcome:
    """Until the shell ends. Who leaves hangs up; what ran on the terminal gets SIGHUP. Raises RoostError."""
    terminals = visit.inside.terminals
    spec = OpenTerminal(
        width=pty.width,
        height=pty.height,
        command=None if command is None else ["/bin/sh", "-c", command],
        env=env,
        user=visit.user,
        term=pty.term,
    )
    opening = asyncio.ensure_future(terminals.open(visit.tenant, visit.machine_id, spec))
    try:
        terminal = await asyncio.shield(opening)
    except asyncio.CancelledError:

        async def hang_up() -> None:
            await terminals.close(visit.tenant, visit.machine_id, (await opening).id)

        visit.later(hang_up())
        raise
    try:
        viewer = await terminals.attach(
            visit.tenant, visit.machine_id, terminal.id, catches_up=True
        )
        try:
            return await _watch(viewer, pipe, controls)
        finally:
            await viewer.close()
    finally:
        visit.later(terminals.close(visit.tenant, visit.machine_id, terminal.id))


async def _watch(viewer: Viewer, pipe: Pipe, controls: Controls) -> Outcome:
    async def typed() -> None:
        while data := await pipe.read():
            await viewer.send(data)
        if not pipe.lost:
            await viewer.send(b"\x04")  # the end of input, as a terminal says it

    async def controlled() -> None:
        while True:
            _, size = await controls.next()  # a signal to a terminal is a key that is typed
            if size is not None:
                await viewer.resize(*size)

    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(typed()), loop.create_task(controlled())]
    try:
        while (frame := await viewer.read()) is not None:
            if frame.data:
                await pipe.write(frame.data)
            if frame.HasField("closed"):
                code = frame.closed.exit_code if frame.closed.HasField("exit_code") else 0
                return Outcome(code)
        return Outcome(0)
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RoostError):
                await task
