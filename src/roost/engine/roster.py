"""What lives now, in memory: for calls that cannot wait for a database.

An entry stands from the moment a machine is durably ``running`` until it is asked to be anything else, or its
process ends; one that is frozen is watched on and answers as one that does not run.

A machine is idle while nobody uses it: no call is under way (``using``) and none was lately (``touch``).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from roost.drivers.interface import Driver, Exit, Handle
from roost.engine.machine import Machine
from roost.engine.ports import Agent


@dataclass(frozen=True, slots=True)
class Running:
    """``config`` is the template's."""

    machine: Machine
    agent: Agent
    config: Mapping[str, Any]
    handle: Handle


@dataclass(slots=True)
class Entry:
    running: Running
    watcher: asyncio.Task[None]
    touched: float  # monotonic seconds
    flushed: float
    frozen_at: float | None = None  # monotonic seconds; None: it runs


class Roster:
    def __init__(
        self, monotonic: Callable[[], float], on_exit: Callable[[Machine, Exit], None]
    ) -> None:
        self._entries: dict[str, Entry] = {}
        self._monotonic = monotonic
        self._on_exit = on_exit
        self._users: Counter[str] = Counter()
        self._listeners: list[Callable[[str], None]] = []
        self.changed = (
            asyncio.Event()
        )  # set when one comes, goes, freezes, thaws or has other settings

    def listen(self, listener: Callable[[str], None]) -> None:
        """Is told, at once, the id of each that comes, goes, freezes, thaws or has other settings."""
        self._listeners.append(listener)

    def _tell(self, machine_id: str) -> None:
        self.changed.set()
        for listener in self._listeners:
            listener(machine_id)

    def touch(self, machine_id: str) -> None:
        """Counts as activity."""
        entry = self._entries.get(machine_id)
        if entry is not None:
            entry.touched = self._monotonic()

    def using(self, machine_id: str) -> AbstractContextManager[None]:
        """Meanwhile the machine is not idle, also where it sleeps in between."""
        return _Use(self, machine_id)

    def begin(self, machine_id: str) -> None:
        """One more uses it, until ``end``."""
        self._users[machine_id] += 1

    def end(self, machine_id: str) -> None:
        self._users[machine_id] -= 1
        if not self._users[machine_id]:
            del self._users[machine_id]
        self.touch(machine_id)

    def idle_for(self, machine_id: str) -> float | None:
        """Seconds; None for one that does not run."""
        entry = self._entries.get(machine_id)
        if entry is None or entry.frozen_at is not None:
            return None
        return 0.0 if self._users[machine_id] else self._monotonic() - entry.touched

    def frozen_for(self, machine_id: str) -> float | None:
        """Seconds; None for one that is not."""
        entry = self._entries.get(machine_id)
        at = None if entry is None else entry.frozen_at
        return None if at is None else self._monotonic() - at

    def peek(self, machine_id: str) -> Running | None:
        entry = self._entries.get(machine_id)
        return None if entry is None or entry.frozen_at is not None else entry.running

    def __iter__(self) -> Iterator[Running]:
        """Those that run."""
        return iter([e.running for e in self._entries.values() if e.frozen_at is None])

    def frozen(self) -> list[Running]:
        """The longest frozen first."""
        found = [
            (e.frozen_at, e.running) for e in self._entries.values() if e.frozen_at is not None
        ]
        return [running for _, running in sorted(found, key=lambda pair: pair[0])]

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, running: Running, driver: Driver, frozen_for: float | None = None) -> None:
        """``frozen_for``: seconds that it has been; None: it runs."""
        self.remove(running.machine.id)
        # In no context: what ends in days is not about the request that began it.
        watcher = asyncio.get_running_loop().create_task(
            self._watch(running.machine, running.handle, driver), context=contextvars.Context()
        )
        now = self._monotonic()
        at = None if frozen_for is None else now - frozen_for
        self._entries[running.machine.id] = Entry(running, watcher, now, now, at)
        self._tell(running.machine.id)

    def freeze(self, machine_id: str) -> None:
        """It does not run any more, and is watched on."""
        entry = self._entries.get(machine_id)
        if entry is not None and entry.frozen_at is None:
            entry.frozen_at = self._monotonic()
            self._tell(machine_id)

    def thaw(self, machine: Machine) -> None:
        """It runs again."""
        entry = self._entries.get(machine.id)
        if entry is not None:
            entry.frozen_at = None
            entry.touched = self._monotonic()
            self.update(machine)
            self._tell(machine.id)

    def update(self, machine: Machine) -> None:
        """The same machine at a later revision."""
        entry = self._entries.get(machine.id)
        if entry is not None and machine.generation == entry.running.machine.generation:
            entry.running = replace(entry.running, machine=machine)
            self._tell(machine.id)

    def remove(self, machine_id: str) -> None:
        entry = self._entries.pop(machine_id, None)
        if entry is not None and entry.watcher is not asyncio.current_task():
            entry.watcher.cancel()
        if entry is not None:
            self._tell(machine_id)

    def active(self) -> list[tuple[str, float]]:
        """Machines touched since this was last asked, and how many seconds ago."""
        now = self._monotonic()
        found = []
        for machine_id, entry in self._entries.items():
            if entry.touched > entry.flushed:
                entry.flushed = entry.touched
                found.append((machine_id, max(0.0, now - entry.touched)))
        return found

    def clear(self) -> None:
        for machine_id in list(self._entries):
            self.remove(machine_id)

    async def _watch(self, machine: Machine, handle: Handle, driver: Driver) -> None:
        try:
            how = await driver.wait(handle)
        except Exception as error:
            how = Exit(f"unknown: {type(error).__name__}: {error}"[:150])
        current = self._entries.get(machine.id)
        if current is not None and current.watcher is asyncio.current_task():
            self._entries.pop(machine.id)
            self._tell(machine.id)
            self._on_exit(machine, how)


class _Use:
    """A plain object, for every request of a preview has one: a generator would cost thrice as much."""

    __slots__ = ("_machine_id", "_roster")

    def __init__(self, roster: Roster, machine_id: str) -> None:
        self._roster = roster
        self._machine_id = machine_id

    def __enter__(self) -> None:
        self._roster.begin(self._machine_id)

    def __exit__(self, *exc: object) -> None:
        self._roster.end(self._machine_id)
