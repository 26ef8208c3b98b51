"""The figures of ``/metrics`` that are looked up when they are asked for."""

from __future__ import annotations

import sqlalchemy as sa

from roost.engine.engine import Engine
from roost.gateway.metrics import Metrics
from roost.preview.plane import Plane
from roost.services.executions import Executions
from roost.services.warm import Warm
from roost.store import usage
from roost.store.schema import machines as t

_GIB = 2**30


def watch_previews(metrics: Metrics, plane: Plane) -> None:
    requests = metrics.total("roost_preview_requests", "Requests let through to machines' ports.")
    refused = metrics.gauge("roost_preview_refused", "Answers of the preview proxy's own.", "code")
    open_ = metrics.gauge("roost_preview_connections", "Of browsers; to machines.", "side")

    async def look() -> None:
        requests(plane.requests)
        for code, count in plane.refusals.items():
            refused.labels(code).set(count)
        for side, count in zip(("visitors", "machines"), plane.connections(), strict=True):
            open_.labels(side).set(count)

    metrics.measure(look)


def watch(metrics: Metrics, engine: Engine, executions: Executions, warm: Warm) -> None:
    machines = metrics.gauge("roost_machines", "Machines by phase and driver.", "phase", "driver")
    pool = metrics.gauge("roost_pool_bytes", "The disk pool.", "state")
    running = metrics.gauge("roost_executions_running", "Executions that run now.")
    slots = metrics.gauge("roost_network_slots", "Network slots: used, ready, free.", "state")
    ready = metrics.gauge("roost_warm_machines", "Machines made ahead that nobody has yet.")
    queue = metrics.gauge("roost_database_write_queue", "Writes that wait for their turn.")
    used = {
        "vcpu_seconds": (
            metrics.total("roost_usage_vcpu_seconds", "vCPUs awake, of intervals closed."),
            1,
        ),
        "memory_gib_seconds": (
            metrics.total("roost_usage_memory_byte_seconds", "Memory held, of intervals closed."),
            _GIB,
        ),
        "storage_gib_hours": (
            metrics.total("roost_usage_storage_byte_seconds", "Blocks held, of intervals closed."),
            _GIB * 3600,
        ),
        "egress_bytes": (metrics.total("roost_usage_egress_bytes", "Sent by machines."), 1),
    }
    engine.journal.observe = metrics.operation

    async def look() -> None:
        queue.set(engine.store.queued)
        running.set(executions.running)
        ready.set(warm.count)
        counts = engine.parts.network.counts()
        for state in ("used", "ready", "free"):
            slots.labels(state).set(getattr(counts, state))
        found, totals = await engine.store.read(lambda c: (by_phase(c), usage.totals(c)))
        machines.clear()
        for phase, driver, count in found:
            machines.labels(phase, driver).set(count)
        for name, (total, unit) in used.items():
            total(totals[name] * unit)
        disk = await engine.parts.storage.usage()
        pool.labels("total").set(disk.total)
        pool.labels("free").set(disk.free)

    metrics.measure(look)


def by_phase(connection: sa.Connection) -> list[tuple[str, str, int]]:
    query = sa.select(t.c.phase, t.c.driver, sa.func.count()).group_by(t.c.phase, t.c.driver)
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]
