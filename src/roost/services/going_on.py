"""What outlives a machine's sleep."""

from __future__ import annotations

from roost.services.models import Machine


def goes_on(machine: Machine) -> bool:
    """Whether what runs in it does, now or after its sleep."""
    asleep = machine.phase in ("sleeping", "stopping") and machine.tier in ("frozen", "hibernated")
    return asleep or machine.phase in ("running", "waking")
