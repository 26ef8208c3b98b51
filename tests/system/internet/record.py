"""What reached the internet of the tests, in the order it came; bounded."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_MOST = 200_000


@dataclass(frozen=True, slots=True)
class Seen:
    """``kind``: packet, tcp (a connection to an attacker), dns, tls, http, ws, upload, gone
    (a slow answer has ended). ``to`` and ``port``: where it
    was sent; ``said``: what it said, by kind the protocol, its first bytes, the name asked for, SNI, the Host."""

    kind: str
    to: str
    port: int
    said: str
    more: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)


class Record:
    def __init__(self) -> None:
        self._seen: deque[Seen] = deque(maxlen=_MOST)
        self._lock = threading.Lock()

    def add(
        self, kind: str, to: str, port: int, said: str, at: float | None = None, **more: Any
    ) -> None:
        """``at``: on the clock of ``time.monotonic``; None: now."""
        with self._lock:
            self._seen.append(
                Seen(kind, to, port, said, more, time.monotonic() if at is None else at)
            )

    def all(self) -> list[Seen]:
        with self._lock:
            return list(self._seen)
