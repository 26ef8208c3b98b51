"""argv: nothing in it that anybody outside chose."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from typing import Any

import pytest

from roost.drivers.qemu import options
from roost.drivers.qemu.options import (
    Accel,
    Boot,
    Cpu,
    Descriptors,
    Later,
    SnapshotMemory,
    Vmm,
    arguments,
)
from roost.errors import InternalError
from tests.attack.record import case

pytestmark = case(45)

FDS = Descriptors(qmp=10, agent=11, disk=12, modules=13, tap=14, mtu=1400)
VMM = Vmm(512, Boot("console=ttyS0 quiet"), FDS, mac="02:72:73:74:00:02")


def values(argv: list[str], option: str) -> list[str]:
    return [after for name, after in pairwise(argv) if name == option]


def blocks(argv: list[str]) -> dict[str, dict[str, Any]]:
    return {node["node-name"]: node for node in map(json.loads, values(argv, "-blockdev"))}


def test_a_boot() -> None:
    argv = arguments(VMM)
    assert argv[0] == options.BINARY
    assert values(argv, "-append") == ["console=ttyS0 quiet"]
    assert values(argv, "-kernel") == [options.KERNEL]
    (machine,) = values(argv, "-M")
    assert machine.startswith("microvm,")
    assert machine.endswith(",memory-backend=mem0")
    assert "-incoming" not in argv
    assert "-S" not in argv
    memory = json.loads(values(argv, "-object")[0])
    assert memory == {
        "qom-type": "memory-backend-ram",
        "id": "mem0",
        "size": 512 << 20,
        "share": False,
    }


def test_what_every_vmm_has() -> None:
    for start in (Boot(""), SnapshotMemory(1 << 20), Later()):
        argv = arguments(dataclasses.replace(VMM, start=start))
        assert {"-nodefaults", "-no-user-config"} <= set(argv)
        assert values(argv, "-sandbox") == [
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        ]
        assert values(argv, "-action") == ["reboot=shutdown,shutdown=pause"]
        assert not any("balloon" in word for word in argv)
        assert values(argv, "-device") == [
            "virtio-blk-device,drive=disk",
            "virtio-blk-device,drive=modules",
            "virtio-net-device,netdev=net,mac=02:72:73:74:00:02,host_mtu=1400",
            "virtio-rng-device,rng=rng",
            "virtio-serial-device,max_ports=2",
            "virtserialport,chardev=agent,name=roost.agent",
        ]


def test_a_restore_maps_the_snapshot_and_has_no_kernel() -> None:
    argv = arguments(dataclasses.replace(VMM, start=SnapshotMemory(1 << 20)))
    assert "-kernel" not in argv
    assert values(argv, "-incoming") == ["defer"]
    memory = json.loads(values(argv, "-object")[0])
    assert memory["mem-path"] == options.MEMORY
    assert (memory["offset"], memory["share"]) == (1 << 20, False)
    assert (memory["readonly"], memory["rom"]) == (True, "off")


def test_a_pool_vmm_gets_memory_and_disks_later() -> None:
    argv = arguments(
        dataclasses.replace(
            VMM, start=Later(), fds=dataclasses.replace(FDS, disk=None, modules=None)
        )
    )
    assert "--preconfig" in argv
    assert "memory-backend" not in values(argv, "-M")[0]
    assert values(argv, "-blockdev") == []


def test_a_guests_flush_reaches_the_image() -> None:
    disk = blocks(arguments(VMM))["disk"]
    for node in (disk, disk["file"]):
        assert node["cache"] == {"direct": False, "no-flush": False}
        assert node["read-only"] is False
    assert disk["file"]["filename"] == "/dev/fdset/1"
    modules = blocks(arguments(VMM))["modules"]
    assert modules["read-only"] is True
    assert modules["file"]["read-only"] is True
    assert values(arguments(VMM), "-add-fd") == ["fd=12,set=1", "fd=13,set=2"]


def test_disk_limits() -> None:
    argv = arguments(dataclasses.replace(VMM, io_bytes_per_s=1 << 20, io_ops_per_s=500))
    assert blocks(argv)["slow"]["file"] == "disk"
    group = next(
        o
        for o in map(json.loads, (v for v in values(argv, "-object") if "{" in v))
        if o["id"] == "io"
    )
    assert group["limits"] == {"bps-total": 1 << 20, "iops-total": 500}
    assert values(argv, "-device")[0] == "virtio-blk-device,drive=slow"


def test_accelerators() -> None:
    assert values(arguments(VMM), "-accel") == ["tcg,tb-size=32,thread=single"]
    many = dataclasses.replace(VMM, cpu=Cpu(count=3), tb_mib=64)
    assert values(arguments(many), "-accel") == ["tcg,tb-size=64,thread=multi"]
    kvm = dataclasses.replace(VMM, accel=Accel.KVM, fds=dataclasses.replace(FDS, kvm=9))
    assert values(arguments(kvm), "-accel") == ["kvm,device=/dev/fdset/3"]
    assert "fd=9,set=3" in values(arguments(kvm), "-add-fd")


@pytest.mark.parametrize(
    "change",
    [
        {"mac": "02:72:73:74:00:02,script=/bin/sh"},
        {"mac": "02:72:73:74:00:0G"},
        {"mac": ""},
        {"cpu": Cpu(model="max,+x")},
        {"cpu": Cpu(model="max\n-chardev")},
        {"cpu": Cpu(model="")},
        {"cpu": Cpu(features=("avx=on,x=y",))},
        {"cpu": Cpu(features=("avx",))},
        {"cpu": Cpu(count=0)},
        {"cpu": Cpu(count=1000)},
        {"memory_mib": 0},
        {"memory_mib": 1 << 30},
        {"tb_mib": 0},
        {"start": Boot("a\nb")},
        {"start": Boot("a\0b")},
        {"start": Boot("a" * 3000)},
        {"start": SnapshotMemory(-4096)},
        {"start": SnapshotMemory(100)},
        {"io_ops_per_s": -1},
        {"fds": dataclasses.replace(FDS, tap=-1)},
    ],
)
def test_what_does_not_belong_there_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InternalError):
        arguments(dataclasses.replace(VMM, **change))


def test_the_fingerprint_follows_what_a_snapshot_depends_on() -> None:
    base: dict[str, Any] = {
        "memory_mib": 512,
        "accel": Accel.TCG,
        "cpu": Cpu(),
        "mac": "02:72:73:74:00:02",
    }
    same = options.fingerprint(**base)
    assert json.loads(json.dumps(same)) == same
    for change in (
        {"memory_mib": 513},
        {"accel": Accel.KVM},
        {"cpu": Cpu(model="max")},
        {"cpu": Cpu(features=("avx2=off",))},
        {"cpu": Cpu(count=2)},
        {"mac": None},
    ):
        assert options.fingerprint(**{**base, **change}) != same


def test_volumes_are_disks_after_the_modules() -> None:
    fds = dataclasses.replace(FDS, volumes=((20, False), (21, True)))
    argv = arguments(dataclasses.replace(VMM, fds=fds, io_ops_per_s=5))
    assert values(argv, "-add-fd") == [
        "fd=12,set=1",
        "fd=13,set=2",
        "fd=20,set=4",
        "fd=21,set=5",
    ]
    disks = [each for each in values(argv, "-device") if each.startswith("virtio-blk")]
    assert disks == [
        f"virtio-blk-device,drive={name}"
        for name in ("slow", "modules", "slow-volume0", "slow-volume1")
    ]
    made = blocks(argv)
    assert [made[name]["read-only"] for name in ("disk", "volume0", "volume1")] == [
        False,
        False,
        True,
    ]
    assert made["slow-volume0"]["throttle-group"] == made["slow"]["throttle-group"]
    assert fds.all()[-2:] == [20, 21]


def test_what_was_captured_with_other_volumes_does_not_load() -> None:
    def made(*volumes: bool) -> dict[str, Any]:
        return options.fingerprint(
            memory_mib=512, accel=Accel.TCG, cpu=Cpu(), mac=None, volumes=volumes
        )

    assert "volumes" not in made(), "or nothing captured before there were any would load"
    assert (
        len({json.dumps(each) for each in (made(), made(True), made(False), made(True, True))}) == 4
    )
