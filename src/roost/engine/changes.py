"""Tells who waits for it that a machine's row has changed, once that is durable."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from roost.store import Store


class Changes:
    def __init__(self, store: Store) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listeners: list[Callable[[str], None]] = []
        store.listener = self._changed

    def listen(self, listener: Callable[[str], None]) -> None:
        """Is told the id of each machine that changes."""
        self._listeners.append(listener)

    @contextlib.contextmanager
    def of(self, machine_id: str) -> Iterator[asyncio.Event]:
        """Set with every change from now on; whoever waits clears it before looking."""
        event = asyncio.Event()
        self._waiting[machine_id].add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[machine_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[machine_id]

    def _changed(self, machine_ids: Iterable[str]) -> None:
        for machine_id in machine_ids:
            for event in self._waiting.get(machine_id, ()):
                event.set()
            for listener in self._listeners:
                listener(machine_id)
