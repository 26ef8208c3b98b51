"""Snapshot files as QEMU 10.0 writes them, made by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from roost.drivers.qemu.mappedram import PAGE

MIB = 1 << 20
FULL = (
    b"\x04"
    + struct.pack(">I", 5)
    + b"\x05timer"
    + bytes(8)
    + b"state"
    + b"\x7e"
    + struct.pack(">I", 5)
)
_CAPABILITY = b"configuration/capabilities"


@dataclass
class Stream:
    """``pages``: number -> content of guest memory; ``stale``: written, but their bits are gone."""

    pages: dict[int, bytes] = field(default_factory=dict)
    stale: dict[int, bytes] = field(default_factory=dict)
    memory: int = 2 * MIB
    machine: bytes = b"microvm"
    capabilities: tuple[bytes, ...] = (b"mapped-ram",)
    others: tuple[tuple[bytes, int], ...] = ((b"pc.bios", 2 * PAGE),)
    parts: int = 2
    devices: bytes = FULL + b"\0"

    def write(self, path: Path) -> Path:
        data = bytearray(b"QEVM" + struct.pack(">I", 3))
        data += b"\x07" + struct.pack(">I", len(self.machine)) + self.machine
        data += b"\x05" + bytes([len(_CAPABILITY)]) + _CAPABILITY
        data += struct.pack(">II", 1, len(self.capabilities))
        for name in self.capabilities:
            data += bytes([len(name)]) + name
        data += b"\x01" + struct.pack(">I", 1) + b"\x03ram" + struct.pack(">II", 0, 4)
        blocks = ((b"mem0", self.memory), *self.others)
        data += struct.pack(">Q", sum(length for _, length in blocks) | 4)
        for name, length in blocks:
            self._block(data, name, length)
        rest = struct.pack(">Q", 0x10) + b"\x7e" + struct.pack(">I", 1)
        data += rest + (b"\x02" + struct.pack(">I", 1) + rest) * self.parts
        data += b"\x08" + struct.pack(">HH", 11, 0)
        data += b"\x03" + struct.pack(">I", 1) + rest
        data += self.devices
        path.write_bytes(data)
        return path

    def _block(self, data: bytearray, name: bytes, length: int) -> None:
        data += bytes([len(name)]) + name + struct.pack(">Q", length)
        bitmap_at = len(data) + 28
        bitmap = bytearray(-(-(length // PAGE) // 64) * 8)
        pages_at = -(-(bitmap_at + len(bitmap)) // MIB) * MIB
        data += struct.pack(">IQQQ", 1, PAGE, bitmap_at, pages_at)
        held = self.pages if name == b"mem0" else {0: b"firmware"}
        for page in held:
            bitmap[page // 8] |= 1 << page % 8
        data += bitmap
        data += bytes(pages_at + length - len(data))
        stale = self.stale if name == b"mem0" else {}
        for page, content in {**stale, **held}.items():
            at = pages_at + page * PAGE
            data[at : at + len(content)] = content
