"""Archives sent ahead: several of them are one context."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.clock import FakeClock, SystemClock
from roost.errors import RoostError
from roost.services import build_files
from roost.services.build_files import PASS_S, BuildFiles
from roost.templates.context import Context


async def _room(size: int) -> None:
    pass


def made(path: Path, clock: FakeClock | SystemClock | None = None) -> BuildFiles:
    return BuildFiles(path, b"secret", clock or SystemClock(), 1 << 20, _room)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_archives_are_put_side_by_side(tmp_path: Path) -> None:
    files = made(tmp_path / "files")
    long = "d/" * 90 + "x" * 120  # beyond a plain header
    one = archive(
        (member("a.txt"), b"1" * 700),
        (member("link", tarfile.SYMTYPE, "a.txt"), b""),
        (member(long), b"deep"),
    )
    await files.put("t", "a" * 64, once(one))
    await files.put("t", "b" * 64, once(archive((member("a.txt"), b"other"))))
    places = {
        name: await files.path("t", digest * 64) for name, digest in (("s0", "a"), ("s1", "b"))
    }
    whole = tmp_path / "context.tar"
    whole.write_bytes(b"".join([piece async for piece in files.context(places)]))
    found = Context.read(whole)
    assert found.text("s0/a.txt", 1000) == "1" * 700 and found.text("s1/a.txt", 1000) == "other"
    assert found.text(f"s0/{long}", 1000) == "deep"
    assert found.entries["s0/link"].target == "a.txt" and found.entries["s0/a.txt"].mode == 0o755


async def test_they_are_a_tenants_own_and_go_after_a_day(tmp_path: Path) -> None:
    files = made(tmp_path)
    await files.put("t", "a" * 64, once(archive((member("a"), b"1"))))
    assert await files.has("t", "a" * 64) and not await files.has("other", "a" * 64)
    with pytest.raises(RoostError, match="send them again"):
        await files.path("other", "a" * 64)
    await files.tidy()
    assert await files.has("t", "a" * 64)
    old = time.time() - 90_000
    os.utime(next(tmp_path.glob("*/*")), (old, old))
    await files.tidy()
    assert not await files.has("t", "a" * 64)


async def test_a_pass_is_good_for_an_hour_and_one_archive() -> None:
    clock = FakeClock()
    files = made(Path("/nowhere"), clock)
    said = files.pass_of("t-1", "a" * 64)
    assert files.read_pass(said) == ("t-1", "a" * 64)
    with pytest.raises(RoostError):
        files.read_pass(said.replace("a" * 64, "b" * 64))
    with pytest.raises(RoostError):
        BuildFiles(Path("/nowhere"), b"other", clock, 1, _room).read_pass(said)
    await clock.advance(PASS_S + 1)
    with pytest.raises(RoostError, match="for an hour"):
        files.read_pass(said)


async def test_several_that_come_at_once_have_the_room_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_files, "_STEP", 64 << 10)
    files = made(tmp_path)
    await files.put("t", "a" * 64, once(archive((member("a"), b"1"))))
    place = next(tmp_path.glob("*"))

    async def slowly(data: bytes) -> AsyncIterator[bytes]:
        yield data[: 128 << 10]
        for number in range(11):  # meanwhile
            (place / f"{number}.draft").write_bytes(bytes(1 << 20))
        yield data[128 << 10 :]

    with pytest.raises(RoostError) as found:
        await files.put("t", "b" * 64, slowly(archive((member("a"), bytes(512 << 10)))))
    assert found.value.code == "LIMIT_EXCEEDED" and not await files.has("t", "b" * 64)


async def test_they_are_counted_while_they_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_files, "FILES", 2)  # with the draft
    files = made(tmp_path)
    await files.put("t", "a" * 64, once(archive((member("a"), b"1"))))
    (next(tmp_path.glob("*")) / "gone").symlink_to("nowhere")  # as a draft that is no more
    await files.put("t", "b" * 64, once(archive((member("a"), b"1"))))
    with pytest.raises(RoostError, match="Too many files"):
        await files.put("t", "c" * 64, once(archive((member("a"), b"1"))))
