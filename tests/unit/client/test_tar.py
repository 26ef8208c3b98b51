"""Trees from a machine are hostile: nothing outside the destination, whatever the stream holds."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost import InvalidRequestError, RoostError
from roost.client._tar import Transfer, Unpacker, _stays_inside, pack
from tests.attack.record import case

pytestmark = case(26)

Add = Callable[[tarfile.TarFile], None]


def file(name: str, data: bytes = b"x", mode: int = 0o644, **changes: object) -> Add:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), mode
        for key, value in changes.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data))

    return add


def entry(name: str, kind: bytes, target: str = "", **changes: object) -> Add:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, target, 0o755
        for key, value in changes.items():
            setattr(info, key, value)
        tar.addfile(info)

    return add


def link(name: str, target: str) -> Add:
    return entry(name, tarfile.SYMTYPE, target)


def hard(name: str, target: str) -> Add:
    return entry(name, tarfile.LNKTYPE, target)


def directory(name: str, mode: int = 0o755) -> Add:
    return entry(name, tarfile.DIRTYPE, mode=mode)


def build(*entries: Add, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for add in entries:
            add(tar)
    return buffer.getvalue()


def unpack(data: bytes, into: Path, step: int = 1 << 20, **limits: int) -> Transfer:
    into.mkdir(exist_ok=True)
    with Unpacker(into, **limits) as unpacker:
        for i in range(0, len(data), step):
            unpacker.feed(data[i : i + step])
        return unpacker.finish()


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/secret").write_text("untouched")
    return tmp_path / "destination"


def outside(inside: Path) -> dict[str, str]:
    root = inside.parent
    return {
        str(p.relative_to(root)): p.read_text() if p.is_file() else ""
        for p in root.rglob("*")
        if inside not in p.parents and p != inside
    }


UNTOUCHED = {"victim": "", "victim/secret": "untouched"}

HOSTILE = {
    "parent": [file("../victim/secret")],
    "parent in the middle": [file("a/../../victim/secret")],
    "absolute": [file("/tmp/roost-escaped")],
    "absolute after dot": [file(".//../victim/secret")],
    "nul": [file("a", pax_headers={"path": "a\0b"})],
    "empty name": [file(".")],
    "pax path": [file("fine", pax_headers={"path": "../victim/secret"})],
    "through a link": [link("d", "sub"), file("d/secret")],
    "through a link made by a directory": [file("d"), file("d/secret")],
    "hard link out": [hard("h", "../victim/secret"), file("h")],
    "hard link to an absolute": [hard("h", "/etc/passwd")],
    "hard link to nothing": [hard("h", "missing")],
    "hard link to a directory": [directory("d"), hard("h", "d")],
    "device": [entry("null", tarfile.CHRTYPE)],
    "block device": [entry("sda", tarfile.BLKTYPE)],
    "fifo": [entry("pipe", tarfile.FIFOTYPE)],
    "file over directory": [directory("d"), file("d/f"), file("d")],
    "sparse": [file("s", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": "9" * 15})],
    "old sparse": [entry("s", tarfile.GNUTYPE_SPARSE)],
    "size": [file("a", pax_headers={"size": "-5"})],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(inside: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        unpack(build(*HOSTILE[name]), inside)
    assert caught.value.code == "INVALID_PATH"
    assert outside(inside) == UNTOUCHED


@pytest.mark.parametrize(
    "entries",
    [
        [link("out", "../victim/secret")],
        [link("out", "/etc/passwd")],
        [link("out", "a/../../victim")],
        [directory("deep"), link("deep/out", "../../victim")],
        [link("here", "."), link("out", "here/../victim")],
        [directory("a/b"), link("a/b/up", "../.."), link("out", "a/b/up/../victim")],
        [link("out", "x" * 5000)],
    ],
    ids=lambda e: str(len(e)),
)
def test_links_that_lead_out_are_left_away(inside: Path, entries: list[Add]) -> None:
    done = unpack(build(*entries), inside)
    assert len(done.skipped) == 1
    for path in inside.rglob("*"):
        real = os.path.realpath(path)
        assert (real + "/").startswith(f"{inside}/"), path
    assert outside(inside) == UNTOUCHED


def test_a_link_that_stood_there_before_is_not_followed(inside: Path) -> None:
    inside.mkdir()
    (inside / "d").symlink_to(inside.parent / "victim")
    (inside / "f").symlink_to(inside.parent / "victim/secret")
    unpack(build(file("f", b"new")), inside)
    assert (inside / "f").read_text() == "new"
    assert not (inside / "f").is_symlink()
    with pytest.raises(InvalidRequestError, match="no directory"):
        unpack(build(file("d/secret")), inside)
    assert outside(inside) == UNTOUCHED


def test_a_link_swapped_for_a_directory_and_back(inside: Path) -> None:
    data = build(directory("d"), link("d", "."), file("d/f"), link("d/f", "../.."))
    with pytest.raises(InvalidRequestError):
        unpack(data, inside)
    assert outside(inside) == UNTOUCHED


def test_good_things_come_whole(inside: Path) -> None:
    data = build(
        directory("d", 0o500),
        file("d/run", b"#!", 0o6755),
        hard("d/same", "d/run"),
        link("d/up", "../top"),
        file("top", b"t" * 70000),
        file("x" * 200 + "/ü", b"long"),
        file("empty", b""),
    )
    for step in (1, 7, 512, 1 << 20):
        target = inside.with_name(f"step{step}")
        done = unpack(data, target, step if step > 1 or len(data) < 99999 else 3)
        assert done.skipped == []
        assert (target / "d/run").stat().st_mode & 0o7777 == 0o755, "no setuid"
        assert (target / "d").stat().st_mode & 0o777 == 0o700
        assert (target / "d/same").samefile(target / "d/run")
        assert (target / "d/up").read_bytes() == b"t" * 70000
        assert (target / ("x" * 200) / "ü").read_bytes() == b"long"
        assert (target / "empty").read_bytes() == b""


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats(inside: Path, format: int) -> None:
    name = "d" * 90 + "/" + "f" * (90 if format == tarfile.USTAR_FORMAT else 300)
    if format != tarfile.USTAR_FORMAT:
        name = "d" * 90 + "/" + "f" * 200
    unpack(build(file(name, b"1"), format=format), inside)
    assert (inside / name).read_bytes() == b"1"


def test_bounds(inside: Path) -> None:
    with pytest.raises(InvalidRequestError, match="more than 2 entries"):
        unpack(build(file("a"), file("b"), file("c")), inside, max_entries=2)
    with pytest.raises(InvalidRequestError, match="more than 5 bytes"):
        unpack(build(file("big", b"123456")), inside, max_bytes=5)
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with pytest.raises(InvalidRequestError, match="oversized header"):
        unpack(long.tobuf(tarfile.GNU_FORMAT), inside)
    with pytest.raises(InvalidRequestError, match="no file has"):
        unpack(build(file("/".join(["d"] * 3000))), inside)


def test_a_stream_that_breaks_off(inside: Path) -> None:
    data = build(file("a", b"x" * 3000))
    for cut in (100, 512, 1500, 3000):
        with pytest.raises(RoostError, match="broke off"):
            unpack(data[:cut], inside)


@settings(max_examples=300)
@given(st.binary(max_size=4096), st.integers(0, 4096))
def test_noise_never_escapes(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    good = bytearray(build(file("a", b"x" * 600), link("l", "a"), directory("d")))
    good[at : at + len(data)] = data
    root = tmp_path_factory.mktemp("noise")
    try:
        unpack(bytes(good), root / "in")
    except (RoostError, OSError, UnicodeError):
        pass
    assert [p.name for p in root.iterdir()] == ["in"]


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=8), st.integers(0, 4))
def test_inside_means_inside(parts: list[str], depth: int) -> None:
    """Against the lexical truth for targets without links on the way."""
    target = "/".join(parts)
    if _stays_inside(depth, target):
        base = "/root" + "/d" * depth
        end = os.path.normpath(f"{base}/{target}")
        assert (end + "/").startswith("/root/")


def test_packing_leaves_out_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(tmp_path)))) as tar:
        assert tar.getnames() == ["f"]
