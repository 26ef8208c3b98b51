"""What is counted, for ``GET /metrics``."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

from roost.errors import RoostError

log = structlog.get_logger(__name__)

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LAG = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_PAGE = resource.getpagesize()


class Metrics:
    """One registry a daemon."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._measures: list[Callable[[], Awaitable[None]]] = []
        self.requests = Counter(
            "roost_requests",
            "Requests answered.",
            ["resource", "method", "status"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "roost_request_seconds",
            "From the request's arrival to the end of its answer.",
            ["resource"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.executions = Counter(
            "roost_executions", "Executions asked for.", ["kind"], registry=self.registry
        )
        self.create_seconds = Histogram(
            "roost_create_seconds",
            "Machine creates that were waited for.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.failures = Counter(
            "roost_failures", "Requests refused or failed.", ["code"], registry=self.registry
        )
        self.operations = Counter(
            "roost_operations",
            "Operations of machines that ended; code: what they failed with.",
            ["kind", "code"],
            registry=self.registry,
        )
        self.operation_seconds = Histogram(
            "roost_operation_seconds",
            "Operations of machines that succeeded.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.lag_seconds = Histogram(
            "roost_event_loop_lag_seconds",
            "How late the event loop is, looked at once a second.",
            buckets=_LAG,
            registry=self.registry,
        )
        rss = Gauge("roost_resident_bytes", "Memory of the daemon.", registry=self.registry)
        rss.set_function(resident_bytes)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def total(self, name: str, text: str) -> Callable[[float], None]:
        """A counter whose value is kept elsewhere; sets it. Shown once it was set."""
        return _Total(name, text, self.registry).set

    def measure(self, look: Callable[[], Awaitable[None]]) -> None:
        """``look`` sets gauges, each time the figures are asked for."""
        self._measures.append(look)

    def answered(self, kind: str, method: str, status: int, seconds: float) -> None:
        self.requests.labels(kind, method, str(status)).inc()
        self.request_seconds.labels(kind).observe(seconds)

    def failed(self, code: str) -> None:
        self.failures.labels(code).inc()

    def operation(self, kind: str, seconds: float, code: str | None) -> None:
        """``code`` None: it succeeded."""
        self.operations.labels(kind, code or "").inc()
        if code is None:
            self.operation_seconds.labels(kind).observe(seconds)

    async def watch_loop(self) -> None:
        """For ever: how late the event loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 1
            await asyncio.sleep(1)
            self.lag_seconds.observe(max(0.0, loop.time() - due))

    async def render(self) -> bytes:
        for look in self._measures:
            try:
                async with asyncio.timeout(5):
                    await look()
            except (RoostError, TimeoutError) as failure:
                log.warning("metrics.measure", error=str(failure)[:200])
        return generate_latest(self.registry)


class _Total:
    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._value: float | None = None
        registry.register(self)

    def set(self, value: float) -> None:
        self._value = value

    def collect(self) -> Iterator[CounterMetricFamily]:
        if self._value is not None:
            yield CounterMetricFamily(self._name, self._text, value=self._value)


def resident_bytes() -> float:
    return float(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


_KNOWN = frozenset(
    {"machines", "executions", "terminals", "files", "templates", "keys", "host", "usage", "logs"}
    | {"egress", "sandboxes"}
)


def resource_of(path: str) -> str:
    """The last known noun of a path: a label with few values."""
    for segment in reversed(path.split("/")[:6]):
        if segment in _KNOWN:
            return segment
    return "other"
