"""A directory as a tar: all that is in it and nothing that links in it lead to."""

from __future__ import annotations

import os
import socket
import tarfile
from pathlib import Path

import pytest

from roost.errors import CapacityError, InvalidRequestError
from roost.storage import packing

MOST = 1 << 30


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

    packing.pack(home, tmp_path / "tree.tar", MOST)
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
        packing.pack(home, tmp_path / "tree.tar", MOST)
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


def test_one_that_is_more_than_fits_is_told_before_it_fills_the_pool(tmp_path: Path) -> None:
    """A hole costs whoever makes it nothing."""
    home = tmp_path / "home"
    home.mkdir()
    with (home / "hole").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CapacityError) as caught:
        packing.pack(home, tmp_path / "tree.tar", MOST)
    assert caught.value.code == "MACHINE_DISK_FULL"
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    (home / "hole").unlink()
    for name in range(100):
        (home / str(name)).mkdir()
    with pytest.raises(CapacityError):
        packing.pack(home, tmp_path / "tree.tar", 50 * 512)


def test_what_is_somebody_elses_is_not_packed(tmp_path: Path) -> None:
    """A link that a program made to another's file, say."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("mine")
    (home / "roots").write_text("secret")
    for path in (home, home / "mine"):
        os.chown(path, 65534, 65534)
    packing.pack(home, tmp_path / "tree.tar", MOST)
    assert set(unpacked(tmp_path / "tree.tar")) == {"mine"}
    assert b"secret" not in (tmp_path / "tree.tar").read_bytes()


def test_a_tree_takes_no_more_descriptors_than_there_are(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    held = os.open(home, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=held)
        below = os.open("d", os.O_RDONLY, dir_fd=held)
        os.close(held)
        held = below
    os.close(held)
    with pytest.raises(InvalidRequestError, match="too deep"):
        packing.pack(home, tmp_path / "tree.tar", MOST)


async def test_it_is_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "tree.tar").write_bytes(b"y" * 2_500_000)
    found = [piece async for piece in packing.pieces(tmp_path / "tree.tar")]
    assert len(found) == 3
    assert b"".join(found) == b"y" * 2_500_000
