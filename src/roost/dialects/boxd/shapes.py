"""Machines as messages, and what is asked of them as what the services take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from roost import ids
from roost.api.v1.services import Services
from roost.dialects.boxd import names
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.dialects.serving import not_served
from roost.egress.policy import Mode
from roost.engine.lifecycle import Phase, Tier
from roost.engine.machine import Machine
from roost.errors import InvalidRequestError, NotFoundError
from roost.gateway.calls import Call
from roost.services.places import Places

MIB, GIB = 2**20, 2**30
LOCKED = "boxd.route"  # a label nobody is shown: the machine's own route is pinned to its port

_ASLEEP = {Tier.FROZEN: "suspended", Tier.HIBERNATED: "hibernated", Tier.STOPPED: "stopped"}
_STATUS = {
    Phase.ACCEPTED: "pending",
    Phase.PLACEMENT_PENDING: "pending",
    Phase.STARTING: "starting",
    Phase.RUNNING: "running",
    Phase.WAKING: "starting",
    Phase.DESTROYING: "destroyed",
    Phase.DESTROYED: "destroyed",
    Phase.FAILED: "failed",
}


def status(machine: Machine) -> str:
    """One that is on its way to sleep sleeps already."""
    state = machine.state
    if state.phase in (Phase.STOPPING, Phase.SLEEPING):
        return _ASLEEP.get(state.tier or Tier.STOPPED, "stopped")
    return _STATUS[state.phase]


def vm(machine: Machine, places: Places) -> pb.Vm:
    asleep = status(machine)
    return pb.Vm(
        vm_id=machine.id,
        name=names.of_machine(machine),
        image_ref=machine.template,
        status=asleep,
        disk_bytes=machine.storage_gib * GIB,
        auto_suspend_timeout_secs=machine.autosleep_seconds or 0,
        auto_hibernate_timeout_secs=machine.hibernate_after_seconds or 0,
        org=machine.tenant_id,
        org_id=machine.tenant_id,
        billing_org=machine.tenant_id,
        billing_org_id=machine.tenant_id,
        access_domain=zone(places),
        vcpu=math.ceil(machine.vcpu),
        memory_bytes=machine.memory_mib * MIB,
        created_at=int(machine.created_at.timestamp()),
        hibernated_at_ms=_ms(machine.last_transition_at) if asleep == "hibernated" else 0,
        last_connected_ms=_ms(machine.last_activity_at),
        source_info=source(machine),
        isolated=True,  # no machine reaches another
        egress_allow=allowed(machine),
        delete_at_ms=_ms(machine.expires_at),
        labels={k: v for k, v in machine.labels.items() if k != LOCKED},
    )


def source(machine: Machine) -> pb.VmSource | None:
    if machine.from_snapshot_id is not None:
        return pb.VmSource(kind="snapshot", id=machine.from_snapshot_id)
    if machine.parent_id is not None:
        return pb.VmSource(kind="fork", id=machine.parent_id)
    return None


def allowed(machine: Machine) -> list[str]:
    """[]: there is no list. A machine that may reach nothing has one that allows nothing anybody could mean."""
    if machine.egress.mode is Mode.OPEN:
        return []
    if machine.egress.mode is Mode.OFF or not machine.egress.allow:
        return ["0.0.0.0/32"]
    return [str(each) for each in machine.egress.allow]


def made(machine: Machine, url: str, seconds: float) -> dict[str, Any]:
    """What a machine just made is answered with."""
    return {
        "vm_id": machine.id,
        "name": names.of_machine(machine),
        "url": url,
        "image": machine.template,
        "status": status(machine),
        "boot_time_ms": max(1, round(seconds * 1000)),
    }


def zone(places: Places) -> str:
    """What stands after a machine's name in its own route's host."""
    return urlsplit(places.url("x")).netloc.removeprefix("x.")


def domain(places: Places, label: str) -> str:
    return urlsplit(places.url(label)).netloc


# --- asked --------------------------------------------------------------------------------------


async def named(services: Services, call: Call, which: str) -> Machine:
    """Whom a call is about, in the audit log, too. Raises MACHINE_NOT_FOUND."""
    machine = await services.machines.named(call.tenant, which)
    call.machine_id = machine.id
    return machine


async def machine_id(services: Services, call: Call, which: str) -> str:
    """As ``named`` of one that is to be used, not looked at: of an id that runs without asking the store."""
    if ids.formed(which) and services.machines.boot(which, call.tenant) is not None:
        call.machine_id = which
        return which
    return (await named(services, call, which)).id


def size(config: pb.VmConfig) -> dict[str, Any]:
    """Only what is asked for; as ``CreateMachine`` has it."""
    return {
        name: value
        for name, value in (
            ("vcpu", config.vcpu),
            ("memory_mib", -(-config.memory_bytes // MIB)),
            ("storage_gib", -(-config.disk_bytes // GIB)),
        )
        if value
    }


def as_captured(config: pb.VmConfig, machine: Any, what: str) -> None:
    """A fork or a restored machine has the size it was captured with. Raises UNSUPPORTED."""
    for name, value in size(config).items():
        if value != getattr(machine, name):
            raise not_served(
                f"{name} on a {what}",
                f"It has the {getattr(machine, name):g} it was captured with: resize it afterwards.",
            )


def idle(config: pb.VmConfig) -> dict[str, Any]:
    """``autosleep_seconds`` where something is said of it. Raises UNSUPPORTED."""
    if config.srf.auto_destroy_timeout_secs:
        raise not_served("auto_destroy_timeout", "Set delete_after.")
    if not config.srf.HasField("auto_suspend_timeout_secs"):
        return {}
    return {"autosleep_seconds": config.srf.auto_suspend_timeout_secs or None}


def check_config(config: pb.VmConfig) -> None:
    """Raises UNSUPPORTED."""
    if config.HasField("network") and not config.network.ssh:
        raise not_served(
            "machines that SSH does not reach", "Leave ssh out: it takes a key of yours."
        )


def check_networks(networks: Any) -> None:
    if networks:
        raise not_served("networks between machines", "No machine reaches another.")


def check_org(org: str, tenant: str) -> None:
    """The tenant is the one org there is. Raises NOT_FOUND."""
    if org not in ("", tenant):
        raise NotFoundError(f"You belong to no org {org[:64]!r}: leave it out.")


def selected(selector: list[str], labels: Mapping[str, str]) -> bool:
    for term in selector:
        key, equals, value = term.partition("=")
        if not key:
            raise InvalidRequestError(
                "label_selector: key=value, or key.", details={"field": "label_selector"}
            )
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _ms(at: datetime | None) -> int:
    return 0 if at is None else int(at.timestamp() * 1000)
