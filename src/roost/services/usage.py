"""Usage: what a tenant's machines and snapshots used, by day, machine or key, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from roost.clock import Clock
from roost.engine import metering
from roost.errors import bad
from roost.prices import Prices
from roost.store import Store, usage

GROUPS = {"day": "day", "machine": "machine_id", "key": "key_id"}  # asked for -> column
DEFAULT_DAYS = 30
MAX_DAYS = 366
MAX_ROWS = 5_000
_SECOND = 1000
_COST = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Amounts:
    """Whole numbers; the units people know are derived."""

    vcpu_milli_ms: int = 0
    memory_mib_ms: int = 0
    storage_kib_ms: int = 0
    egress_bytes: int = 0

    def plus(self, sums: Sequence[int]) -> Amounts:
        mine = (self.vcpu_milli_ms, self.memory_mib_ms, self.storage_kib_ms, self.egress_bytes)
        return Amounts(*(a + b for a, b in zip(mine, sums, strict=True)))

    @property
    def vcpu_seconds(self) -> Decimal:
        return Decimal(self.vcpu_milli_ms) / (1000 * _SECOND)

    @property
    def memory_gib_seconds(self) -> Decimal:
        return Decimal(self.memory_mib_ms) / (1024 * _SECOND)

    @property
    def storage_gib_hours(self) -> Decimal:
        return Decimal(self.storage_kib_ms) / (2**20 * 3600 * _SECOND)

    def cost(self, prices: Prices) -> Decimal:
        whole = (
            self.vcpu_seconds * prices.vcpu_second
            + self.memory_gib_seconds * prices.memory_gib_second
            + self.storage_gib_hours * prices.storage_gib_hour
            + Decimal(self.egress_bytes) / 2**30 * prices.egress_gib
        )
        return whole.quantize(_COST)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """``group``: day, machine_id, key_id, as asked for."""

    group: dict[str, str]
    amounts: Amounts
    cost: Decimal


@dataclass(frozen=True, slots=True)
class UsageReport:
    first: date
    last: date
    group_by: tuple[str, ...]
    prices: Prices
    items: list[UsageRow]
    total: UsageRow


class Usage:
    def __init__(self, store: Store, clock: Clock, prices: Prices) -> None:
        self._store = store
        self._clock = clock
        self._prices = prices

    async def report(
        self,
        tenant: str,
        first: date | None = None,
        last: date | None = None,
        group_by: Iterable[str] = ("day",),
    ) -> UsageReport:
        """These UTC days, both included, up to now: what is open counts as far as it has come. The last 30 days
        unless told otherwise. Raises VALIDATION_FAILED."""
        by = tuple(dict.fromkeys(group_by))
        now = self._clock.now()
        last = last or max(now.date(), first or now.date())
        first = first or date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS + 1))
        if unknown := [each for each in by if each not in GROUPS]:
            raise bad("group_by", f"is of {', '.join(GROUPS)}, not {unknown[0]!r}")
        if last < first:
            raise bad("to", "is not before from")
        if (last - first).days >= MAX_DAYS:
            raise bad("from", f"is at most {MAX_DAYS} days before to")
        columns = tuple(GROUPS[each] for each in by)

        def fn(connection: sa.Connection) -> tuple[list[UsageRow], UsageRow]:
            return self._rows(_sums(connection, tenant, first, last, columns, now), columns)

        # The sums and costs too: they are many, and whoever else asks meanwhile must not wait for them.
        items, total = await self._store.read(fn)
        return UsageReport(first, last, by, self._prices, items, total)

    async def of_machine(self, tenant: str, machine_id: str) -> tuple[Amounts, Decimal]:
        """The machine itself, without its snapshots, in the last 30 UTC days; and what that costs."""
        now = self._clock.now()
        today = now.date().toordinal()
        first = date.fromordinal(today - DEFAULT_DAYS + 1)
        days = [date.fromordinal(today - back).isoformat() for back in range(DEFAULT_DAYS)]

        def fn(connection: sa.Connection) -> Amounts:
            total = Amounts()
            for sums in usage.of_machine(connection, tenant, machine_id, days):
                total = total.plus(sums)
            meter = usage.get(connection, machine_id)
            if meter is None:
                return total
            since = max(int(meter["since_ms"]), _ms(first))
            return total.plus(metering.amounts(meter, max(0, metering.to_ms(now) - since)))

        amounts = await self._store.read(fn)
        return amounts, amounts.cost(self._prices)

    def _rows(
        self, sums: Mapping[tuple[str, ...], Amounts], columns: tuple[str, ...]
    ) -> tuple[list[UsageRow], UsageRow]:
        total = Amounts()
        items = []
        for group, amounts in sorted(sums.items()):
            total = total.plus(
                (
                    amounts.vcpu_milli_ms,
                    amounts.memory_mib_ms,
                    amounts.storage_kib_ms,
                    amounts.egress_bytes,
                )
            )
            named = dict(zip(columns, group, strict=True))
            items.append(UsageRow(named, amounts, amounts.cost(self._prices)))
        return items, UsageRow({}, total, total.cost(self._prices))


def _sums(
    connection: sa.Connection,
    tenant: str,
    first: date,
    last: date,
    columns: tuple[str, ...],
    now: datetime,
) -> dict[tuple[str, ...], Amounts]:
    """Raises VALIDATION_FAILED for more than ``MAX_ROWS``, as soon as there are."""
    found: dict[tuple[str, ...], Amounts] = {}
    days = first.isoformat(), last.isoformat()
    stored = usage.report(connection, tenant, *days, columns, MAX_ROWS + 1)
    for group, sums in stored:
        if group or any(sums):
            found[group] = Amounts(*sums)
    _check_rows(found)
    begin, end = _ms(first), min(_ms(last) + metering.DAY_MS, metering.to_ms(now))
    meters = metering.open_now(connection, tenant, begin, end)
    for group, more in _open(meters, columns):
        found[group] = found.get(group, Amounts()).plus(more)
        _check_rows(found)
    return found


def _check_rows(found: Mapping[tuple[str, ...], Amounts]) -> None:
    if len(found) > MAX_ROWS:
        raise bad(
            "group_by", f"gives more than {MAX_ROWS} rows: ask for fewer days, or fewer groups"
        )


def _open(
    meters: Iterable[tuple[metering.Meter, int, int]], columns: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Sequence[int]]]:
    """What is open, by group. Days that begin and end within an interval are not gone through for each of what may be
    ten thousand machines asleep since weeks: rates are added up at the day where they begin and end to hold."""
    by_day = "day" in columns
    parts: dict[tuple[tuple[str, ...], str], list[int]] = {}
    steps: dict[tuple[str, ...], dict[int, list[int]]] = {}  # day number -> change of the rates
    for meter, since, until in meters:
        known = {"day": "", "machine_id": meter["machine_id"], "key_id": meter["key_id"]}
        group = tuple([known[column] for column in columns])
        first, last = since // metering.DAY_MS, until // metering.DAY_MS
        if not by_day or first == last:
            _add(parts, (group, metering.day_of(since)), metering.amounts(meter, until - since))
            continue
        day, left = metering.day_of(since), (first + 1) * metering.DAY_MS - since
        _add(parts, (group, day), metering.amounts(meter, left))
        if over := until - last * metering.DAY_MS:
            _add(parts, (group, metering.day_of(until)), metering.amounts(meter, over))
        whole = metering.amounts(meter, metering.DAY_MS)
        change = steps.setdefault(group, {})
        _add(change, first + 1, whole)
        _add(change, last, [-each for each in whole])
    for (group, day), sums in parts.items():
        yield _named(group, columns, day), sums
    for group, change in steps.items():
        rate = none = [0] * len(usage.SUMS)
        for number in range(min(change), max(change)):
            rate = [a + b for a, b in zip(rate, change.get(number, none), strict=True)]
            if any(rate):
                yield _named(group, columns, metering.day_of(number * metering.DAY_MS)), rate


def _add(sums: dict[Any, list[int]], at: Any, more: Sequence[int]) -> None:
    before = sums.get(at)
    sums[at] = list(more) if before is None else [a + b for a, b in zip(before, more, strict=True)]


def _named(group: tuple[str, ...], columns: tuple[str, ...], day: str) -> tuple[str, ...]:
    return tuple(day if c == "day" else g for c, g in zip(columns, group, strict=True))


def _ms(day: date) -> int:
    return metering.to_ms(datetime(day.year, day.month, day.day, tzinfo=UTC))
