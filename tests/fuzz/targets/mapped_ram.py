"""A VMM's memory file, which an import may bring from anywhere: no block lies outside of it, and reading it ends."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from roost.drivers.qemu.mappedram import PAGE, SnapshotInvalid, device_sections, read_layout
from tests.unit.drivers.qemu.stream import MIB, Stream

_PAGES = 4
_TAIL = MIB + _PAGES * PAGE  # where pages end and the section goes on
_HEAD = 400


def _made(**how: object) -> bytes:
    """Head and tail of a file of one block; its pages are zeros."""
    with tempfile.TemporaryDirectory() as directory:
        path = Stream(memory=_PAGES * PAGE, others=(), **how).write(Path(directory) / "f")  # type: ignore[arg-type]
        data = path.read_bytes()
    return data[:_HEAD] + data[_TAIL:]


COVERS = ("roost.drivers.qemu.mappedram",)
SEEDS = (_made(), _made(parts=9), _made(capabilities=(b"other",)), _made(devices=b""))
WORDS = (
    b"QEVM",
    b"mapped-ram",
    b"\x03ram",
    b"\x04mem0",
    b"\x7e",
    b"\x00\x00\x10\x00",
    bytes(7) + b"\x10",
    b"\x08\x00\x0b\x00\x00",
)
LONGEST = 2048


def one(data: bytes) -> None:
    try:
        device_sections(data)
    except SnapshotInvalid:
        pass
    fd = os.memfd_create("snapshot")
    try:
        os.write(fd, data[:_HEAD])
        os.pwrite(fd, data[_HEAD:], _TAIL)
        try:
            layout = read_layout(fd, 1 << 30)
        except SnapshotInvalid:
            return
        for block in layout.blocks:
            assert block.length % PAGE == 0
            assert block.bitmap_offset + block.bitmap_length <= block.pages_offset
            assert block.end <= layout.devices_offset <= layout.size
    finally:
        os.close(fd)
