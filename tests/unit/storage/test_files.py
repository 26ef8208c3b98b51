from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from roost.errors import CapacityError
from roost.host import files
from roost.storage import pool as pools
from roost.storage.pool import Pool


def test_json_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("pool_free", "backing_free", "what"), [(4, 100, "pool"), (100, 4, "backing"), (100, 100, None)]
)
def test_both_watermarks_hold(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool_free: int,
    backing_free: int,
    what: str | None,
) -> None:
    pool = Pool(tmp_path, 2, 5.0)
    pool.kind = "xfs-loop"
    frees = {pool.root: pool_free << 20, tmp_path: backing_free << 20}
    monkeypatch.setattr(pools, "_space", lambda path: (100 << 20, frees[path]))
    if what is None:
        pool.require(1 << 20)
        return
    with pytest.raises(CapacityError) as caught:
        pool.require(1 << 20)
    assert caught.value.code == "STORAGE_FULL"
    assert caught.value.details["what"] == what


def test_what_cannot_be_swept_does_not_keep_a_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a program that outlived its workspace and writes on in what was its directory, say."""

    def refilled(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    pool = Pool(tmp_path, 2, 5.0)
    left = pool.tmp / "home-1"
    left.mkdir(parents=True)
    monkeypatch.setattr(pools.files, "can_reflink", lambda _: True)
    monkeypatch.setattr(pools.trees, "remove", refilled)
    pool.open()
    assert left.exists()
    monkeypatch.undo()
    monkeypatch.setattr(pools.files, "can_reflink", lambda _: True)
    pool.open()
    assert not left.exists()


def test_a_file_is_written_anew_with_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    mib = 1 << 20
    with source.open("wb") as file:
        file.truncate(40 * mib)
        for at, size in ((0, 5), (3 * mib, 4096), (3 * mib + 8192, 4096), (20 * mib, 3 * mib + 17)):
            os.pwrite(file.fileno(), os.urandom(size), at)
    files.rewrite(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 8 * mib
    with pytest.raises(FileExistsError):
        files.rewrite(source, target)
    empty = tmp_path / "empty"
    empty.touch()
    files.rewrite(empty, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b""
