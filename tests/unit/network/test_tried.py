"""Counted packets as decisions."""

from __future__ import annotations

from typing import Any

from roost.network import tried
from roost.network.rules import TRIED_FOR_S

NOW = 1_000_000.0


def _set(name: str, *elements: dict[str, Any]) -> dict[str, Any]:
    return {"set": {"name": name, "elem": [{"elem": each} for each in elements]}}


def _element(*key: Any, ago: float, count: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"val": {"concat": list(key)}, "expires": TRIED_FOR_S - ago}
    return found if count is None else {**found, "counter": {"packets": count, "bytes": 1}}


def test_when_and_how_often() -> None:
    found = tried.read(
        [
            {"metainfo": {}},
            _set("refused", _element("192.0.2.1", 6, 5432, ago=10, count=3)),
            _set("refused_since", _element("192.0.2.1", 6, 5432, ago=90)),
            _set("allowed", _element("192.0.2.2", 17, 53, ago=5, count=2)),
            _set("refused_other", _element("192.0.2.3", 1, ago=1, count=1)),
            {"counter": {"name": "refused", "packets": 4, "bytes": 1}},
        ],
        NOW,
    )
    first, second, third = found
    assert (first.host, first.port, first.protocol, first.count) == ("192.0.2.1", 5432, "tcp", 3)
    assert (first.first_at, first.last_at) == (NOW - 90, NOW - 10)
    assert (first.allowed, first.reason, first.via) == (False, "address", "packet")
    assert (second.host, second.protocol, second.allowed, second.reason) == (
        "192.0.2.2",
        "udp",
        True,
        "",
    )
    assert (third.protocol, third.port, third.first_at) == ("icmp", 0, NOW - 1)


def test_what_does_not_fit_is_told_as_a_sum() -> None:
    found = tried.read([{"counter": {"name": "refused", "packets": 7}}], NOW)
    assert [(each.reason, each.count) for each in found] == [("unlisted", 7)]


def test_nothing_was_tried() -> None:
    assert (
        tried.read(
            [{"set": {"name": "refused"}}, {"counter": {"name": "refused", "packets": 0}}], NOW
        )
        == []
    )
