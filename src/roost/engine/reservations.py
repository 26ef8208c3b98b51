"""Whether one more machine fits on this host: a pure rule.

Running machines may promise more than the host has (overcommit), since few use all they may: the sums of
memory_mib and vcpu stay under the host's times a factor. What is kept for the host is no machine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.errors import CapacityError, InvalidRequestError
from roost.settings import Settings


@dataclass(frozen=True, slots=True)
class HostSize:
    vcpu: float
    memory_mib: int
    available_mib: int | None = None  # free now, as the kernel reckons; None: not known

    @staticmethod
    def measure() -> HostSize:
        fields: dict[str, int] = {}
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) // 1024
        return HostSize(
            float(len(os.sched_getaffinity(0))), fields["MemTotal"], fields.get("MemAvailable")
        )


@dataclass(frozen=True, slots=True)
class Held:
    """Sums over the machines that hold resources now."""

    vcpu: float
    memory_mib: int
    machines: int


@dataclass(frozen=True, slots=True)
class Budget:
    vcpu: float
    memory_mib: int


def budget(settings: Settings, host: HostSize) -> Budget:
    usable = max(0, host.memory_mib - settings.memory_reserve_mib)
    return Budget(host.vcpu * settings.cpu_overcommit, int(usable * settings.memory_overcommit))


def check_size(host: HostSize, vcpu: float, memory_mib: int) -> None:
    """Raises VALIDATION_FAILED for a machine that no emptying of this host would make room for."""
    if vcpu > host.vcpu:
        raise InvalidRequestError(
            f"vcpu {vcpu:g} is more than this host's {host.vcpu:g} cores.",
            details={"field": "vcpu", "limit": host.vcpu},
        )
    if memory_mib > host.memory_mib:
        raise InvalidRequestError(
            f"memory_mib {memory_mib} is more than this host's {host.memory_mib} MiB.",
            details={"field": "memory_mib", "limit": host.memory_mib},
        )


def admit(settings: Settings, host: HostSize, held: Held, vcpu: float, memory_mib: int) -> None:
    """Raises CapacityError CAPACITY_EXCEEDED (retryable) with the numbers, and with what is ``short``: memory, vcpu,
    or available (memory that is promised to nobody and yet not free)."""
    check_size(host, vcpu, memory_mib)
    limit = budget(settings, host)
    details: dict[str, Any] = {
        "vcpu": {"asked": vcpu, "held": held.vcpu, "limit": limit.vcpu},
        "memory_mib": {"asked": memory_mib, "held": held.memory_mib, "limit": limit.memory_mib},
        "machines": held.machines,
    }
    advice = "Let a machine sleep or delete one, then retry."
    if host.available_mib is not None and host.available_mib < settings.memory_reserve_mib:
        details["short"] = "available"
        details["available_mib"] = host.available_mib
        details["reserve_mib"] = settings.memory_reserve_mib
    if held.memory_mib + memory_mib > limit.memory_mib:
        details["short"] = "memory"
        raise CapacityError(
            f"This host is full: {held.memory_mib} of {limit.memory_mib} MiB of memory are promised to "
            f"{held.machines} machines, and {memory_mib} more were asked. {advice}",
            details=details,
        )
    if held.vcpu + vcpu > limit.vcpu + 1e-9:
        details["short"] = "vcpu"
        raise CapacityError(
            f"This host is full: {held.vcpu:g} of {limit.vcpu:g} vCPUs are promised to {held.machines} "
            f"machines, and {vcpu:g} more were asked. {advice}",
            details=details,
        )
    if "short" in details:
        raise CapacityError(
            f"This host is short of memory: {host.available_mib} MiB are free and "
            f"{settings.memory_reserve_mib} are kept for the host. {advice}",
            details=details,
        )


def could_fit(refused: Mapping[str, Any], vcpu: float, memory_mib: int) -> bool:
    """Whether what was refused with these details would fit, were so much given up: else nothing need be."""
    for name, given in (("vcpu", vcpu), ("memory_mib", memory_mib)):
        numbers = refused[name]
        if numbers["asked"] + numbers["held"] - given > numbers["limit"] + 1e-9:
            return False
    if "available_mib" not in refused:
        return True
    return bool(refused["available_mib"] + memory_mib >= refused["reserve_mib"])
