"""What is counted, for ``GET /metrics``."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PAGE = resource.getpagesize()


class Metrics:
    """One registry a daemon."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        rss = Gauge("roost_resident_bytes", "Memory of the daemon.", registry=self.registry)
        rss.set_function(resident_bytes)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge read when asked for."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch_by(
        self, name: str, text: str, label: str, read: Callable[[], Iterable[tuple[str, float]]]
    ) -> None:
        """A gauge for each value of a label."""
        self.registry.register(_Labelled(name, text, label, read))

    def answered(self, kind: str, method: str, status: int, seconds: float) -> None:
        self.requests.labels(kind, method, str(status)).inc()
        self.request_seconds.labels(kind).observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Labelled:
    def __init__(
        self,
        name: str,
        text: str,
        label: str,
        read: Callable[[], Iterable[tuple[str, float]]],
    ) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self._read():
            family.add_metric([value], number)
        yield family


def resident_bytes() -> float:
    return float(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


_KNOWN = frozenset(
    {"machines", "executions", "terminals", "files", "templates", "keys", "host", "usage", "logs"}
)


def resource_of(path: str) -> str:
    """The last known noun of a path: a label with few values."""
    for segment in reversed(path.split("/")[:6]):
        if segment in _KNOWN:
            return segment
    return "other"
