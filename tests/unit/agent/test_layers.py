"""Layers of images, unpacked by the real agent below a directory of the test's."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import RoostError
from tests.attack.record import case
from tests.oci_images import PACKERS, directory, entry, link, tar
from tests.unit.agent import process


async def put(agent: AgentClient, root: Path, entries: Any, **header: Any) -> pb.TarInReply:
    data = entries if isinstance(entries, bytes) else tar(entries)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 99_991):
            yield data[at : at + 99_991]

    wanted = pb.TarInHeader(path=bytes(root), layer=True, keep_special=True, owner="0:0", **header)
    return await agent.tar_in(wanted, pieces())


def listed(root: Path) -> list[str]:
    found = []
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            name += f" -> {os.readlink(path)}"
        elif path.is_dir():
            name += "/"
        else:
            name += f"={path.read_text()}"
        found.append(name)
    return sorted(found)


async def test_layers_lie_on_each_other(running: AgentClient, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = [
        directory("./"),
        *(entry(f"a/{n}", n) for n in ("one", "two", "deep/down/three")),
        directory("b"),
        entry("b/old", "old"),
        entry("c", "a file"),
        entry("d/x", "x"),
        link("e", "a"),
        entry("kept", "kept", mode=0o4755),
    ]
    assert (await put(running, root, first)).left_out == 0
    second = [
        entry("b/new", "new"),
        entry("b/.wh..wh..opq"),
        entry("b/sub/newer", "newer"),
        entry("a/.wh.one"),
        entry("a/deep/.wh.down"),
        entry("a/.wh.never"),
        directory("c"),
        entry("c/inside", "now a directory"),
        entry("d", "now a file"),
        directory("e"),
        entry("e/f", "no link any more"),
        link("linked", "kept", hard=True),
        link("/absolute", "/kept", hard=True),
        entry("put", "put"),
        entry(".wh.put"),
        entry(".wh..wh.plnk", "of AUFS"),
    ]
    assert (await put(running, root, second)).left_out == 1
    assert listed(root) == [
        "a/",
        "a/deep/",
        "a/two=two",
        "absolute=kept",
        "b/",
        "b/new=new",
        "b/sub/",
        "b/sub/newer=newer",
        "c/",
        "c/inside=now a directory",
        "d=now a file",
        "e/",
        "e/f=no link any more",
        "kept=kept",
        "linked=kept",
        "put=put",
    ]
    assert (root / "kept").stat().st_ino == (root / "linked").stat().st_ino
    assert (root / "kept").stat().st_mode & 0o7777 == 0o4755


@case(24)
async def test_links_lead_nowhere_but_below_the_root(running: AgentClient, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    entries = [
        link("lib", "usr/lib"),
        entry("lib/x.so", "usr merged"),
        link("up", "../../../../../../../.."),
        entry("up/high", "clamped"),
        link("away", str(outside)),
        entry("away/victim", "within"),
        link("victim", f"{outside}/victim"),
        entry("victim", "a file in its place"),
    ]
    await put(running, root, entries)
    assert listed(outside) == ["victim=untouched"]
    assert (root / "usr/lib/x.so").read_text() == "usr merged"
    assert (root / "high").read_text() == "clamped"
    assert (root / str(outside)[1:] / "victim").read_text() == "within"
    assert (root / "victim").read_text() == "a file in its place"


@case(24)
@pytest.mark.parametrize(
    "entries",
    [
        [entry("../outside/victim", "x")],
        [entry("a/../../outside/victim", "x")],
        [link("away", "/outside"), link("stolen", "away/victim", hard=True)],
        [link("stolen", "../outside/victim", hard=True)],
        [directory("d"), link("e", "d", hard=True)],
        [link("nothing", "nowhere", hard=True)],
        [entry(".wh...")],
        [entry(".wh.")],
        [link("loop", "pool/x"), link("pool", "loop/x"), entry("loop/f", "x")],
        [entry("f", "x"), entry("f/g", "x")],
    ],
)
async def test_what_no_image_may_do(running: AgentClient, tmp_path: Path, entries: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    with pytest.raises(RoostError) as failure:
        await put(running, tmp_path / "root", entries)
    assert failure.value.code == "INVALID_PATH"
    assert listed(outside) == ["victim=untouched"]
    assert (outside / "victim").stat().st_nlink == 1


async def test_what_is_no_part_of_an_image(running: AgentClient, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in (".roost", "proc", "run"):
        (root / name).mkdir(parents=True)
        (root / name / "ours").write_text("ours")
    entries = [
        directory("proc"),
        entry("proc/ours", "theirs"),
        entry("run/lock/x", "theirs"),
        entry(".roost/agent", "theirs"),
        link("p", "proc"),
        entry("p/ours", "theirs"),
        link("r", "/.roost/"),
        link("stolen", "r/ours", hard=True),
        entry(".wh.proc"),
        entry(".wh..wh..opq"),
        link("dev", "/tmp"),
        entry("node", type=b"3"),
        entry("kept", "kept"),
    ]
    assert (await put(running, root, entries)).left_out == 8
    assert listed(root) == [
        ".roost/",
        ".roost/ours=ours",
        "kept=kept",
        "p -> proc",
        "proc/",
        "proc/ours=ours",
        "r -> /.roost/",
        "run/",
        "run/ours=ours",
    ]


@case(25)
@pytest.mark.parametrize(
    ("packed", "compression"), [("+gzip", pb.COMPRESSION_GZIP), ("+zstd", pb.COMPRESSION_ZSTD)]
)
async def test_compressed_and_bounded(
    running: AgentClient, tmp_path: Path, packed: str, compression: Any
) -> None:
    pack, root = PACKERS[packed], tmp_path / "root"
    plain = tar([entry("a", "one" * 100_000), entry("b", "two")])
    half = len(plain) // 2
    for data in (pack(plain), pack(plain[:half]) + pack(plain[half:])):
        await put(running, root, data, compression=compression)
        assert (root / "a").read_text() == "one" * 100_000
        assert (root / "b").read_text() == "two"
    bomb = pack(tar([entry("bomb", bytes(80 << 20))]))
    for bounds in ({"max_ratio": 100}, {"max_bytes": 1 << 20}):
        with pytest.raises(RoostError) as failure:
            await put(running, root, bomb, compression=compression, **bounds)
        assert failure.value.code == "LIMIT_EXCEEDED"
    for broken in (pack(plain)[: len(pack(plain)) // 2], b"nothing of the kind"):
        with pytest.raises(RoostError) as failure:
            await put(running, root, broken, compression=compression)
        assert failure.value.code == "VALIDATION_FAILED"


async def test_what_goes_out_comes_in(running: AgentClient, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    entries = [
        entry("f", "data", mode=0o4711, pax_headers={"SCHILY.xattr.user.note": "hi"}),
        link("same", "f", hard=True),
        link("soft", "f"),
        entry("pipe", type=b"6"),
        directory("empty", 0o700),
        entry("etc/hosts", "ours"),
        entry("etc/other", "kept"),
    ]
    await put(running, one, entries)
    for name in ("run/lock", ".roost"):
        (one / name).mkdir(parents=True)
        (one / name / "ours").write_text("ours")
    packed = b"".join([piece async for piece in running.tar_out(bytes(one), layer=True)])
    await put(running, other, packed)
    assert stat.S_ISFIFO((other / "pipe").stat().st_mode)
    (other / "pipe").unlink()
    assert listed(other) == [
        "empty/",
        "etc/",
        "etc/other=kept",
        "f=data",
        "same=data",
        "soft -> f",
    ]
    assert (other / "f").stat().st_mode & 0o7777 == 0o4711
    assert (other / "f").stat().st_nlink == 2
    assert (other / "empty").stat().st_mode & 0o7777 == 0o700
    assert os.listxattr(other / "f") == os.listxattr(one / "f")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[AgentClient]:
    with process.running(tmp_path / "agent") as agent:
        client = AgentClient(agent.target, process.TOKEN)
        try:
            await client.wait_ready(60)
            yield client
        finally:
            await client.close()
