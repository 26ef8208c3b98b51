"""What machines and snapshots use, counted as time goes: decided here, written in the caller's transaction.

    since_ms           now
       |--- rates ------|   amount = rate x time, onto the sums of each UTC day it lies in;
                            ``since_ms`` moves to ``now`` in the same transaction

A meter's rates (vCPU, memory, storage) hold from its watermark ``since_ms`` on, and everything before is in the
sums. So whatever dies when, an interval is counted once or not yet: what is open is durable as rates and a
watermark, and a transition closes it in the transaction that it is. A clock that was set back counts nothing until
it has caught up. What a machine did while no daemon saw it counts if it lives, and not if it is found dead
(``forgive``). Rows that belong to nobody (bakes, warm machines) are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from roost.engine.lifecycle import Phase
from roost.store import snapshots, usage
from roost.store.keys import NOBODY

DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Meter = Mapping[Any, Any]


class Held(NamedTuple):
    vcpu: bool
    memory: bool


# (phase, tier) -> what of its size a machine holds meanwhile; what is not listed holds its storage alone.
RATES: dict[tuple[str, str | None], Held] = {
    (Phase.RUNNING.value, None): Held(vcpu=True, memory=True),
    (Phase.SLEEPING.value, "frozen"): Held(vcpu=False, memory=True),
}
_NOTHING = Held(vcpu=False, memory=False)


class Rates(NamedTuple):
    vcpu_milli: int
    memory_mib: int


def rates(machine: Mapping[Any, Any]) -> Rates:
    """Of a machine's row."""
    phase = machine["phase"]
    tier = machine.get("tier") if phase == Phase.SLEEPING else None
    held = RATES.get((phase, tier), _NOTHING)
    return Rates(
        round(machine["vcpu"] * 1000) if held.vcpu else 0,
        machine["memory_mib"] if held.memory else 0,
    )


def to_ms(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(milliseconds=1)


def day_of(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%d")


def days(since_ms: int, until_ms: int) -> Iterator[tuple[str, int]]:
    """The pieces of an interval, in ms, by the UTC day they lie in; none where it is empty or ends before it
    begins."""
    while since_ms < until_ms:
        end = min(until_ms, (since_ms // DAY_MS + 1) * DAY_MS)
        yield day_of(since_ms), end - since_ms
        since_ms = end


def amounts(meter: Meter, ms: int) -> tuple[int, int, int, int]:
    """Of so many ms at the meter's rates; in the order of ``usage.SUMS``."""
    return (meter["vcpu_milli"] * ms, meter["memory_mib"] * ms, meter["storage_kib"] * ms, 0)


def close(connection: sa.Connection, meter: Meter, now_ms: int) -> int:
    """Counts what is open up to now; the new watermark, which the caller writes with whatever else changes."""
    if any(amounts(meter, 1)):
        for day, ms in days(meter["since_ms"], now_ms):
            usage.add(connection, meter, day, amounts(meter, ms))
    return max(now_ms, int(meter["since_ms"]))


def moved(
    connection: sa.Connection, before: Mapping[Any, Any], after: Mapping[Any, Any], now: datetime
) -> None:
    """A machine's row changed: the interval that ends with that is closed, the next begun."""
    gone = after["phase"] == Phase.DESTROYED and before["phase"] != Phase.DESTROYED
    same = rates(before) == rates(after) and before["tenant_id"] == after["tenant_id"]
    if (same and not gone) or after["tenant_id"] == NOBODY:
        return
    meter = usage.get(connection, after["id"])
    if gone:
        if meter is not None:
            close(connection, meter, to_ms(now))
            usage.delete(connection, after["id"])
        return
    if meter is None:
        begin(connection, after, now)
        return
    watermark = close(connection, meter, to_ms(now))
    values = {**rates(after)._asdict(), "since_ms": watermark, "measured_ms": None}
    usage.update(connection, after["id"], values)


def begin(connection: sa.Connection, machine: Mapping[Any, Any], now: datetime) -> None:
    """A machine counts from now on."""
    usage.insert(
        connection,
        {
            "id": machine["id"],
            "tenant_id": machine["tenant_id"],
            "machine_id": machine["id"],
            "key_id": machine["created_by"] or "",
            "family": _family(connection, machine),
            **rates(machine)._asdict(),
            **_fresh(now),
        },
    )


def begin_snapshot(
    connection: sa.Connection, snapshot: Mapping[Any, Any], created_by: str | None, now: datetime
) -> None:
    """A snapshot's storage counts from now on, on its machine."""
    if snapshot["for_fork"] or snapshot["tenant_id"] == NOBODY:
        return
    machine_id = snapshot["machine_id"]
    of = usage.get(connection, machine_id)
    usage.insert(
        connection,
        {
            "id": snapshot["id"],
            "tenant_id": snapshot["tenant_id"],
            "machine_id": machine_id,
            "key_id": created_by or (of["key_id"] if of is not None else ""),
            "family": of["family"] if of is not None else machine_id,
            "vcpu_milli": 0,
            "memory_mib": 0,
            **_fresh(now),
        },
    )
    if of is not None:
        usage.changed(connection, machine_id)


def begin_volume(connection: sa.Connection, volume: Mapping[Any, Any], now: datetime) -> None:
    """A volume's storage counts from now on, under its own id."""
    usage.insert(
        connection,
        {
            "id": volume["id"],
            "tenant_id": volume["tenant_id"],
            "machine_id": volume["id"],
            "key_id": volume["created_by"] or "",
            "family": volume["id"],
            "vcpu_milli": 0,
            "memory_mib": 0,
            **_fresh(now),
        },
    )


def end(connection: sa.Connection, subject: str, now: datetime) -> None:
    """A snapshot or volume is gone."""
    meter = usage.get(connection, subject)
    if meter is not None:
        close(connection, meter, to_ms(now))
        usage.delete(connection, subject)


def forgive(connection: sa.Connection, machine_id: str, now: datetime) -> None:
    """It is found dead, and nobody knows since when: up to now its storage counts alone."""
    meter = usage.get(connection, machine_id)
    if meter is not None:
        idle = {**meter, "vcpu_milli": 0, "memory_mib": 0}
        usage.update(connection, machine_id, {"since_ms": close(connection, idle, to_ms(now))})


def tick(connection: sa.Connection, now: datetime) -> None:
    """An interval is over: what holds memory is counted up to now, so that no more than one is lost where a
    machine dies unseen."""
    now_ms = to_ms(now)
    for meter in usage.holding(connection):
        usage.update(connection, meter["id"], {"since_ms": close(connection, meter, now_ms)})


def measured(connection: sa.Connection, subject: str, storage_kib: int, now: datetime) -> None:
    """What it has in the pool, from now on."""
    meter = usage.get(connection, subject)
    if meter is None:  # it went meanwhile
        return
    values: dict[str, Any] = {"measured_ms": to_ms(now)}
    if storage_kib != meter["storage_kib"]:
        values |= {"since_ms": close(connection, meter, to_ms(now)), "storage_kib": storage_kib}
    usage.update(connection, subject, values)


def sent(
    connection: sa.Connection, machine_id: str, generation: int, seen: int, now: datetime
) -> None:
    """``seen`` bytes left the machine since start ``generation`` of it; a counter that says less than it did was
    read before."""
    meter = usage.get(connection, machine_id)
    if meter is None or generation < meter["egress_generation"]:
        return
    before = meter["egress_seen"] if generation == meter["egress_generation"] else 0
    if seen > before:
        usage.add(connection, meter, day_of(to_ms(now)), (0, 0, 0, seen - before))
    values = {"egress_generation": generation, "egress_seen": max(seen, before)}
    usage.update(connection, machine_id, values)


def begin_missing(connection: sa.Connection, now: datetime, limit: int) -> None:
    """Meters for what was here before anybody counted, so many at a time."""
    of_machines, of_snapshots = usage.without_meter(connection, limit)
    for machine in of_machines:
        begin(connection, machine, now)
    for snapshot in of_snapshots:
        begin_snapshot(connection, snapshot, None, now)


def open_now(
    connection: sa.Connection, tenant: str, first_ms: int, end_ms: int
) -> Iterator[tuple[Meter, int, int]]:
    """What is open of a tenant's meters within [first, end): (meter, from, until), in ms."""
    for meter in usage.of_tenant(connection, tenant):
        since = max(meter["since_ms"], first_ms)
        if since < end_ms and any(amounts(meter, 1)):
            yield meter, since, end_ms


def _family(connection: sa.Connection, machine: Mapping[Any, Any]) -> str:
    """Blocks are shared along the line of snapshots alone; those of nobody's cost nothing and tie nobody."""
    own = str(machine["id"])
    if machine["snapshot_id"] is None:
        return own
    snapshot = snapshots.get(connection, machine["snapshot_id"])
    if snapshot is None or snapshot["tenant_id"] == NOBODY:
        return own
    parent = usage.get(connection, snapshot["id"]) or usage.get(connection, snapshot["machine_id"])
    return own if parent is None else str(parent["family"])


def _fresh(now: datetime) -> dict[str, Any]:
    now_ms = to_ms(now)
    return {
        "since_ms": now_ms,
        "storage_kib": 0,
        "born_ms": now_ms,
        "measured_ms": None,
        "egress_generation": 0,
        "egress_seen": 0,
    }
