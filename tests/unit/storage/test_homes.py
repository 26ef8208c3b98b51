"""Trees that somebody else writes in: copied, measured, removed; and the homes of machines that have no disk."""

from __future__ import annotations

import errno
import os
import re
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from roost.errors import InvalidRequestError, RoostError, UnsupportedError
from roost.host import syscalls
from roost.settings import Settings
from roost.storage import PoolStorage, trees
from roost.storage.interface import Holder
from tests.attack.record import case

SPECIFICATION = Path(__file__).parents[3] / "SPECIFICATION.md"
MANY = 5000
ME = (os.geteuid(), os.getegid())


def names(top: Path) -> set[str]:
    return {str(p.relative_to(top)) for p in top.rglob("*")}


def test_a_copy_has_files_directories_and_links(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_bytes(b"content")
    (source / "a/b/file").chmod(0o4751)
    os.utime(source / "a/b/file", (1, 2))
    os.link(source / "a/b/file", source / "a/other-name")
    (source / "out").symlink_to("/etc/passwd")
    (source / "loop").symlink_to("loop")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    with (source / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 27)
        sparse.seek(1 << 26)
        sparse.write(b"middle")
    trees.copy(source, tmp_path / "copy", ME)
    copy = tmp_path / "copy"
    assert names(copy) == {"a", "a/b", "a/b/file", "a/other-name", "out", "loop", "sparse"}
    info = (copy / "a/b/file").stat()
    assert (info.st_mode & 0o7777, info.st_mtime) == (0o751, 2), "and is nobody's way to be another"
    assert info.st_ino == (copy / "a/other-name").stat().st_ino
    assert os.readlink(copy / "out") == "/etc/passwd"
    assert (copy / "sparse").stat().st_size == 1 << 27
    assert trees.allocated(copy) < 1 << 20
    assert (copy / "sparse").read_bytes()[1 << 26 :][:6] == b"middle"
    (copy / "a/b/file").write_bytes(b"its own")
    assert (source / "a/b/file").read_bytes() == b"content"


def test_what_is_somebody_elses_is_not_copied(tmp_path: Path) -> None:
    """A link that a program made to another's file, say."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    source = tmp_path / "source"
    source.mkdir()
    (source / "mine").write_text("mine")
    (source / "roots").write_text("secret")
    for path in (source, source / "mine"):
        os.chown(path, 1234, 1234)
    trees.copy(source, tmp_path / "copy", (1234, 1234))
    assert names(tmp_path / "copy") == {"mine"}
    assert (tmp_path / "copy/mine").stat().st_uid == 1234


def test_a_tree_too_deep_is_not_copied_and_leaves_nothing(tmp_path: Path) -> None:
    deep(tmp_path / "source", 300)
    with pytest.raises(InvalidRequestError, match="too deep"):
        trees.copy(tmp_path / "source", tmp_path / "copy", ME)
    assert not (tmp_path / "copy").exists()


def test_how_deep_a_tree_may_be_is_as_the_specification_says(tmp_path: Path) -> None:
    said = re.search(r"deeper than (\d+) levels", SPECIFICATION.read_text())
    assert said is not None
    most = int(said[1])
    deep(tmp_path / "deepest", most)
    trees.copy(tmp_path / "deepest", tmp_path / "copy", ME, durable=False)
    at = tmp_path / "copy"
    assert sum(len(names) for _, names, _, _ in os.fwalk(at)) == most
    deep(tmp_path / "deeper", most + 1)
    with pytest.raises(InvalidRequestError, match="too deep"):
        trees.copy(tmp_path / "deeper", tmp_path / "second", ME, durable=False)
    for each in ("deepest", "copy", "deeper"):
        trees.remove(tmp_path / each)


def test_any_tree_can_be_removed(tmp_path: Path) -> None:
    deep(tmp_path / "tree", 450)
    (tmp_path / "tree/forbidden").mkdir(mode=0)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "tree/link").symlink_to("../kept")
    (tmp_path / "tree/above").symlink_to("..")
    for _ in range(2):
        trees.remove(tmp_path / "tree")
        assert names(tmp_path) == {"kept"}
    trees.remove(tmp_path / "not/there")


def test_a_directory_of_many_names_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard links are names without end: they cost no blocks of their own."""
    top = tmp_path / "tree"
    top.mkdir()
    (top / "file").write_text("x")
    name = "n" * 200
    for index in range(MANY):
        os.link(top / "file", top / f"{name}{index}")
    monkeypatch.setattr(trees, "_BATCH", 100)
    for work in (
        lambda: trees.allocated(top),
        lambda: trees.copy(top, tmp_path / "copy", ME, durable=False),
        lambda: trees.remove(top),
    ):
        tracemalloc.start()
        work()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < MANY * len(name) // 3
    assert len(os.listdir(tmp_path / "copy")) == MANY + 1 and not top.exists()


def deep(top: Path, levels: int) -> None:
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)


@pytest.fixture
async def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PoolStorage:
    """Of a daemon that may mount nothing, wherever this runs."""
    tmp_path.chmod(0o700)
    made = PoolStorage(Settings(data_dir=tmp_path / "data", pool_reserve_percent=0))
    with monkeypatch.context() as patched:
        patched.setattr("roost.storage.pool.files.can_reflink", lambda _: False)
        patched.setattr("roost.storage.pool.os.geteuid", lambda: 1000)
        await made.open()
    return made


async def test_homes_are_made_kept_in_snapshots_and_cloned(storage: PoolStorage) -> None:
    assert (await storage.usage()).kind == "directory"
    home = await storage.make_home("one")
    assert home == storage.home("one") and home.stat().st_mode & 0o777 == 0o700
    owner = home.stat().st_uid
    assert owner == (os.geteuid() or 65534)
    (home / "file").write_text("before")
    os.chown(home / "file", owner, -1)
    await storage.begin_snapshot("s")
    await storage.copy_disk("one", "s")
    assert await storage.seal_snapshot("s", "one") > 0
    (home / "file").write_text("after")
    for machine_id in ("two", "one"):
        await storage.clone_snapshot("s", machine_id)
        await storage.sync_disk(machine_id)
        assert (storage.home(machine_id) / "file").read_text() == "before"
        assert (storage.home(machine_id) / "file").stat().st_uid == owner
    assert await storage.list_disks() == {"one", "two"}
    with pytest.raises(UnsupportedError):
        await storage.copy_out_snapshot("s")
    for machine_id in ("one", "two", "two"):
        await storage.delete(machine_id)
    await storage.delete_snapshot("s")
    assert not await storage.list_disks() and not await storage.list_snapshots()
    assert not list(storage.tmp.iterdir())


@case("F3", rung="workspace")
async def test_a_snapshot_is_on_the_disk_before_it_is_told(
    storage: PoolStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the answer finds all of it: its file system was synced when nothing of the copy was written
    any more, and the directories that name it after that."""
    home = await storage.make_home("one")
    (home / "a").mkdir()
    (home / "a/file").write_bytes(os.urandom(1 << 20))
    for path in (home, home / "a", home / "a/file"):
        os.chown(path, home.stat().st_uid, -1)
    synced: list[tuple[int, int] | None] = []  # None: the whole file system
    changed: list[dict[str, int]] = []
    whole, one = syscalls.syncfs, os.fsync

    def times() -> dict[str, int]:
        at = storage.snapshot("s").home
        return {str(path): path.stat().st_ctime_ns for path in (at, *at.rglob("*"))}

    def syncfs(fd: int) -> None:
        whole(fd)
        assert os.fstat(fd).st_dev == home.stat().st_dev
        synced.append(None)
        changed.append(times())

    def fsync(fd: int) -> None:
        one(fd)
        found = os.fstat(fd)
        synced.append((found.st_dev, found.st_ino))

    monkeypatch.setattr(syscalls, "syncfs", syncfs)
    monkeypatch.setattr(os, "fsync", fsync)
    kept = await storage.begin_snapshot("s")
    await storage.copy_disk("one", "s")
    await storage.seal_snapshot("s", "one")
    assert (kept.home / "a/file").read_bytes() == (home / "a/file").read_bytes()
    assert changed == [times()]
    after = synced[synced.index(None) :]
    for path in (kept.directory, kept.directory.parent):
        assert (path.stat().st_dev, path.stat().st_ino) in after, path


async def test_a_home_can_be_reached_by_its_account_alone(storage: PoolStorage) -> None:
    if os.geteuid() != 0:
        pytest.skip("it is the daemon's own then")
    home = await storage.make_home("one")
    modes = {path: path.stat().st_mode & 0o777 for path in (home, *list(home.parents)[:3])}
    assert list(modes.values()) == [0o700, 0o711, 0o711, 0o711]
    assert (storage.pool.snapshots.stat().st_mode & 0o777) == 0o700


async def test_one_that_forbids_itself_to_be_looked_at_keeps_no_other_unmeasured(
    storage: PoolStorage,
) -> None:
    """Of a daemon that is not root; here whoever looks is made such a user."""
    for machine_id in ("closed", "open"):
        await storage.make_home(machine_id)
        (storage.home(machine_id) / "file").write_bytes(b"x" * 10_000)
    families = [[Holder(each, is_snapshot=False) for each in ("closed", "open")]]
    before = await storage.shares(families, ())
    assert before["closed"] >= 10_000

    real = os.open

    def refusing(path: str, *arguments: Any, **named: Any) -> int:
        if path == str(storage.home("closed")):
            raise PermissionError(errno.EACCES, "forbidden", path)
        return real(path, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roost.storage.trees.os.open", refusing)
        assert await storage.shares(families, ()) == before | {"closed": 0}


async def test_never_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.host.account.os.geteuid", lambda: 0)
    for name in ("root", "nobody-of-this-name"):
        storage = PoolStorage(Settings(data_dir=tmp_path, workspace_user=name))
        with pytest.raises(RoostError) as refused:
            await storage.make_home("one")
        assert refused.value.code == "UNSUPPORTED" and name in refused.value.message
