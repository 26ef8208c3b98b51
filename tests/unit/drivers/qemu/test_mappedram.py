"""The snapshot format: read, mended, and refused where it is not exactly that."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roost.drivers.qemu import mappedram
from roost.drivers.qemu.mappedram import PAGE, SnapshotInvalid

from .stream import FULL, MIB, Stream

Open = Callable[[Path], int]


@pytest.fixture
def opened() -> Iterator[Open]:
    fds: list[int] = []

    def open_it(path: Path) -> int:
        fds.append(os.open(path, os.O_RDWR))
        return fds[-1]

    yield open_it
    for fd in fds:
        os.close(fd)


def test_the_layout_of_a_whole_file(tmp_path: Path, opened: Open) -> None:
    path = Stream(parts=14).write(tmp_path / "f")
    layout = mappedram.read_layout(opened(path))
    assert layout.machine == "microvm"
    memory, bios = layout.blocks
    assert (memory.name, memory.length, memory.pages_offset) == ("mem0", 2 * MIB, MIB)
    assert (bios.name, bios.length) == ("pc.bios", 2 * PAGE)
    assert path.read_bytes()[layout.devices_offset :] == FULL + b"\0"
    assert layout.block("mem0") is memory
    with pytest.raises(SnapshotInvalid, match="no memory block"):
        layout.block("mem1")


def test_settling_keeps_pages_and_drops_stale_ones(tmp_path: Path, opened: Open) -> None:
    stream = Stream(pages={0: b"first", 9: b"nine", 511: b"last"}, stale={10: b"old", 64: b"old"})
    path = stream.write(tmp_path / "f")
    fd = opened(path)
    before = path.read_bytes()
    layout = mappedram.read_layout(fd)
    block = layout.block("mem0")
    assert not mappedram.is_settled(fd, block)
    assert mappedram.settle(fd, block) == 3 * PAGE
    assert mappedram.is_settled(fd, block)
    after = path.read_bytes()
    assert len(after) == len(before)
    for page in range(block.length // PAGE):
        at = block.pages_offset + page * PAGE
        content = stream.pages.get(page, b"")
        assert after[at : at + PAGE] == content.ljust(PAGE, b"\0"), page
    assert after[block.end :] == before[block.end :]
    assert mappedram.read_layout(fd) == layout
    # Again does nothing: pages without a bit are not taken for stale ones.
    assert mappedram.settle(fd, block) == 0
    assert path.read_bytes() == after


def test_holes_take_no_space(tmp_path: Path, opened: Open) -> None:
    path = Stream(pages={3: b"x"}, stale=dict.fromkeys(range(100, 300), b"y" * PAGE)).write(
        tmp_path / "f"
    )
    fd = opened(path)
    mappedram.settle(fd, mappedram.read_layout(fd).block("mem0"))
    start = os.lseek(fd, MIB + 100 * PAGE, os.SEEK_DATA)
    assert start >= MIB + 300 * PAGE


def test_devices_are_replaced_and_memory_stays(tmp_path: Path, opened: Open) -> None:
    path = Stream(pages={1: b"kept"}).write(tmp_path / "f")
    fd = opened(path)
    layout = mappedram.read_layout(fd)
    others = FULL * 40
    sections = mappedram.device_sections(b"QEVM" + struct.pack(">I", 3) + others + b"\0")
    mappedram.replace_devices(fd, layout, sections)
    changed = mappedram.read_layout(fd)
    assert (changed.blocks, changed.devices_offset) == (layout.blocks, layout.devices_offset)
    assert path.read_bytes()[changed.devices_offset :] == others + b"\0"
    mappedram.replace_devices(fd, changed, FULL + b"\0")
    assert mappedram.read_layout(fd) == layout


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"QEVM\0\0\0\3",
        b"QEVM\0\0\0\3\0",
        b"QEVM\0\0\0\3\1\0",
        b"QEVM\0\0\0\4" + FULL + b"\0",
        b"QEVM\0\0\0\3" + FULL,
    ],
)
def test_a_device_stream_that_is_none(stream: bytes) -> None:
    with pytest.raises(SnapshotInvalid):
        mappedram.device_sections(stream)


@pytest.mark.parametrize(
    "stream",
    [
        Stream(capabilities=()),
        Stream(capabilities=(b"mapped-ram", b"x-ignore-shared")),
        Stream(capabilities=(b"multifd",)),
        Stream(machine=b""),
        Stream(machine=b"bad\nname"),
        Stream(others=((b"mem0", PAGE),)),
        Stream(others=((b"", PAGE),)),
        Stream(others=tuple((b"b%d" % n, PAGE) for n in range(70))),
        Stream(devices=b""),
        Stream(devices=b"\0"),
        Stream(devices=FULL),
    ],
)
def test_what_we_do_not_write_is_refused(stream: Stream, tmp_path: Path, opened: Open) -> None:
    with pytest.raises(SnapshotInvalid) as caught:
        mappedram.read_layout(opened(stream.write(tmp_path / "f")))
    assert caught.value.code == "SNAPSHOT_INVALID"
    assert "start from its disk" in caught.value.message


def test_a_bitmap_longer_than_memory_is_refused(tmp_path: Path, opened: Open) -> None:
    path = Stream(memory=PAGE * 3).write(tmp_path / "f")
    fd = opened(path)
    block = mappedram.read_layout(fd).block("mem0")
    os.pwrite(fd, b"\xff", block.bitmap_offset)
    with pytest.raises(SnapshotInvalid, match="longer"):
        mappedram.settle(fd, block)


@settings(max_examples=150)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
def test_every_truncation_is_refused(tmp_path: Path, share: float) -> None:
    path = Stream(pages={1: b"x"}).write(tmp_path / "cut")
    size = path.stat().st_size
    os.truncate(path, int(size * share))
    _refused(path)
    # Near the end, where the parts are small. Within the devices' state only a manifest can tell.
    path = Stream(pages={1: b"x"}).write(path)
    os.truncate(path, size - len(FULL) - 1 - int(60 * share))
    _refused(path)


def _refused(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(SnapshotInvalid):
            mappedram.read_layout(fd)
    finally:
        os.close(fd)


@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_head_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the file says, only SnapshotInvalid comes of it, and every block lies inside the file."""
    path = tmp_path / "flipped"
    if not path.exists():
        Stream(pages={1: b"x"}).write(path)
    size = path.stat().st_size
    fd = os.open(path, os.O_RDWR)
    try:
        at = data.draw(
            st.one_of(st.integers(0, 200), st.integers(size - 150, size - 1)), label="offset"
        )
        before = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([before[0] ^ data.draw(st.integers(1, 255), label="bits")]), at)
        try:
            layout = mappedram.read_layout(fd)
        except SnapshotInvalid:
            pass
        else:
            assert all(b.pages_offset > 0 and b.end <= size for b in layout.blocks)
            assert sum(b.length for b in layout.blocks) < size
        finally:
            os.pwrite(fd, before, at)
    finally:
        os.close(fd)


def test_runs() -> None:
    assert list(mappedram.runs(b"0011101", b"1")) == [(2, 5), (6, 7)]
    assert list(mappedram.runs(b"", b"1")) == []
    assert list(mappedram.runs(b"\1\1", b"\1")) == [(0, 2)]


def test_no_file_is_read_beyond_what_its_machine_can_have(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = opened(Stream().write(tmp_path / "f"))
    memory = mappedram.read_layout(fd).block("mem0").length
    monkeypatch.setattr(mappedram, "_BESIDE", 0)
    with pytest.raises(SnapshotInvalid):
        mappedram.read_layout(fd, memory - mappedram.PAGE)
    monkeypatch.setattr(mappedram, "_BESIDE", 64 << 20)
    monkeypatch.setattr(mappedram, "_MAX_PARTS", -1)
    with pytest.raises(SnapshotInvalid, match="no end"):
        mappedram.read_layout(fd, memory)
