"""A directory as a tar: all that is in it and nothing that links in it lead to."""

from __future__ import annotations

import os
import socket
import tarfile
from pathlib import Path

import pytest

from roost.errors import CapacityError
from roost.storage import packing


def unpacked(tree: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(tree) as tar:
        return {each.name: each for each in tar.getmembers()}


def test_what_is_in_it_and_nothing_that_a_link_leads_to(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("the host's")
    home = tmp_path / "home"
    (home / "a" / "deep").mkdir(parents=True)
    (home / "a" / "deep" / "file").write_bytes(b"x" * 3_000_000)
    (home / "run.sh").write_text("#!/bin/sh\n")
    (home / "run.sh").chmod(0o4755)
    (home / "link").symlink_to(outside / "canary")
    (home / "way").symlink_to(outside)
    os.mkfifo(home / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(home / "socket"))
    (home / os.fsdecode(b"not \xff utf-8")).write_text("kept")

    packing.pack(home, tmp_path / "tree.tar", 1 << 30)
    found = unpacked(tmp_path / "tree.tar")
    odd = os.fsdecode(b"not \xff utf-8")
    assert set(found) == {"a", "a/deep", "a/deep/file", "run.sh", "link", "way", odd}
    assert found["a/deep/file"].size == 3_000_000
    assert found["link"].issym()
    assert found["way"].issym()
    assert found["run.sh"].mode == 0o755  # not setuid: who unpacks it is root of another machine
    assert {(each.uid, each.gid) for each in found.values()} == {(0, 0)}
    assert (tmp_path / "tree.tar").stat().st_mode & 0o777 == 0o600
    assert b"the host's" not in (tmp_path / "tree.tar").read_bytes()


def test_one_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").write_text("x")

    def full(*_: object) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="no space"):
        packing.pack(home, tmp_path / "tree.tar", 1 << 30)
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


async def test_it_is_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "tree.tar").write_bytes(b"y" * 2_500_000)
    found = [piece async for piece in packing.pieces(tmp_path / "tree.tar")]
    assert len(found) == 3
    assert b"".join(found) == b"y" * 2_500_000


@pytest.mark.parametrize("names", [["holes"], [f"{number}" for number in range(99)]])
def test_more_than_there_is_room_for_is_not_written(tmp_path: Path, names: list[str]) -> None:
    """A file of holes takes no room where it lies and all of it in a tar; so do names."""
    home, tree = tmp_path / "home", tmp_path / "tree.tar"
    home.mkdir()
    for name in names:
        (home / name).touch()
    os.truncate(home / names[0], 0 if len(names) > 1 else 1 << 40)
    with pytest.raises(CapacityError) as caught:
        packing.pack(home, tree, 32 << 10)
    assert caught.value.code == "MACHINE_DISK_FULL"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["home"]
