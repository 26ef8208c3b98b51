"""How often somebody may ask: sans-I/O, by a clock that is handed in.

``Bucket`` is for requests: so many a second, more at once after a pause. ``Window`` is for things that are to stay
under a number in any minute. ``Rates`` has the bucket of each tenant (all its keys together) and of each token, which
must not use up what its tenant has; all tokens of a tenant together draw from one more that is as large as its own.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from roost.errors import LimitError
from roost.services.models import Principal

MINUTE_S = 60.0
TOKENS = 10_000  # that are remembered; one that is forgotten starts with a full bucket
TOKEN_BURST = 20


class Bucket:
    """``per_second`` in the long run, ``burst`` at once."""

    __slots__ = ("_at", "_left", "burst", "per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second = per_second
        self.burst = burst
        self._left = burst
        self._at = now

    def take(self, now: float) -> float:
        """0 and one is taken; else the seconds until there is one."""
        self._left = min(self.burst, self._left + max(0.0, now - self._at) * self.per_second)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.per_second


@dataclass(slots=True)
class Window:
    """What was taken in the last minute."""

    taken: deque[tuple[float, int]]

    def used(self, now: float) -> int:
        while self.taken and self.taken[0][0] <= now - MINUTE_S:
            self.taken.popleft()
        return sum(number for _, number in self.taken)

    def wait(self, now: float, limit: float, asked: int) -> float:
        """Seconds until so many more stay under the limit; they must not be more than it."""
        free = limit - self.used(now)
        for at, number in self.taken:
            if free >= asked:
                break
            free += number
            if free >= asked:
                return at + MINUTE_S - now
        return 0.0


class Windows:
    """One a tenant."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._windows: dict[str, Window] = {}

    def take(self, tenant: str, name: str, limit: float, asked: int) -> None:
        """Raises QUOTA_EXCEEDED, retryable with ``retry_after_s`` unless it can never be."""
        now = self._monotonic()
        window = self._windows.setdefault(tenant, Window(deque()))
        used = window.used(now)
        if used + asked <= limit:
            window.taken.append((now, asked))
            return
        never = asked > limit
        wait = 0.0 if never else window.wait(now, limit, asked)
        advice = "Ask for fewer." if never else f"Retry in {wait:.0f} s."
        raise LimitError(
            f"Your quota of {name} is {limit:g}: {used} were made in the last minute and {asked} more were "
            f"asked. {advice}",
            code="QUOTA_EXCEEDED",
            retryable=not never,
            details={
                "quota": name,
                "limit": limit,
                "used": used,
                "asked": asked,
                **({} if never else {"retry_after_s": round(wait, 3)}),
            },
        )


class Rates:
    """``per_token``: requests a second of a token."""

    def __init__(self, monotonic: Callable[[], float], per_token: float) -> None:
        self._monotonic = monotonic
        self._per_token = per_token
        self._tenants: dict[str, Bucket] = {}
        self._all_tokens: dict[str, Bucket] = {}  # by tenant
        self._tokens: OrderedDict[str, Bucket] = OrderedDict()

    def set(self, tenant: str, quotas: Mapping[str, Any]) -> None:
        """What the tenant has now; at once, with a full bucket."""
        per_second = quotas.get("requests_per_second")
        if per_second is None:
            self.forget(tenant)
            return
        burst = quotas.get("request_burst") or max(1.0, 2 * per_second)
        for buckets in (self._tenants, self._all_tokens):
            buckets[tenant] = Bucket(per_second, burst, self._monotonic())

    def forget(self, tenant: str) -> None:
        for buckets in (self._tenants, self._all_tokens):
            buckets.pop(tenant, None)

    def take(self, who: Principal) -> None:
        """Raises RATE_LIMITED, retryable after ``details.retry_after_s``."""
        if not who.is_token:
            self._take(self._tenants.get(who.tenant))
            return
        self._take(self._of_token(who.key_id))  # first: what it is refused is nobody else's loss
        self._take(self._all_tokens.get(who.tenant))

    def _take(self, bucket: Bucket | None) -> None:
        if bucket is None:
            return
        wait = bucket.take(self._monotonic())
        if wait:
            raise LimitError(
                f"More than {bucket.per_second:g} requests a second ({bucket.burst:g} at once): retry in "
                f"{wait:.2f} s.",
                code="RATE_LIMITED",
                details={
                    "per_second": bucket.per_second,
                    "burst": bucket.burst,
                    "retry_after_s": round(wait, 3),
                },
            )

    def _of_token(self, key_id: str) -> Bucket:
        bucket = self._tokens.get(key_id)
        if bucket is None:
            bucket = Bucket(self._per_token, TOKEN_BURST, self._monotonic())
            self._tokens[key_id] = bucket
            if len(self._tokens) > TOKENS:
                self._tokens.popitem(last=False)
        self._tokens.move_to_end(key_id)
        return bucket
