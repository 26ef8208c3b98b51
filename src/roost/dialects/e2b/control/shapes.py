"""Answers, as E2B writes them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

from roost.dialects.e2b.control import network
from roost.engine.lifecycle import Phase, Tier
from roost.services.models import Machine, Sample

ENVD_VERSION = "0.6.13"  # of what ``envd`` speaks: its clients use all they know up to it
CLIENT = "roost"
NEVER = timedelta(days=3650)  # where E2B always has an end
ASLEEP = frozenset(
    {Phase.SLEEPING, Phase.FAILED}
)  # a failed one, too: connecting starts it from its disk


def state(machine: Machine) -> str:
    return "paused" if machine.phase in ASLEEP else "running"


def template_of(machine: Machine) -> str:
    return machine.from_snapshot_id or machine.template


def ends(machine: Machine) -> datetime:
    if machine.expires_at is not None:
        return machine.expires_at
    if machine.phase in ASLEEP:  # it has no end while it is asleep
        return machine.last_transition_at
    return machine.created_at + NEVER


def listed(machine: Machine) -> dict[str, Any]:
    return {
        "templateID": template_of(machine),
        "alias": machine.template,
        "sandboxID": machine.id,
        "clientID": CLIENT,
        "startedAt": machine.created_at,
        "endAt": ends(machine),
        "cpuCount": max(1, math.ceil(machine.vcpu)),
        "memoryMB": machine.memory_mib,
        "diskSizeMB": machine.storage_gib * 1024,
        "metadata": dict(machine.labels),
        "state": state(machine),
        "envdVersion": ENVD_VERSION,
        "volumeMounts": [{"name": each.name, "path": each.path} for each in machine.volumes],
    }


def detail(machine: Machine, token: str | None, domain: str, public: bool) -> dict[str, Any]:
    """``token`` None: who asks may only read, and with it could do more."""
    asleep = state(machine) == "paused"
    found = {
        **listed(machine),
        "envdAccessToken": token,
        "domain": domain,
        "allowInternetAccess": network.internet(machine.egress),
        "network": network.shape(machine.egress, public),
        "lifecycle": {
            "autoResume": machine.autowake,
            "onTimeout": "pause" if machine.expiry == "sleep" else "kill",
        },
    }
    if asleep:
        found["pauseMode"] = (
            "full" if machine.tier in (Tier.FROZEN, Tier.HIBERNATED) else "filesystem"
        )
    return found


def opened(machine: Machine, token: str, traffic: str | None, domain: str) -> dict[str, Any]:
    """Of a sandbox that was made, connected to, resumed or forked."""
    return {
        "templateID": template_of(machine),
        "alias": machine.template,
        "sandboxID": machine.id,
        "clientID": CLIENT,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": token,
        "trafficAccessToken": traffic,
        "domain": domain,
    }


def metric(found: Sample) -> dict[str, Any]:
    count = max(1, math.ceil(found.cpu_count))
    return {
        "timestamp": found.at,
        "timestampUnix": int(found.at.timestamp()),
        "cpuCount": count,
        "cpuUsedPct": round(found.cpu_used_pct / count, 2),
        "memUsed": found.memory_used_bytes,
        "memTotal": found.memory_total_bytes,
        "memCache": found.memory_cache_bytes,
        "diskUsed": found.disk_used_bytes or 0,
        "diskTotal": found.disk_total_bytes or 0,
    }
