"""Snapshot files: QEMU's mapped-ram migration format, read, and mended so that memory can be mapped from it.

Format: QEMU ``docs/devel/migration/mapped-ram.rst`` and ``migration/{savevm,ram}.c`` (10.0). Integers are
big-endian; bitmaps are little-endian, a bit a page.

```
"QEVM" 3 | 07 configuration: machine name, capabilities | 01 section "ram" v4: total | blocks | state
  block: name | used length | version 1, page size, bitmap offset, pages offset | bitmap | (to 1 MiB) pages
  state: end of the section's start, (02 more)*, 08 "switchover starts", 03 its end |
         (04 a device's full state)* | 00
```

A live save writes a page where it belongs and again when it changed. A page that became zero meanwhile
keeps its old bytes and only loses its bit. ``settle`` makes holes of those and clears the bitmap: the file's
pages are then the memory itself, which a VMM maps privately, and loading the file copies nothing. That
a page without a bit is left alone at load is QEMU 10.0's conduct: a snapshot names the version it is of.

The files are a VMM's, so hostile: everything is bounded and checked, what is not exactly the above is
SNAPSHOT_INVALID.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from roost.errors import ConflictError
from roost.host import syscalls

PAGE = 4096
_ALIGNMENT = 1 << 20
_MAX_MEMORY = 1 << 40
_BESIDE = 64 << 20  # firmware and tables, which are blocks, too
_MAX_PARTS = 1 << 20  # bytes of empty parts: one for each round of a live save
_MAX_BLOCKS = 64
MAX_STATE = 64 << 20
_MAX_SETUP = 4096  # of configuration and section header
_CLEAR_CHUNK = 1 << 20
_PUNCH_HOLE = 0x1 | 0x2  # with KEEP_SIZE

_PREFIX = struct.pack(">4sI", b"QEVM", 3)
_CONFIGURATION, _START, _PART, _END, _FULL, _SUBSECTION, _FOOTER = 7, 1, 2, 3, 4, 5, 0x7E
_COMMAND, _SWITCHOVER_START = 8, 11
_EOF = b"\0"
_FLAG_MEM_SIZE, _FLAG_EOS = 0x04, 0x10
_RAM_VERSION, _HEADER_VERSION = 4, 1
_CAPABILITIES = ("mapped-ram",)


class SnapshotInvalid(ConflictError):
    """The file is not whole, not this format, or not of this machine; it is not to be resumed."""

    default_code = "SNAPSHOT_INVALID"


@dataclass(frozen=True, slots=True)
class Block:
    """Of guest memory. Offsets in the file, lengths in bytes."""

    name: str
    length: int
    bitmap_offset: int
    pages_offset: int

    @property
    def bitmap_length(self) -> int:
        return -(-(self.length // PAGE) // 64) * 8

    @property
    def end(self) -> int:
        return self.pages_offset + self.length


@dataclass(frozen=True, slots=True)
class Layout:
    machine: str
    blocks: tuple[Block, ...]
    devices_offset: int  # of the first device's state; what comes before is memory's
    size: int

    def block(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise _invalid(f"it has no memory block {name!r}")


def read_layout(fd: int, memory_bytes: int = _MAX_MEMORY) -> Layout:
    """``memory_bytes``: of the machine, more than which a file of it cannot have. Raises SnapshotInvalid."""
    size = os.fstat(fd).st_size
    reader = _Reader(fd, size)
    machine = _configuration(reader)
    section = _ram_section(reader)
    blocks = _blocks(reader, memory_bytes + _BESIDE)
    _ram_ends(reader, section)
    devices = reader.at
    if not 1 < size - devices <= MAX_STATE or reader.byte() != _FULL:
        raise _invalid("it has no device state")
    if os.pread(fd, 1, size - 1) != _EOF:
        raise _invalid("its device state is cut off")
    return Layout(machine, blocks, devices, size)


def settle(fd: int, block: Block) -> int:
    """Makes the block's pages what its memory is; the bytes of memory that are not zero. Idempotent but for
    what it returns. The file must be one that QEMU has finished."""
    bitmap = os.pread(fd, block.bitmap_length, block.bitmap_offset)
    if len(bitmap) != block.bitmap_length:
        raise _invalid("its page bitmap is cut off")
    if not any(bitmap):
        return 0
    pages = block.length // PAGE
    bits = format(int.from_bytes(bitmap, "little"), f"0{len(bitmap) * 8}b")[::-1]
    if "1" in bits[pages:]:
        raise _invalid("its page bitmap is longer than its memory")
    for start, end in runs(bits[:pages].encode(), b"0"):
        offset = block.pages_offset + start * PAGE
        syscalls.fallocate(fd, _PUNCH_HOLE, offset, (end - start) * PAGE)
    # Last: a crash before leaves a file that can be settled again.
    for offset in range(0, len(bitmap), _CLEAR_CHUNK):
        part = bytes(min(_CLEAR_CHUNK, len(bitmap) - offset))
        _write_all(fd, part, block.bitmap_offset + offset)
    return bits.count("1") * PAGE


def is_settled(fd: int, block: Block) -> bool:
    bitmap = os.pread(fd, block.bitmap_length, block.bitmap_offset)
    return len(bitmap) == block.bitmap_length and not any(bitmap)


def device_sections(stream: bytes) -> bytes:
    """What follows the header of a stream that has devices only (``xen-save-devices-state``)."""
    if not stream.startswith(_PREFIX) or not stream.endswith(_EOF) or len(stream) > MAX_STATE:
        raise _invalid("the device state is not whole")
    sections = stream[len(_PREFIX) :]
    if len(sections) < 2 or sections[0] != _FULL:
        raise _invalid("the device state does not begin with a device")
    return sections


def replace_devices(fd: int, layout: Layout, sections: bytes) -> None:
    """Memory stays, the devices become those of ``sections`` (of ``device_sections``)."""
    os.ftruncate(fd, layout.devices_offset)
    _write_all(fd, sections, layout.devices_offset)


def runs(mask: bytes, of: bytes) -> Iterator[tuple[int, int]]:
    """Where ``mask`` has only the byte ``of``: (from, to) of each stretch."""
    for match in re.finditer(re.escape(of) + b"+", mask):
        yield match.span()


# --- parsing -------------------------------------------------------------------------------------------


class _Reader:
    """At a place in the file; everything it reads is there or the file is invalid."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self.at = 0

    def take(self, count: int) -> bytes:
        data = os.pread(self._fd, count, self.at)
        if len(data) != count:
            raise _invalid("it is cut off")
        self.at += count
        return data

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4))

    def u64(self) -> int:
        return int.from_bytes(self.take(8))

    def name(self, length: int) -> str:
        if not 1 <= length <= 255:
            raise _invalid("a name has no sound length")
        text = self.take(length)
        if not re.fullmatch(rb"[\x21-\x7e]+", text):
            raise _invalid("a name is no name")
        return text.decode()

    def expect(self, value: int, got: int, what: str) -> None:
        if value != got:
            raise _invalid(f"{what} is {got:#x}, not {value:#x}")

    def jump(self, offset: int) -> None:
        if not self.at <= offset <= self.size:
            raise _invalid("it is cut off")
        self.at = offset


def _configuration(reader: _Reader) -> str:
    if reader.take(len(_PREFIX)) != _PREFIX:
        raise _invalid("it does not begin as one")
    reader.expect(_CONFIGURATION, reader.byte(), "the first section")
    machine = reader.name(reader.u32())
    reader.expect(_SUBSECTION, reader.byte(), "the configuration's part")
    if reader.name(reader.byte()) != "configuration/capabilities":
        raise _invalid("its configuration is unknown")
    reader.expect(1, reader.u32(), "the configuration's version")
    reader.expect(len(_CAPABILITIES), reader.u32(), "the number of capabilities")
    if tuple(reader.name(reader.byte()) for _ in _CAPABILITIES) != _CAPABILITIES:
        raise _invalid("it was saved with other capabilities")
    return machine


def _ram_section(reader: _Reader) -> int:
    reader.expect(_START, reader.byte(), "the second section")
    section = reader.u32()
    if reader.name(reader.byte()) != "ram":
        raise _invalid("memory does not come first")
    reader.expect(0, reader.u32(), "the memory section's instance")
    reader.expect(_RAM_VERSION, reader.u32(), "the memory section's version")
    if reader.at > _MAX_SETUP:
        raise _invalid("its head is too long")
    return section


def _blocks(reader: _Reader, most: int) -> tuple[Block, ...]:
    total = reader.u64()
    reader.expect(_FLAG_MEM_SIZE, total % PAGE, "the memory section's flag")
    left = total - _FLAG_MEM_SIZE
    if not 0 < left <= most:
        raise _invalid("its memory has no sound size")
    blocks: list[Block] = []
    while left:
        name = reader.name(reader.byte())
        length = reader.u64()
        reader.expect(_HEADER_VERSION, reader.u32(), "a block's version")
        reader.expect(PAGE, reader.u64(), "a block's page size")
        block = Block(name, length, reader.u64(), reader.u64())
        pages_at = -(-(reader.at + block.bitmap_length) // _ALIGNMENT) * _ALIGNMENT
        if (
            not 0 < length <= left
            or length % PAGE
            or block.bitmap_offset != reader.at
            or block.pages_offset != pages_at
            or len(blocks) == _MAX_BLOCKS
            or any(b.name == name for b in blocks)
        ):
            raise _invalid(f"memory block {name!r} cannot be")
        reader.jump(block.end)
        left -= length
        blocks.append(block)
    return tuple(blocks)


def _ram_ends(reader: _Reader, section: int) -> None:
    """The rest of the memory section: its pages lie elsewhere, so every part of it is empty."""
    kind, begun = _START, reader.at
    while True:
        if reader.at - begun > _MAX_PARTS:
            raise _invalid("its memory has no end")
        reader.expect(_FLAG_EOS, reader.u64(), "a memory section's content")
        reader.expect(_FOOTER, reader.byte(), "a section's footer")
        reader.expect(section, reader.u32(), "a section's id")
        if kind == _END:
            return
        kind = reader.byte()
        if kind == _COMMAND:
            reader.expect(_SWITCHOVER_START << 16, reader.u32(), "a command")
            kind = reader.byte()
        if kind not in (_PART, _END):
            raise _invalid("memory is not whole")
        reader.expect(section, reader.u32(), "a section's id")


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _invalid(why: str) -> SnapshotInvalid:
    return SnapshotInvalid(
        f"The memory snapshot cannot be used: {why}. Delete it; the machine can start from its disk."
    )
