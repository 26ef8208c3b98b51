"""Machines, their routes and instants as messages; the machines are made up."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest

from roost.dialects.boxd import names, proxies, shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.egress.policy import Policy
from roost.errors import InvalidRequestError, error
from roost.services.models import CreateMachine
from roost.services.ports import OWN
from tests.unit.api.kit import OTHER, TENANT

from .conftest import Box

S = grpc.StatusCode


async def get(box: Box, which: str) -> Any:
    return await box("GetVm", pb.VmRef(vm_id=which), pb.Vm)


async def refused(box: Box, name: str, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box(name, request)
    return caught.value.code(), str(caught.value.details())


async def test_a_machine_as_it_was_asked_for(box: Box) -> None:
    config = pb.VmConfig(
        vcpu=2,
        memory_bytes=2**30 + 1,
        disk_bytes=5 * 2**30,
        srf=pb.IdleConfig(auto_suspend_timeout_secs=60),
        network=pb.NetworkConfig(ssh=True, proxies=[pb.ProxyEntry(name="web", port=3000)]),
    )
    made = await box(
        "CreateVm",
        pb.CreateVmRequest(
            name="dev",
            env=[pb.EnvVar(key="A", value="b")],
            config=config,
            labels={"env": "prod"},
            restart_policy="always",
            shared=True,
            isolated=True,
        ),
        pb.MadeVm,
    )
    assert (made.name, made.image, made.status) == ("dev", "base", "running")
    assert made.boot_time_ms > 0
    assert re.fullmatch(r"http://dev\.localhost:\d+", made.url)
    machine = box.served.machines.machines[made.vm_id]
    assert (machine.key, machine.name, machine.vcpu) == ("dev", "dev", 2)
    assert (machine.memory_mib, machine.storage_gib, machine.env) == (1025, 5, {"A": "b"})
    vm = await get(box, "dev")
    assert vm == await get(box, made.vm_id)
    assert (vm.auto_suspend_timeout_secs, dict(vm.labels)) == (60, {"env": "prod"})
    assert (vm.vcpu, vm.memory_bytes, vm.disk_bytes) == (2, 1025 * 2**20, 5 * 2**30)
    assert (vm.org, vm.billing_org) == (TENANT, TENANT)
    listed = await box("ListProxies", pb.ListProxiesRequest(vm="dev"), pb.ListProxiesResponse)
    assert [(p.name, p.effective_port, p.is_default) for p in listed.proxies][1:] == [
        ("web", 3000, False)
    ]


async def test_idle_times(box: Box) -> None:
    """Absent is the default, 0 is never."""
    made = await box("CreateVm", pb.CreateVmRequest(), pb.MadeVm)
    assert (await get(box, made.vm_id)).auto_suspend_timeout_secs == 300
    never = pb.VmConfig(srf=pb.IdleConfig(auto_suspend_timeout_secs=0))
    made = await box("CreateVm", pb.CreateVmRequest(config=never), pb.MadeVm)
    assert (await get(box, made.vm_id)).auto_suspend_timeout_secs == 0
    assert names._LABEL.fullmatch(made.name)
    await box("SetAutoSuspendTimeout", pb.SetTimeoutRequest(vm_id=made.name, timeout_secs=9))
    await box("SetAutoHibernateTimeout", pb.SetTimeoutRequest(vm_id=made.name, timeout_secs=8))
    vm = await get(box, made.vm_id)
    assert (vm.auto_suspend_timeout_secs, vm.auto_hibernate_timeout_secs) == (9, 8)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cmd": ["x"]}, "cmd"),
        ({"restart_policy": "sometimes"}, "restart_policy"),
        ({"networks": ["n"]}, "networks"),
        ({"config": pb.VmConfig(network=pb.NetworkConfig())}, "SSH"),
        ({"config": pb.VmConfig(srf=pb.IdleConfig(auto_destroy_timeout_secs=5))}, "delete_after"),
    ],
)
async def test_what_is_not_served_of_a_machine(box: Box, asked: Any, said: str) -> None:
    code, text = await refused(box, "CreateVm", pb.CreateVmRequest(name="x", **asked))
    assert code is S.UNIMPLEMENTED
    assert said in text
    assert not box.served.machines.machines


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"name": "one"}, S.ALREADY_EXISTS),
        ({"image_ref": "nobodys"}, S.NOT_FOUND),
        ({"org": "others"}, S.NOT_FOUND),
        (
            {"config": pb.VmConfig(network=pb.NetworkConfig(ssh=True, proxies=[pb.ProxyEntry()]))},
            S.INVALID_ARGUMENT,
        ),
    ],
)
async def test_what_cannot_be_made(box: Box, vm: str, asked: Any, code: grpc.StatusCode) -> None:
    assert (await refused(box, "CreateVm", pb.CreateVmRequest(**asked)))[0] is code
    assert len(box.served.machines.machines) == 1


async def test_a_machine_whose_routes_cannot_be_is_not_kept(box: Box, vm: str) -> None:
    await box("CreateProxy", pb.CreateProxyRequest(vm="one", name="a-b", port=80))
    proxy = [pb.ProxyEntry(name="a", port=80), pb.ProxyEntry(name="b", port=80)]
    config = pb.VmConfig(network=pb.NetworkConfig(ssh=True, proxies=proxy))
    code, _ = await refused(box, "CreateVm", pb.CreateVmRequest(name="two", config=config))
    assert code is S.ALREADY_EXISTS
    phases = {m.name: m.phase for m in box.served.machines.machines.values()}
    assert phases == {"one": "running", "two": "destroyed"}


async def test_lists_by_label(box: Box) -> None:
    for name, labels in (("a", {"env": "prod", "gpu": ""}), ("b", {"env": "dev"}), ("c", {})):
        await box("CreateVm", pb.CreateVmRequest(name=name, labels=labels), pb.MadeVm)

    async def listed(*terms: str) -> set[str]:
        asked = pb.ListVmsRequest(label_selector=terms)
        found = await box("ListVms", asked, pb.ListVmsResponse)
        return {each.name for each in found.vms}

    assert await listed() == {"a", "b", "c"}
    assert await listed("env") == {"a", "b"}
    assert await listed("env=prod", "gpu") == {"a"}
    assert await listed("env=") == set()
    assert (await refused(box, "ListVms", pb.ListVmsRequest(label_selector=["=x"])))[
        0
    ] is S.INVALID_ARGUMENT
    assert (await refused(box, "ListVms", pb.ListVmsRequest(org="x")))[0] is S.NOT_FOUND


async def test_labels_change(box: Box, vm: str) -> None:
    async def change(**kw: Any) -> dict[str, str]:
        asked = pb.UpdateVmLabelsRequest(vm="one", **kw)
        return dict((await box("UpdateVmLabels", asked, pb.Labels)).labels)

    assert await change(set={"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    await box("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="8080"))
    assert await change(set={"c": "3"}, remove=["a", "zz"]) == {"b": "2", "c": "3"}
    assert await change(set={"d": ""}, replace_all=True) == {"d": ""}
    assert box.served.machines.machines[vm].labels == {"d": "", shapes.LOCKED: "locked"}


@pytest.mark.parametrize(
    ("phase", "tier", "said"),
    [
        ("accepted", None, "pending"),
        ("starting", None, "starting"),
        ("running", None, "running"),
        ("stopping", "frozen", "suspended"),
        ("sleeping", "frozen", "suspended"),
        ("sleeping", "hibernated", "hibernated"),
        ("sleeping", "stopped", "stopped"),
        ("waking", "frozen", "starting"),
        ("failed", None, "failed"),
        ("destroying", None, "destroyed"),
    ],
)
async def test_statuses(box: Box, vm: str, phase: str, tier: str | None, said: str) -> None:
    machine = box.served.machines.machines[vm]
    box.served.machines.change(machine, phase=phase, tier=tier)
    found = await get(box, vm)
    assert found.status == said
    assert bool(found.hibernated_at_ms) == (said == "hibernated")


async def test_sleeping_and_waking(box: Box, vm: str) -> None:
    code, text = await refused(box, "SuspendVm", pb.VmRef(vm_id=vm))  # it keeps no memory
    assert code is S.UNIMPLEMENTED
    assert "stop it" in text
    await box("StopVm", pb.VmRef(vm_id=vm))
    assert (await get(box, vm)).status == "stopped"
    assert (await box("ResumeVm", pb.VmRef(vm_id=vm), pb.Took)).us > 0
    await box("RebootVm", pb.VmRef(vm_id=vm))
    assert (await get(box, vm)).status == "running"
    assert box.served.machines.machines[vm].generation == 3


async def test_a_size_changes(box: Box, vm: str) -> None:
    asked = pb.ResizeVmRequest(vm_id=vm, memory_bytes=2 * 2**30)
    said = await box("ResizeVm", asked, pb.ResizeVmResponse)
    assert (said.vcpu, said.memory_bytes, said.rebooted) == (1, 2 * 2**30, False)
    assert (await refused(box, "ResizeVm", pb.ResizeVmRequest(vm_id=vm)))[0] is S.INVALID_ARGUMENT


async def test_the_end_of_a_machine_and_its_checkpoints(box: Box, vm: str) -> None:
    await box(
        "CreateCheckpoint", pb.CaptureRequest(vm="one", name="a"), pb.CreateCheckpointResponse
    )
    await box("CreateSnapshot", pb.CaptureRequest(vm="one", name="kept"), pb.CreateSnapshotResponse)
    await box("DestroyVm", pb.VmRef(vm_id="one"))
    kept = box.served.services.snapshots.kept  # type: ignore[attr-defined]
    assert [each.name for each in kept.values()] == ["kept"]


async def test_a_checkpoint_in_use_does_not_make_the_end_a_failure(
    box: Box, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pb.CaptureRequest(vm="one", name="a")
    await box("CreateCheckpoint", asked, pb.CreateCheckpointResponse)

    async def used(*args: object) -> None:
        raise error("IN_USE", "A machine is being made from it.")

    monkeypatch.setattr(box.served.services.snapshots, "delete", used)
    await box("DestroyVm", pb.VmRef(vm_id=vm))


async def test_what_a_machine_may_reach(box: Box, vm: str) -> None:
    async def allow(*entries: str) -> list[str]:
        asked = pb.SetVmEgressAllowRequest(vm=vm, entries=entries)
        return list((await box("SetVmEgressAllow", asked, pb.EgressAllow)).entries)

    entries = ["api.example.com", "*.example.com", "203.0.113.0/24"]
    assert await allow(*entries) == entries
    assert list((await get(box, vm)).egress_allow) == entries
    assert box.served.machines.machines[vm].egress.mode == "allowlist"
    assert await allow() == []
    assert box.served.machines.machines[vm].egress == Policy()
    asked = pb.SetVmEgressAllowRequest(vm=vm, entries=["not a host!"])
    assert (await refused(box, "SetVmEgressAllow", asked))[0] is S.INVALID_ARGUMENT


async def test_a_fork_has_a_name_and_the_routes(box: Box, vm: str) -> None:
    await box("UpdateVmLabels", pb.UpdateVmLabelsRequest(vm=vm, set={"a": "1", "b": "1"}))
    await box("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="8080"))
    await box("CreateProxy", pb.CreateProxyRequest(vm="one", name="api", port=9000))
    asked = pb.ForkVmRequest(source_vm_id="one", name="two", labels={"b": "2"})
    made = await box("ForkVm", asked, pb.ForkedVm)
    assert (made.name, made.forked_from) == ("two", vm)
    assert dict((await get(box, "two")).labels) == {"a": "1", "b": "2"}
    listed = await box("ListProxies", pb.ListProxiesRequest(vm="two"), pb.ListProxiesResponse)
    assert [(p.name, p.domain.split(":")[0], p.effective_port) for p in listed.proxies] == [
        ("", "two.localhost", 8080),
        ("api", "api-two.localhost", 9000),
    ]
    assert {p.port_mode for p in listed.proxies} == {"locked"}
    code, text = await refused(
        box, "ForkVm", pb.ForkVmRequest(source_vm_id="one", config=pb.VmConfig(vcpu=8))
    )
    assert code is S.UNIMPLEMENTED
    assert "vcpu" in text
    number = len(box.served.machines.machines)
    never = pb.VmConfig(srf=pb.IdleConfig(auto_suspend_timeout_secs=2**32 - 1))
    code, _ = await refused(box, "ForkVm", pb.ForkVmRequest(source_vm_id="one", config=never))
    assert code is S.INVALID_ARGUMENT
    assert len(box.served.machines.machines) == number


async def test_delete_after(box: Box, vm: str) -> None:
    asked = pb.SetDeleteAfterRequest(vm_id=vm, delete_after_secs=60)
    await box("SetDeleteAfter", asked, pb.SetDeleteAfterResponse)
    assert box.served.machines.machines[vm].ttl_seconds == 60
    await box("SetDeleteAfter", pb.SetDeleteAfterRequest(vm_id=vm), pb.SetDeleteAfterResponse)
    assert box.served.machines.machines[vm].ttl_seconds is None
    cron = pb.SetDeleteAfterRequest(vm_id=vm, delete_after_cron="* * * * *")
    assert (await refused(box, "SetDeleteAfter", cron))[0] is S.UNIMPLEMENTED


# --- routes -------------------------------------------------------------------------------------


async def test_routes(box: Box, vm: str) -> None:
    made = await box(
        "CreateProxy", pb.CreateProxyRequest(vm_name="one", name="api", port=9000), pb.CreateProxyResponse
    )  # fmt: skip
    assert (made.name, made.vm_name, made.port) == ("api", "one", 9000)
    assert re.fullmatch(r"api-one\.localhost:\d+", made.domain)
    (port,) = await box.served.ports.list(TENANT, vm)
    assert (port.public, port.name) == (True, "api-one")
    await box("SetProxyPort", pb.SetProxyPortRequest(vm_name="one", name="api", port="9001"))
    (port,) = await box.served.ports.list(TENANT, vm)
    assert (port.port, port.name) == (9001, "api-one")
    await box("DeleteProxy", pb.DeleteProxyRequest(vm="one", name="api"))
    assert not await box.served.ports.list(TENANT, vm)


@pytest.mark.parametrize(
    ("call", "request_", "code"),
    [
        ("CreateProxy", pb.CreateProxyRequest(vm="one", name="", port=80), S.INVALID_ARGUMENT),
        ("CreateProxy", pb.CreateProxyRequest(vm="one", name="x"), S.INVALID_ARGUMENT),
        ("CreateProxy", pb.CreateProxyRequest(vm="one", name="A_B", port=1), S.INVALID_ARGUMENT),
        ("CreateProxy", pb.CreateProxyRequest(vm="one", name="x", port=7111), S.INVALID_ARGUMENT),
        ("CreateProxy", pb.CreateProxyRequest(vm="no", name="x", port=1), S.NOT_FOUND),
        ("DeleteProxy", pb.DeleteProxyRequest(vm="one", name="x"), S.NOT_FOUND),
        ("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="x"), S.INVALID_ARGUMENT),
        ("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="-1"), S.INVALID_ARGUMENT),
        ("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="70000"), S.INVALID_ARGUMENT),
        ("SetProxyPort", pb.SetProxyPortRequest(vm="one", name="x", port="auto"), S.INVALID_ARGUMENT),
    ],
)  # fmt: skip
async def test_what_is_no_route(
    box: Box, vm: str, call: str, request_: Any, code: grpc.StatusCode
) -> None:
    assert (await refused(box, call, request_))[0] is code
    assert not await box.served.ports.list(TENANT, vm)


async def test_its_own_route_finds_what_listens(
    box: Box, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []

    async def look(*args: object) -> list[int]:
        return inside

    monkeypatch.setattr(proxies.Proxies, "_listening", look)

    async def own() -> tuple[int, str]:
        asked = pb.ListProxiesRequest(vm="one")
        (found,) = (await box("ListProxies", asked, pb.ListProxiesResponse)).proxies
        assert found.is_default
        return found.effective_port, found.port_mode

    assert await own() == (0, "auto")
    inside[:] = [9999, 3000]
    assert await own() == (3000, "auto")
    inside[:] = [9999]
    assert await own() == (9999, "auto")
    await box("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="4000"))
    assert await own() == (4000, "locked")
    await box("SetProxyPort", pb.SetProxyPortRequest(vm="one", port="auto"))
    assert await own() == (9999, "auto")
    inside[:] = []
    assert await own() == (9999, "auto")


async def test_what_is_private_stays_so(box: Box, vm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(*args: object) -> list[int]:
        return [3000]

    monkeypatch.setattr(proxies.Proxies, "_listening", look)
    await box.served.ports.create(TENANT, vm, 8080, name="one")
    await box.served.ports.create(TENANT, vm, 9000, name="admin-one")
    await box("ListProxies", pb.ListProxiesRequest(vm="one"), pb.ListProxiesResponse)
    moved = pb.SetProxyPortRequest(vm_name="one", name="admin", port="9001")
    await box("SetProxyPort", moved)
    shown = await box.served.ports.list(TENANT, vm)
    assert [(each.port, each.public) for each in shown] == [(3000, False), (9001, False)]
    asked = pb.ForkVmRequest(source_vm_id=vm, name="two")
    forked = await box("ForkVm", asked, pb.ForkedVm)
    shown = await box.served.ports.list(TENANT, forked.vm_id)
    assert [(each.port, each.public) for each in shown] == [(3000, False), (9001, False)]


@pytest.mark.parametrize("name", ["dev", "www"])
async def test_a_name_that_is_anothers_or_nobodys_is_had_with_the_id(
    box: Box, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def look(*args: object) -> list[int]:
        return [8000]

    monkeypatch.setattr(proxies.Proxies, "_listening", look)
    theirs = await box.as_(box.served.other_key)(
        "CreateVm", pb.CreateVmRequest(name=name), pb.MadeVm
    )
    listed = pb.ListProxiesRequest(vm=name)
    (first,) = (
        await box.as_(box.served.other_key)("ListProxies", listed, pb.ListProxiesResponse)
    ).proxies
    made = await box("CreateVm", pb.CreateVmRequest(name=name), pb.MadeVm)
    await box("CreateProxy", pb.CreateProxyRequest(vm=name, name="api", port=9000), pb.Empty)
    own, api = (await box("ListProxies", listed, pb.ListProxiesResponse)).proxies
    assert own.domain.startswith(f"{name}--{made.vm_id[:8]}.localhost")
    assert (own.is_default, own.effective_port) == (True, 8000)
    assert (api.name, api.effective_port) == ("api", 9000)
    if name == "dev":
        assert made.url.endswith(own.domain)
        assert first.domain.startswith("dev.localhost")
    else:
        assert first.domain.startswith(f"www--{theirs.vm_id[:8]}.")


async def test_a_machine_whose_name_is_no_host(box: Box) -> None:
    machine = box.served.machines.add(TENANT, CreateMachine(key="user:42"))
    asked = pb.CreateProxyRequest(vm="user:42", name="api", port=9000)
    made = await box("CreateProxy", asked, pb.CreateProxyResponse)
    assert made.domain.startswith(f"api-{machine.id}.localhost")
    assert made.vm_name == "user:42"


async def test_what_listens_is_read_inside(box: Box, vm: str) -> None:
    found = await proxies.Proxies(box.served.services)._listening(
        TENANT, box.served.machines.machines[vm]
    )
    assert box.served.port in found  # the agent of this test is a process of this host


def test_what_proc_says() -> None:
    table = """  sl  local_address rem_address   st tx_queue
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000
   2: 0100007F:0051 0100007F:9C40 01 00000000:00000000
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A x
   bad: line:zz x 0A
"""
    assert proxies.listening(table) == [80, 3000, 8080]
    assert proxies.choose([3000, 80, 8080]) == 80
    assert proxies.choose([22, 7111, 4567, 9000]) == 4567
    assert proxies.choose([22]) is None
    assert proxies.choose(sorted(OWN)) is None  # Roost's own servers are nobody's route


# --- instants -----------------------------------------------------------------------------------


async def test_snapshots_have_versions(box: Box, vm: str) -> None:
    async def save() -> Any:
        asked = pb.CaptureRequest(vm="one", name="golden")
        return await box("CreateSnapshot", asked, pb.CreateSnapshotResponse)

    assert (await save()).version == 1
    second = await save()
    assert (second.name, second.version, second.status) == ("golden", 2, "ready")
    found = await box("GetSnapshot", pb.SnapshotRequest(name="golden"), pb.GetSnapshotResponse)
    assert (found.snapshot.snapshot_id, found.snapshot.version) == (second.snapshot_id, 2)
    listed = await box("ListSnapshots", pb.ListSnapshotsRequest(), pb.ListSnapshotsResponse)
    assert [(each.name, each.version) for each in listed.snapshots] == [("golden", 2)]
    assert [s.name for s in box.served.services.snapshots.kept.values()] == ["golden--2"]  # type: ignore[attr-defined]
    await box("DeleteSnapshot", pb.SnapshotRequest(name="golden"))
    assert (await refused(box, "GetSnapshot", pb.SnapshotRequest(name="golden")))[0] is S.NOT_FOUND
    code, _ = await refused(box, "CreateSnapshot", pb.CaptureRequest(vm="one", name="x--2"))
    assert code is S.INVALID_ARGUMENT


async def test_checkpoints_are_their_machines(box: Box, vm: str) -> None:
    await box("CreateVm", pb.CreateVmRequest(name="two"), pb.MadeVm)
    asked = pb.CaptureRequest(vm="one", name="before")
    made = await box("CreateCheckpoint", asked, pb.CreateCheckpointResponse)
    assert (made.name, made.status) == ("before", "ready")
    listed = await box(
        "ListCheckpoints", pb.ListCheckpointsRequest(vm="one"), pb.ListCheckpointsResponse
    )
    assert [(c.name, c.available) for c in listed.checkpoints] == [("before", True)]
    snapshots = await box("ListSnapshots", pb.ListSnapshotsRequest(), pb.ListSnapshotsResponse)
    assert not snapshots.snapshots
    await box("RestoreCheckpoint", asked)
    missing = pb.CaptureRequest(vm="one", name="other")
    assert (await refused(box, "RestoreCheckpoint", missing))[0] is S.NOT_FOUND
    assert (await refused(box, "CreateCheckpoint", pb.CaptureRequest(vm="one", name="A b")))[
        0
    ] is S.INVALID_ARGUMENT
    await box("DeleteCheckpoint", asked)
    assert (await refused(box, "DeleteCheckpoint", asked))[0] is S.NOT_FOUND


async def test_disks(box: Box) -> None:
    made = await box(
        "CreateDisk", pb.CreateDiskRequest(name="d", size_bytes=1), pb.CreateDiskResponse
    )
    assert (made.name, made.size_bytes, made.status) == ("d", 2**30, "ready")
    (found,) = (await box("ListDisks", pb.Empty(), pb.ListDisksResponse)).disks
    assert (found.disk_id, found.size_bytes) == ("v" * 26, 10 * 2**30)
    (held,) = found.attachments
    assert (held.vm_id, held.vm_name, held.mount_path) == ("m" * 26, "m" * 26, "/data")
    assert held.mount_mode == "rw"
    for call, asked, code in (
        ("CreateDisk", pb.CreateDiskRequest(name="d"), S.INVALID_ARGUMENT),
        ("CreateDisk", pb.CreateDiskRequest(name="data", size_bytes=1), S.ALREADY_EXISTS),
        ("DestroyDisk", pb.DiskRef(disk_id="data"), S.FAILED_PRECONDITION),
        ("DestroyDisk", pb.DiskRef(disk_id="other"), S.NOT_FOUND),
        ("AttachDisk", pb.DiskRef(disk_id="data", vm_id="x"), S.UNIMPLEMENTED),
        ("DetachDisk", pb.DiskRef(disk_id="data", vm_id="x"), S.UNIMPLEMENTED),
    ):
        assert (await refused(box, call, asked))[0] is code, call
    mount = pb.VolumeMount(disk_id="data", mount_path="/data", read_only=True)
    asked = pb.CreateVmRequest(name="one", config=pb.VmConfig(volumes=[mount]))
    machine = box.served.machines.machines[(await box("CreateVm", asked, pb.MadeVm)).vm_id]
    assert [(v.name, v.path, v.read_only) for v in machine.volumes] == [("data", "/data", True)]


async def test_who_asks(box: Box) -> None:
    config = await box("GetConfig", pb.Empty(), pb.GetConfigResponse)
    assert config.default_image == "base"
    assert re.fullmatch(r"localhost:\d+", config.zone)
    orgs = await box("ListOrgs", pb.Empty(), pb.ListOrgsResponse)
    assert [(each.id, each.is_admin) for each in orgs.orgs] == [(TENANT, True)]
    suggested = await box("SuggestVmName", pb.Empty(), pb.Name)
    assert names._LABEL.fullmatch(suggested.name)


async def test_keys(box: Box) -> None:
    asked = pb.CreateApiKeyRequest(name="ci", expires_in_secs=3600)
    made = await box("CreateApiKey", asked, pb.CreateApiKeyResponse)
    assert made.api_key.startswith("bxk_")
    assert made.expires_at
    me = await box.as_(made.api_key)("Whoami", pb.Empty(), pb.WhoamiResponse)
    assert me.user_id == TENANT
    found = (await box("ListApiKeys", pb.Empty(), pb.ListApiKeysResponse)).keys
    assert [(k.name, bool(k.expires_at)) for k in found] == [("k", False), ("ci", True)]
    await box("DeleteApiKey", pb.ApiKeyRef(id=made.id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.as_(made.api_key)("Whoami", pb.Empty())
    assert caught.value.code() is S.UNAUTHENTICATED
    others = await box.served.keys.list(OTHER)
    assert (await refused(box, "DeleteApiKey", pb.ApiKeyRef(id=others[0].id)))[0] is S.NOT_FOUND
    org = pb.CreateApiKeyRequest(name="x", kind="org")
    assert (await refused(box, "CreateApiKey", org))[0] is S.UNIMPLEMENTED


async def test_ssh_keys(box: Box) -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1kR2bT0JzqzVJ6e0b0qkYF7v0Zk1v5C3mX0YkQ3m2a me"
    for _ in range(2):
        await box("LinkSshKey", pb.LinkSshKeyRequest(pubkey=line, label="laptop"))
    me = await box("Whoami", pb.Empty(), pb.WhoamiResponse)
    assert [each.startswith("SHA256:") for each in me.pubkey_fingerprints] == [True]
    bad = pb.LinkSshKeyRequest(pubkey="nonsense")
    assert (await refused(box, "LinkSshKey", bad))[0] is S.INVALID_ARGUMENT


def test_names() -> None:
    assert names.port_name("box", "") == "box"
    assert names.port_name("box", "api") == "api-box"
    assert names.route("box", "api-box", "i" * 26) == "api"
    assert names.route("box", "box", "i" * 26) == ""
    assert names.route("box", "other", "i" * 26) is None
    assert names.version("a--2") == ("a", 2)
    assert names.version("a--02") == ("a--02", 1)
    whole = names.checkpoint("a" * 26, "x")
    assert names.of_checkpoint(whole) == ("a" * 26, "x")
    for bad in ("", "-a", "A", "a" * 34):
        with pytest.raises(InvalidRequestError):
            names.checkpoint("a" * 26, bad)
