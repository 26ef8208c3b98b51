"""What runs now, in memory: for calls that cannot wait for a database.

An entry stands from the moment a machine is durably ``running`` until it is asked to be anything else, or its
process ends.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator, Mapping
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
    touched: float
    flushed: float


class Roster:
    def __init__(
        self, monotonic: Callable[[], float], on_exit: Callable[[Machine, Exit], None]
    ) -> None:
        self._entries: dict[str, Entry] = {}
        self._monotonic = monotonic
        self._on_exit = on_exit

    def touch(self, machine_id: str) -> None:
        """Counts as activity."""
        entry = self._entries.get(machine_id)
        if entry is not None:
            entry.touched = self._monotonic()

    def peek(self, machine_id: str) -> Running | None:
        entry = self._entries.get(machine_id)
        return None if entry is None else entry.running

    def __iter__(self) -> Iterator[Running]:
        return iter([entry.running for entry in self._entries.values()])

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, running: Running, driver: Driver) -> None:
        self.remove(running.machine.id)
        # In no context: what ends in days is not about the request that began it.
        watcher = asyncio.get_running_loop().create_task(
            self._watch(running.machine, running.handle, driver), context=contextvars.Context()
        )
        now = self._monotonic()
        self._entries[running.machine.id] = Entry(running, watcher, now, now)

    def update(self, machine: Machine) -> None:
        """The same machine at a later revision."""
        entry = self._entries.get(machine.id)
        if entry is not None and machine.generation == entry.running.machine.generation:
            entry.running = replace(entry.running, machine=machine)

    def remove(self, machine_id: str) -> None:
        entry = self._entries.pop(machine_id, None)
        if entry is not None and entry.watcher is not asyncio.current_task():
            entry.watcher.cancel()

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
            self._on_exit(machine, how)
