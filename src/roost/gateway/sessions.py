"""Requests under way, by the key they came with: what is still open when it ends is closed.

Who had a key checked once may hold a terminal or a stream open for days. A revoked or expired key ends those, too;
an ordinary request gets its answer, for what it does is done.

They are counted, too: one tenant or token cannot take all there is for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime

from roost.errors import LimitError
from roost.gateway.respond import REVOKED
from roost.services.keys import DEFAULT_TENANT
from roost.services.models import Principal

OF_TENANT = 512  # under way at once, with those of its tokens; the admin's tenant has no limit
OF_TOKEN = 16
LOOK_AGAIN_S = 0.25  # at a request whose answer has not begun: it may become a stream


class Session:
    """One request. ``begun``: whether its answer has."""

    def __init__(self, task: asyncio.Task[None], begun: Callable[[], bool]) -> None:
        self._task = task
        self._begun = begun
        self._timer: asyncio.TimerHandle | None = None
        self.ended = False  # by us

    def end(self) -> None:
        """Now, or once there is a stream to end."""
        if self._begun():
            self.ended = True
            self._task.cancel(REVOKED)
        else:
            self.end_in(LOOK_AGAIN_S)

    def end_in(self, seconds: float) -> None:
        self.leave()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.end)

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Sessions:
    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._open: defaultdict[str, set[Session]] = defaultdict(set)
        self._of_tenant: Counter[str] = Counter()

    def check(self, who: Principal) -> None:
        """Whether one more may begin. Raises LIMIT_EXCEEDED, retryable."""
        if who.is_token:
            _check(len(self._open.get(who.key_id, ())), OF_TOKEN, "token")
        if who.tenant != DEFAULT_TENANT:
            _check(self._of_tenant[who.tenant], OF_TENANT, "tenant")

    @contextlib.contextmanager
    def of(self, who: Principal, begun: Callable[[], bool]) -> Iterator[Session]:
        task = asyncio.current_task()
        assert task is not None
        session = Session(task, begun)
        mine = self._open[who.key_id]
        mine.add(session)
        self._of_tenant[who.tenant] += 1
        if who.expires_at is not None:
            session.end_in((who.expires_at - self._now()).total_seconds())
        try:
            yield session
        finally:
            session.leave()
            mine.discard(session)
            self._of_tenant[who.tenant] -= 1
            if not self._of_tenant[who.tenant]:
                del self._of_tenant[who.tenant]
            if not mine and self._open.get(who.key_id) is mine:
                del self._open[who.key_id]

    def end(self, key_id: str) -> None:
        for session in list(self._open.get(key_id, ())):
            session.end()


def _check(open_: int, limit: int, whose: str) -> None:
    if open_ >= limit:
        raise LimitError(
            f"This {whose} has {limit} requests, streams and sockets open, the most there may be: end some, or "
            "retry later.",
            code="LIMIT_EXCEEDED",
            details={"limit": limit, "open": open_},
        )
