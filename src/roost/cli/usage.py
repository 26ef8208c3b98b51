"""``roost usage``: what was used, by day, machine or key, with bars; or what one machine uses now."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import typer

from roost.cli._connect import client, complete_machine, find
from roost.cli._out import Json, fields, print_json, say, size, table

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEADS = {"day": "DAY", "machine_id": "MACHINE", "key_id": "KEY"}


@app.command()
def usage(
    machine: Annotated[
        str | None,
        typer.Argument(
            metavar="[MACHINE]",
            help="What this one uses now, instead of what all used.",
            autocompletion=complete_machine,
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day (UTC), as 2026-11-01.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day (UTC), included; today.")
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="GROUPS", help="day, machine, key; several with commas.")
    ] = "day",
    tenant: Annotated[str | None, typer.Option(help="Another tenant's (admin).")] = None,
    json: Json = False,
) -> None:
    """What was used and what it costs, by day; or what one machine uses now."""
    if machine is not None:
        _now(machine, json)
        return
    found = client().usage(start, end, group_by=by, tenant=tenant)
    if json:
        print_json(found)
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    prices = found["prices"]
    priced = any(Decimal(price) for name, price in prices.items() if name != "currency")
    measure = "cost" if priced else "vcpu_seconds"
    groups = [name for name in _HEADS if any(name in row for row in found["items"])]
    most = max((Decimal(str(row[measure])) for row in found["items"]), default=Decimal(0))
    table(
        [
            *(_HEADS[name] for name in groups),
            "VCPU",
            "MEMORY",
            "STORAGE",
            "EGRESS",
            f"COST {prices['currency']}",
            "COST" if priced else "VCPU TIME",
        ],
        [
            (
                *(row.get(name) for name in groups),
                *_amounts(row),
                bar(Decimal(str(row[measure])), most),
            )
            for row in found["items"]
        ],
        empty=f"Nothing was used from {found['from']} to {found['to']}.",
    )
    vcpu, memory, storage, egress, cost = _amounts(found["total"])
    say(
        f"{found['from']} to {found['to']} (UTC): vCPU {vcpu}, memory {memory}, storage {storage}, "
        f"egress {egress}; cost {cost} {prices['currency']}"
        + ("" if priced else " (no prices are set: ROOST_PRICES)")
    )


def _amounts(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    return (
        hours(row["vcpu_seconds"]),
        f"{row['memory_gib_seconds'] / 3600:.2f} GiBh",
        f"{row['storage_gib_hours']:.2f} GiBh",
        size(row["egress_bytes"]),
        f"{Decimal(row['cost']):.4f}",
    )


def hours(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def bar(value: Decimal, most: Decimal) -> str:
    """As long as its share of the most, to an eighth of a character."""
    if value <= 0 or most <= 0:
        return ""
    eighths = max(1, int(value * WIDTH * 8 / most))
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _now(machine: str, json: bool) -> None:
    data = find(machine).usage()
    if json:
        print_json(data)
        return
    fields(
        [
            ("cpu", f"{(data.get('cpu_usage_us') or 0) / 1e6:.1f} s in all"),
            (
                "memory",
                f"{size(data.get('memory_bytes'))} of {size(data.get('memory_limit_bytes'))}",
            ),
            ("processes", data.get("pids")),
            (
                "disk",
                f"{size(data.get('disk_used_bytes'))} of {size(data.get('disk_total_bytes'))}",
            ),
            ("uptime", f"{(data.get('uptime_ms') or 0) / 1000:.0f} s"),
        ]
    )
