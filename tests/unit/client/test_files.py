from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost import AsyncClient, AsyncMachine, Client, FileInfo, InvalidRequestError, Machine

from .stub import MACHINE_ID, Answer, Request, Stub, sse, wire

FILES = f"/v1/machines/{MACHINE_ID}/files"


def info(path: str = "/root/a", kind: str = "file", size: int = 1) -> dict[str, Any]:
    return {
        "path": path,
        "name": path.rsplit("/", 1)[-1],
        "kind": kind,
        "size": size,
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "owner": "root",
        "group": "root",
        "mtime": "2026-11-21T01:00:00.000Z",
    }


@pytest.fixture
def m(stub: Stub, client: Client) -> Machine:
    stub.on("PUT", FILES, lambda r: info(size=len(r.body)))
    return Machine.get(MACHINE_ID, client=client)


def test_what_can_be_written(stub: Stub, m: Machine, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"file")
    with open(tmp_path / "f", "rb") as opened:
        opened.read(1)
        for data, sent in (
            (b"bytes", b"bytes"),
            (bytearray(b"array"), b"array"),
            (memoryview(b"view"), b"view"),
            ("täxt", "täxt".encode()),
            (tmp_path / "f", b"file"),
            (opened, b"ile"),
            (io.BytesIO(b"io"), b"io"),
            (iter([b"a", b"b"]), b"ab"),
            (b"", b""),
        ):
            m.files.write("/root/a", data)
            assert stub.seen[-1].body == sent
    written = m.files.write("/root/a", b"x", mode=0o755, owner="user", create_new=True, sync=True)
    assert isinstance(written, FileInfo)
    assert stub.seen[-1].query == {
        "path": "/root/a",
        "mode": "0755",
        "owner": "user",
        "create_new": "true",
        "sync": "true",
    }
    m.files.append("/root/a", b"x")
    assert stub.seen[-1].query == {"path": "/root/a", "append": "true"}
    m.files.write(b"/root/\xff", b"x")
    assert stub.seen[-1].query == {"path_b64": "L3Jvb3Qv/w=="}
    with pytest.raises(TypeError, match="binary"):
        m.files.write("/a", io.StringIO("text"))  # type: ignore[arg-type]


def test_large_local_files_are_streamed_with_their_length(
    stub: Stub, m: Machine, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(bytes(3 << 20))
    m.files.write("/root/big", tmp_path / "big")
    assert stub.seen[-1].headers["content-length"] == str(3 << 20)
    assert "transfer-encoding" not in stub.seen[-1].headers


def test_reading_a_range(stub: Stub, m: Machine) -> None:
    stub.on("GET", FILES, lambda _: Answer(b"data", 206))
    assert m.files.read("/a", offset=5) == b"data"
    assert stub.seen[-1].headers["range"] == "bytes=5-"
    m.files.read("/a", offset=5, length=10)
    assert stub.seen[-1].headers["range"] == "bytes=5-14"
    assert b"".join(m.files.read_stream("/a")) == b"data"
    assert m.files.read_text("/a") == "data"
    stub.on("GET", FILES, lambda _: Answer(wire("RANGE_NOT_SATISFIABLE"), 416))
    assert m.files.read("/a", offset=99) == b""


def test_exists_is_only_about_the_file(stub: Stub, m: Machine) -> None:
    stub.on("GET", f"{FILES}/stat", lambda _: Answer(wire("FILE_NOT_FOUND"), 404))
    assert not m.files.exists("/a")
    stub.on("GET", f"{FILES}/stat", lambda _: Answer(wire("MACHINE_NOT_FOUND"), 404))
    with pytest.raises(Exception, match="no"):
        m.files.exists("/a")


def test_move_names_both_sides(stub: Stub, m: Machine) -> None:
    stub.on("POST", f"{FILES}/move", lambda _: info())
    m.files.move(b"/\xff", "/b", overwrite=True)
    assert stub.seen[-1].json == {"source_b64": "L/8=", "destination": "/b", "overwrite": True}


def test_watch(stub: Stub, m: Machine) -> None:
    stub.on(
        "GET",
        f"{FILES}/watch",
        lambda _: iter(
            [sse("ready", {"path": "/w"}), sse("moved", {"path": "/w/a", "new_path": "/w/b"})]
        ),
    )
    events = list(m.files.watch("/w"))
    assert [(e.kind, e.path, e.new_path) for e in events] == [
        ("ready", "/w", None),
        ("moved", "/w/a", "/w/b"),
    ]


def make_tree(root: Path) -> None:
    (root / "sub/deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "sub/run.sh").write_text("#!/bin/sh\n")
    (root / "sub/run.sh").chmod(0o755)
    (root / "sub/deep/data").write_bytes(bytes(range(256)) * 40)
    (root / "sub/up").symlink_to("../top")
    (root / "top").write_text("top")
    (root / ("n" * 150)).write_text("long")


def test_trees_go_up_and_come_down_whole(stub: Stub, m: Machine, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    make_tree(source)
    kept: dict[str, bytes] = {}

    def keep(request: Request) -> dict[str, int]:
        kept["tar"] = request.body
        with tarfile.open(fileobj=io.BytesIO(request.body)) as tar:
            return {"entries": len(tar.getmembers()), "bytes": 0}

    stub.on("POST", f"{FILES}/mkdir", lambda _: info("/w", "directory"))
    stub.on("PUT", f"{FILES}/tar", keep)
    stub.on("GET", f"{FILES}/stat", lambda _: info("/w", "directory"))
    stub.on("GET", f"{FILES}/tar", lambda _: Answer(kept["tar"]))
    moved: list[int] = []
    m.files.upload(source, "/w", progress=moved.append)
    assert sum(moved) == len(kept["tar"])
    done = m.files.download("/w", target)
    assert done.skipped == []
    assert _listing(source) == _listing(target)
    assert (target / "sub/run.sh").stat().st_mode & 0o777 == 0o755
    assert (target / "sub/up").readlink() == Path("../top")


def _listing(root: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")
    }


def test_a_broken_download_leaves_the_old_file(stub: Stub, m: Machine, tmp_path: Path) -> None:
    from .stub import BREAK

    stub.on("GET", f"{FILES}/stat", lambda _: info())
    stub.on("GET", FILES, lambda _: iter([b"half", BREAK]))
    (tmp_path / "f").write_text("old")
    with pytest.raises(Exception, match="broke"):
        m.files.download("/root/a", tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_hostile_tree_stops_the_download(stub: Stub, m: Machine, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    stub.on("GET", f"{FILES}/stat", lambda _: info("/w", "directory"))
    stub.on("GET", f"{FILES}/tar", lambda _: Answer(buffer.getvalue()))
    with pytest.raises(InvalidRequestError, match="not safe"):
        m.files.download("/w", tmp_path / "t")
    assert not (tmp_path / "escaped").exists()


async def test_the_async_half(stub: Stub, tmp_path: Path) -> None:
    stub.on("PUT", FILES, lambda r: info(size=len(r.body)))
    stub.on("GET", f"{FILES}/stat", lambda _: info())
    stub.on("GET", FILES, lambda _: Answer(b"data"))

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async with AsyncClient() as client:
        m = await AsyncMachine.get(MACHINE_ID, client=client)
        for data in (pieces(), iter([b"a", b"b"]), io.BytesIO(b"ab"), "ab"):
            await m.files.write("/a", data)
            assert stub.seen[-1].body == b"ab"
        await m.files.download("/a", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"data"
