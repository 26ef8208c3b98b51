"""What a machine tried: the same things merged, the least recent forgotten."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from roost.egress.interface import Decision

MAX_DECISIONS = 512
_MAX_COUNT = 2**53  # what JSON carries everywhere


class Ledger:
    """Of one slot, bounded."""

    def __init__(self, limit: int = MAX_DECISIONS, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._rows: OrderedDict[tuple[str, int, str, str, bool, str], Decision] = OrderedDict()

    def note(self, host: str, port: int, via: str, reason: str, protocol: str = "tcp") -> None:
        """``reason`` "" is an allowed one."""
        now = self._clock()
        key = (host, port, protocol, via, not reason, reason)
        row = self._rows.pop(key, None)
        if row is None:
            row = Decision(*key, count=1, first_at=now, last_at=now)
        else:
            row = replace(row, count=min(row.count + 1, _MAX_COUNT), last_at=now)
        self._rows[key] = row
        if len(self._rows) > self._limit:
            self._rows.popitem(last=False)

    def rows(self) -> list[Decision]:
        """Newest last."""
        return list(self._rows.values())
