"""``roost usage``: a table with bars, JSON, and what one machine uses now."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from roost.cli.usage import WIDTH, bar
from tests.unit.client.stub import MACHINE_ID, Stub

FREE = {
    "currency": "USD", "vcpu_second": "0", "memory_gib_second": "0",
    "storage_gib_hour": "0", "egress_gib": "0",
}  # fmt: skip


def row(seconds: float, cost: str = "0.000000", **group: str) -> dict[str, Any]:
    return {
        **group,
        "vcpu_seconds": seconds,
        "memory_gib_seconds": 3600.0,
        "storage_gib_hours": 2.5,
        "egress_bytes": 2048,
        "cost": cost,
    }


def report(prices: dict[str, str], *items: dict[str, Any]) -> dict[str, Any]:
    return {
        "from": "2026-03-01",
        "to": "2026-03-02",
        "group_by": ["day"],
        "prices": prices,
        "items": list(items),
        "total": row(30.0, "1.500000"),
    }


def test_days_with_bars(
    stub: Stub, roost: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    made = report(FREE, row(10.0, day="2026-03-01"), row(20.0, day="2026-03-02"))
    stub.on("GET", "/v1/usage", lambda _: made)
    assert roost("usage", "--from", "2026-03-01", "--to", "2026-03-02") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["2026-03-01", "10.0", "s"]
    assert lines[1].endswith("█" * (WIDTH // 2))
    assert not lines[1].endswith("█" * (WIDTH // 2 + 1))
    assert lines[2].endswith("█" * WIDTH)
    assert lines[3].endswith("cost 1.5000 USD (no prices are set: ROOST_PRICES)")
    assert stub.seen[-1].query == {"from": "2026-03-01", "to": "2026-03-02", "group_by": "day"}


def test_with_prices_the_bars_are_money(
    stub: Stub, roost: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {**FREE, "currency": "EUR", "egress_gib": "0.1"}
    made = report(
        prices,
        row(10.0, "1.000000", machine_id="a", key_id="k"),
        row(20.0, "0.500000", machine_id="b"),
    )
    stub.on("GET", "/v1/usage", lambda _: made)
    assert roost("usage", "--by", "machine,key") == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["MACHINE", "KEY"]
    assert lines[1].endswith("█" * WIDTH)
    assert lines[2].split()[:2] == ["b", "-"]
    assert "no prices" not in out
    assert stub.seen[-1].query == {"group_by": "machine,key"}


def test_json_and_nothing(
    stub: Stub, roost: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.on("GET", "/v1/usage", lambda _: report(FREE))
    assert roost("usage", "--json") == 0
    assert json.loads(capsys.readouterr().out) == report(FREE)
    assert roost("usage") == 0
    assert "Nothing was used" in capsys.readouterr().err


def test_one_machine_now(
    stub: Stub, roost: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    now = {"cpu_usage_us": 2_500_000, "memory_bytes": 1024, "pids": 3}
    stub.on("GET", f"/v1/machines/{MACHINE_ID}/usage", lambda _: now)
    assert roost("usage", MACHINE_ID) == 0
    assert "2.5 s in all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "most", "shown"),
    [("0", "5", ""), ("0", "0", ""), ("1", "1000000", "▏"), ("5", "5", "█" * WIDTH)],
)
def test_bars(value: str, most: str, shown: str) -> None:
    assert bar(Decimal(value), Decimal(most)) == shown
