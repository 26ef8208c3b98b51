"""What a snapshot must agree with before it is resumed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from roost.drivers.qemu import manifest as manifests
from roost.drivers.qemu import mappedram
from roost.drivers.qemu.manifest import Manifest
from roost.drivers.qemu.mappedram import SnapshotInvalid

from .stream import Stream

TSC_KHZ = 2_500_000
FINGERPRINT = {"machine": "microvm", "cpu_model": "Haswell-v4", "vcpus": 1, "memory_mib": 2}
SAME: dict[str, Any] = {
    "runtime": "r1",
    "vmm_version": "10.0.2",
    "guest": "g1",
    "fingerprint": FINGERPRINT,
    "tsc_khz": TSC_KHZ,
}


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    path = Stream(pages={1: b"x", 5: b"y"}).write(tmp_path / manifests.MEMORY)
    fd = os.open(path, os.O_RDWR)
    layout = mappedram.read_layout(fd)
    memory = mappedram.settle(fd, layout.block("mem0"))
    manifest = Manifest(
        format=manifests.FORMAT,
        runtime="r1",
        vmm_version="10.0.2",
        guest="g1",
        fingerprint=FINGERPRINT,
        pages_offset=layout.block("mem0").pages_offset,
        file_size=layout.size,
        state_digest=manifests.digest(fd, layout),
        memory_bytes=memory,
        tsc_khz=TSC_KHZ,
    )
    os.close(fd)
    manifests.write(tmp_path, manifest, durable=True)
    return manifest


def verify(directory: Path) -> None:
    fd = os.open(directory / manifests.MEMORY, os.O_RDONLY)
    try:
        manifests.verify(fd, manifests.read(directory))
    finally:
        os.close(fd)


def test_written_read_and_verified(tmp_path: Path, made: Manifest) -> None:
    assert manifests.read(tmp_path) == made
    verify(tmp_path)
    manifests.require(made, **SAME)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("runtime", {"runtime": "r2"}),
        ("vmm_version", {"vmm_version": "10.0.3"}),
        ("guest", {"guest": "g2"}),
        ("cpu_model", {"fingerprint": {**FINGERPRINT, "cpu_model": "max"}}),
        ("memory_mib", {"fingerprint": {**FINGERPRINT, "memory_mib": 4}}),
        ("more", {"fingerprint": {**FINGERPRINT, "more": 1}}),
        ("tsc_khz", {"tsc_khz": TSC_KHZ * 101 // 100}),
        ("tsc_khz", {"tsc_khz": 0}),
        ("vcpus", {"fingerprint": {k: v for k, v in FINGERPRINT.items() if k != "vcpus"}}),
    ],
)
def test_another_machine_is_refused_by_name(
    made: Manifest, what: str, change: dict[str, Any]
) -> None:
    with pytest.raises(SnapshotInvalid) as caught:
        manifests.require(made, **{**SAME, **change})
    assert caught.value.details["what"] == what
    assert caught.value.code == "SNAPSHOT_INVALID"


def test_a_counter_measured_again_is_the_same_one(made: Manifest) -> None:
    for measured in (TSC_KHZ * 9999 // 10000, TSC_KHZ * 10001 // 10000):
        manifests.require(made, **{**SAME, "tsc_khz": measured})
    # Under KVM the guest has a clock of the host's making: no rate is kept, none is asked for.
    manifests.require(dataclasses.replace(made, tsc_khz=0), **{**SAME, "tsc_khz": 0})
    with pytest.raises(SnapshotInvalid):
        manifests.require(dataclasses.replace(made, tsc_khz=0), **SAME)


def test_no_manifest_is_no_snapshot(tmp_path: Path, made: Manifest) -> None:
    (tmp_path / manifests.NAME).unlink()
    with pytest.raises(SnapshotInvalid, match="not whole"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2}'],
)
def test_a_manifest_that_is_none(tmp_path: Path, made: Manifest, text: str) -> None:
    (tmp_path / manifests.NAME).write_text(text)
    with pytest.raises(SnapshotInvalid):
        verify(tmp_path)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Manifest)])
def test_a_field_of_another_kind(tmp_path: Path, made: Manifest, name: str) -> None:
    with pytest.raises(SnapshotInvalid):
        manifests.parse({**made.to_json(), name: None})


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flip_anywhere_but_in_memory_is_refused(tmp_path: Path, made: Manifest) -> None:
    path = tmp_path / manifests.MEMORY
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    layout = mappedram.read_layout(fd)
    os.close(fd)
    memory, bios = layout.blocks
    places = [
        0,
        20,
        memory.bitmap_offset - 1,
        memory.bitmap_offset,
        memory.bitmap_offset + memory.bitmap_length - 1,
        bios.bitmap_offset,
        bios.pages_offset,
        bios.end - 1,
        layout.devices_offset + 12,
        size - 1,
    ]
    for at in places:
        _flip(path, at)
        with pytest.raises(SnapshotInvalid):
            verify(tmp_path)
        _flip(path, at)
    verify(tmp_path)


def test_a_cut_or_grown_file_is_refused(tmp_path: Path, made: Manifest) -> None:
    path = tmp_path / manifests.MEMORY
    for size in (made.file_size + 1, made.file_size - 1, 100, 0):
        os.truncate(path, size)
        with pytest.raises(SnapshotInvalid, match="cut or grew"):
            verify(tmp_path)
