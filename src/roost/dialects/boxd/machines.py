"""Machines: their lives, sizes, labels, idle times and what they may reach."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from roost.api.v1.services import Services
from roost.dialects.boxd import disks, names, shapes
from roost.dialects.boxd.proxies import Proxies
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.dialects.serving import not_served
from roost.egress.policy import Policy
from roost.engine.lifecycle import Tier
from roost.engine.machine import Machine
from roost.errors import ConflictError, InvalidRequestError, NotFoundError, RoostError
from roost.gateway.calls import Call, Method
from roost.services import limits
from roost.services.models import CreateMachine, ForkMachine, PatchMachine, Snapshot

PAGE = 500
RESTARTS = ("", "always", "on-failure", "unless-stopped")
_EMPTY = pb.Empty()


class Machines:
    def __init__(self, services: Services, proxies: Proxies) -> None:
        self._s = services
        self._proxies = proxies
        self._places = services.ports.places

    def methods(self) -> list[Method]:
        ref = pb.VmRef
        return [
            Method("CreateVm", pb.CreateVmRequest, self.create),
            Method("CreateVmFromSnapshot", pb.CreateVmFromSnapshotRequest, self.restore),
            Method("ForkVm", pb.ForkVmRequest, self.fork),
            Method("GetVm", ref, self.get, reads=True),
            Method("ListVms", pb.ListVmsRequest, self.listed, reads=True),
            Method("SuggestVmName", pb.Empty, self.suggest, reads=True),
            Method("DestroyVm", ref, self.destroy),
            Method("StartVm", ref, self.wake),
            Method("StopVm", ref, self.stop),
            Method("RebootVm", ref, self.reboot),
            Method("SuspendVm", ref, self.suspend),
            Method("ResumeVm", ref, self.resume),
            Method("HibernateVm", ref, self.hibernate),
            Method("WakeVm", ref, self.wake),
            Method("ResizeVm", pb.ResizeVmRequest, self.resize),
            Method("ShareVm", ref, self.share, reads=True),
            Method("UpdateVmLabels", pb.UpdateVmLabelsRequest, self.labels),
            Method("SetVmEgressAllow", pb.SetVmEgressAllowRequest, self.egress),
            Method("SetAutoSuspendTimeout", pb.SetTimeoutRequest, self.suspend_after),
            Method("SetAutoHibernateTimeout", pb.SetTimeoutRequest, self.hibernate_after),
            Method("SetDeleteAfter", pb.SetDeleteAfterRequest, self.delete_after),
        ]

    # --- making ---------------------------------------------------------------------------------

    async def create(self, call: Call, asked: pb.CreateVmRequest) -> pb.MadeVm:
        """``shared``: every key of the tenant sees all its machines. ``isolated``: no machine reaches another."""
        began = time.perf_counter()
        shapes.check_org(asked.org, call.tenant)
        shapes.check_networks(asked.networks)
        shapes.check_config(asked.config)
        if asked.cmd:
            raise not_served(
                "cmd", "Run it with exec, or build a template that starts it with the machine."
            )
        if asked.restart_policy not in RESTARTS:
            raise not_served(f"restart_policy {asked.restart_policy[:32]!r}", "Leave it out.")
        name = asked.name or names.invented()
        wanted = CreateMachine(
            template=asked.image_ref or CreateMachine().template,
            env={each.key: each.value for each in asked.env},
            labels=dict(asked.labels),
            **self._asked(call, name, asked.config),
            **shapes.size(asked.config),
        )
        return pb.MadeVm(**await self._create(call, wanted, asked.config, began))

    async def restore(self, call: Call, asked: pb.CreateVmFromSnapshotRequest) -> pb.MadeVm:
        began = time.perf_counter()
        shapes.check_org(asked.org, call.tenant)
        shapes.check_config(asked.config)
        found = await newest(self._s, call.tenant, asked.snapshot)
        shapes.as_captured(asked.config, found, "machine of a snapshot")
        wanted = CreateMachine(
            snapshot=found.id,
            labels=dict(asked.labels),
            **self._asked(call, asked.name or names.invented(), asked.config),
        )
        return pb.MadeVm(**await self._create(call, wanted, asked.config, began))

    async def _create(
        self, call: Call, wanted: CreateMachine, config: pb.VmConfig, began: float
    ) -> dict[str, Any]:
        self._proxies.check(str(wanted.key), config)
        try:
            machine = await self._s.machines.create(call.tenant, wanted)
        except RoostError as failure:
            if failure.code != "ALREADY_EXISTS":
                call.machine_id = failure.details.get("machine_id")
            raise
        call.machine_id = machine.id
        await self._show(call, machine, config)
        url = self._places.url(self._proxies.label(machine))
        return shapes.made(machine, url, time.perf_counter() - began)

    async def fork(self, call: Call, asked: pb.ForkVmRequest) -> pb.ForkedVm:
        """Its routes are the source's, under its own name."""
        began = time.perf_counter()
        shapes.check_networks(asked.networks)
        shapes.check_config(asked.config)
        parent = await shapes.named(self._s, call, asked.source_vm_id)
        shapes.as_captured(asked.config, parent, "fork")
        idle = shapes.idle(asked.config)
        limits.seconds("autosleep", idle.get("autosleep_seconds"))  # before there is a machine
        name = asked.name or names.invented()
        self._proxies.check(name, asked.config)
        wanted = ForkMachine(
            key=name,
            name=name,
            labels={**parent.labels, **asked.labels},
            ttl_seconds=parent.ttl_seconds,  # of which nothing has passed
            created_by=call.who.key_id,
            inherit_secrets=True,
            volumes=disks.asked(asked.config.volumes) or None,
        )
        (machine,) = await self._s.machines.fork(call.tenant, parent.id, wanted)
        call.machine_id = machine.id
        if idle:
            await self._s.machines.patch(call.tenant, machine.id, PatchMachine(**idle))
        await self._proxies.inherit(call.tenant, parent, machine)
        await self._show(call, machine, asked.config)
        url = self._places.url(self._proxies.label(machine))
        made = shapes.made(machine, url, time.perf_counter() - began)
        return pb.ForkedVm(**made, forked_from=parent.id)

    def _asked(self, call: Call, name: str, config: pb.VmConfig) -> dict[str, Any]:
        return {
            "key": name,
            "name": name,
            "created_by": call.who.key_id,
            "volumes": disks.asked(config.volumes),
            **shapes.idle(config),
        }

    async def _show(self, call: Call, machine: Machine, config: pb.VmConfig) -> None:
        """The routes it was asked for with; without them it is not what was asked for, and goes again."""
        try:
            await self._proxies.make(call.tenant, machine, config)
        except RoostError:
            await self._s.machines.delete(call.tenant, machine.id)
            raise

    # --- looking --------------------------------------------------------------------------------

    async def get(self, call: Call, asked: pb.VmRef) -> pb.Vm:
        machine = await shapes.named(self._s, call, asked.vm_id)
        return await self._whole(call.tenant, machine)

    async def listed(self, call: Call, asked: pb.ListVmsRequest) -> pb.ListVmsResponse:
        if not asked.all_contexts:
            shapes.check_org(asked.org, call.tenant)
        terms = list(asked.label_selector)
        found: list[pb.Vm] = []
        cursor: str | None = None
        while True:
            page = await self._s.machines.list(call.tenant, limit=PAGE, cursor=cursor)
            found += [
                shapes.vm(each, self._places)
                for each in page.items
                if shapes.selected(terms, each.labels)
            ]
            cursor = page.next_cursor
            if cursor is None:
                return pb.ListVmsResponse(vms=found)

    async def suggest(self, call: Call, asked: pb.Empty) -> pb.Name:
        return pb.Name(name=names.invented())

    # --- sleeping and waking --------------------------------------------------------------------

    async def destroy(self, call: Call, asked: pb.VmRef) -> pb.Empty:
        """Its checkpoints go with it."""
        machine = await shapes.named(self._s, call, asked.vm_id)
        await self._s.machines.delete(call.tenant, machine.id)
        cursor: str | None = None
        while True:
            page = await self._s.snapshots.list(call.tenant, machine.id, PAGE, cursor)
            for each in page.items:
                if each.name is not None and names.of_checkpoint(each.name):
                    with contextlib.suppress(ConflictError, NotFoundError):  # in use: it stays
                        await self._s.snapshots.delete(call.tenant, each.id)
            cursor = page.next_cursor
            if cursor is None:
                return _EMPTY

    async def suspend(self, call: Call, asked: pb.VmRef) -> pb.Took:
        """With its memory, the lightest way its rung has. Raises UNSUPPORTED."""
        began = time.perf_counter()
        machine = await shapes.named(self._s, call, asked.vm_id)
        if machine.lightest is Tier.STOPPED:
            raise not_served(
                f"suspending machines of the {machine.driver} driver",
                "They cannot keep memory: stop it, which keeps its disk.",
            )
        await self._s.machines.sleep(call.tenant, machine.id, machine.lightest)
        return pb.Took(us=_us(began))

    async def resume(self, call: Call, asked: pb.VmRef) -> pb.Took:
        began = time.perf_counter()
        await self.wake(call, asked)
        return pb.Took(us=_us(began))

    async def hibernate(self, call: Call, asked: pb.VmRef) -> pb.Empty:
        machine = await shapes.named(self._s, call, asked.vm_id)
        await self._s.machines.sleep(call.tenant, machine.id, Tier.HIBERNATED)
        return _EMPTY

    async def wake(self, call: Call, asked: pb.VmRef) -> pb.Empty:
        machine = await shapes.named(self._s, call, asked.vm_id)
        await self._s.machines.wake(call.tenant, machine.id)
        return _EMPTY

    async def stop(self, call: Call, asked: pb.VmRef) -> pb.Empty:
        machine = await shapes.named(self._s, call, asked.vm_id)
        await self._s.machines.sleep(call.tenant, machine.id, Tier.STOPPED)
        return _EMPTY

    async def reboot(self, call: Call, asked: pb.VmRef) -> pb.Empty:
        machine = await shapes.named(self._s, call, asked.vm_id)
        await self._s.machines.reboot(call.tenant, machine.id)
        return _EMPTY

    # --- changing -------------------------------------------------------------------------------

    async def resize(self, call: Call, asked: pb.ResizeVmRequest) -> pb.ResizeVmResponse:
        """At once where its rung can while it runs, else with a reboot."""
        machine = await shapes.named(self._s, call, asked.vm_id)
        wanted = shapes.size(pb.VmConfig(vcpu=asked.vcpu, memory_bytes=asked.memory_bytes))
        if not wanted:
            raise InvalidRequestError("vcpu or memory_bytes: one of them.")
        rebooted, patch = False, PatchMachine(**wanted)
        try:
            now = await self._s.machines.patch(call.tenant, machine.id, patch)
        except RoostError as failure:
            if failure.code != "UNSUPPORTED" or shapes.status(machine) != "running":
                raise
            self._s.machines.require_start(machine)
            await self._s.machines.sleep(call.tenant, machine.id, Tier.STOPPED)
            try:
                now = await self._s.machines.patch(call.tenant, machine.id, patch)
            finally:
                await self._s.machines.wake(call.tenant, machine.id)
            rebooted = True
        said = shapes.vm(now, self._places)
        return pb.ResizeVmResponse(
            vcpu=said.vcpu, memory_bytes=said.memory_bytes, rebooted=rebooted
        )

    async def share(self, call: Call, asked: pb.VmRef) -> pb.Empty:
        """It is: every key of the tenant sees all its machines."""
        await shapes.named(self._s, call, asked.vm_id)
        return _EMPTY

    async def labels(self, call: Call, asked: pb.UpdateVmLabelsRequest) -> pb.Labels:
        if asked.replace_all and asked.remove:
            raise InvalidRequestError("remove: does not go with replace_all.")
        machine = await shapes.named(self._s, call, asked.vm)
        own = {k: v for k, v in machine.labels.items() if k == shapes.LOCKED}
        now: Mapping[str, str] = {} if asked.replace_all else machine.labels
        labels = {k: v for k, v in now.items() if k not in asked.remove} | dict(asked.set) | own
        changed = await self._s.machines.patch(
            call.tenant, machine.id, PatchMachine(labels=labels), if_match=machine.revision
        )
        return pb.Labels(labels=shapes.vm(changed, self._places).labels)

    async def egress(self, call: Call, asked: pb.SetVmEgressAllowRequest) -> pb.EgressAllow:
        """An empty list is no policy of its own: the host's."""
        machine = await shapes.named(self._s, call, asked.vm)
        if asked.entries:
            policy = Policy.read({"mode": "allowlist", "allow": list(asked.entries)})
            now = await self._s.policies.replace(call.tenant, machine.id, policy)
        else:
            now = await self._s.policies.restore(call.tenant, machine.id)
        return pb.EgressAllow(entries=shapes.allowed(now))

    async def suspend_after(self, call: Call, asked: pb.SetTimeoutRequest) -> pb.Empty:
        patch = PatchMachine(autosleep_seconds=asked.timeout_secs or None)
        return await self._patch(call, asked.vm_id, patch)

    async def hibernate_after(self, call: Call, asked: pb.SetTimeoutRequest) -> pb.Empty:
        patch = PatchMachine(hibernate_after_seconds=asked.timeout_secs or None)
        return await self._patch(call, asked.vm_id, patch)

    async def _patch(self, call: Call, which: str, patch: PatchMachine) -> pb.Empty:
        machine = await shapes.named(self._s, call, which)
        await self._s.machines.patch(call.tenant, machine.id, patch)
        return _EMPTY

    async def delete_after(
        self, call: Call, asked: pb.SetDeleteAfterRequest
    ) -> pb.SetDeleteAfterResponse:
        if asked.delete_after_cron:
            raise not_served("delete_after_cron", "Say in how many seconds.")
        machine = await shapes.named(self._s, call, asked.vm_id)
        patch = PatchMachine(ttl_seconds=asked.delete_after_secs or None)
        now = await self._s.machines.patch(call.tenant, machine.id, patch)
        return pb.SetDeleteAfterResponse(delete_at_ms=shapes.vm(now, self._places).delete_at_ms)

    # --- helpers --------------------------------------------------------------------------------

    async def _whole(self, tenant: str, machine: Machine) -> pb.Vm:
        """With the name of what it came of, where that is still there."""
        said = shapes.vm(machine, self._places)
        if not said.HasField("source_info"):
            return said
        of = said.source_info
        try:
            if of.kind == "snapshot":
                found = await self._s.snapshots.get(tenant, of.id)
                of.name, of.version = names.version(found.name or found.id)
            else:
                of.name = names.of_machine(await self._s.machines.get(tenant, of.id))
        except RoostError:
            of.name = of.id
        return said


async def newest(services: Services, tenant: str, which: str) -> Snapshot:
    """A snapshot by id, or by what it is called: its newest version. Raises SNAPSHOT_NOT_FOUND."""
    found = await versions(services, tenant, which)
    if found:
        return found[0]
    return await services.snapshots.get(tenant, which)


async def versions(services: Services, tenant: str, name: str) -> list[Snapshot]:
    """Those of one name, the newest first."""
    found: list[Snapshot] = []
    cursor: str | None = None
    while True:
        page = await services.snapshots.list(tenant, limit=PAGE, cursor=cursor)
        found += [s for s in page.items if s.name and names.version(s.name)[0] == name]
        cursor = page.next_cursor
        if cursor is None:
            return sorted(found, key=lambda s: -names.version(s.name or "")[1])


def _us(began: float) -> int:
    return max(1, round((time.perf_counter() - began) * 1e6))
