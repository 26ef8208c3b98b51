from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from roost.errors import InternalError
from roost.storage import disks, volumes

needs_mke2fs = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="no e2fsprogs")


def ask(path: Path, what: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", what, path], capture_output=True, text=True, check=False
    )
    return done.stdout


@needs_mke2fs
def test_one_is_empty_sparse_everybodys_and_trusted(tmp_path: Path) -> None:
    path = tmp_path / "v1.ext4"
    volumes.make(path, 3)
    assert path.stat().st_size == 3 << 30
    assert path.stat().st_blocks * 512 < 64 << 20
    assert ask(path, "ls -l /").count("(2)") == 2, "itself and the one above"
    assert "Mode:  01777" in ask(path, "stat /")
    info = disks.read(path)
    assert info is not None
    assert (info.raw_written, info.imported, info.storage_gib) == (False, False, 3)
    assert volumes.list_ids(tmp_path) == {"v1"}
    checked = subprocess.run(["e2fsck", "-fn", path], capture_output=True, check=False)
    assert checked.returncode == 0
    assert not volumes.needs_recovery(path)


@needs_mke2fs
def test_whether_it_was_unmounted_is_read_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "v1.ext4"
    volumes.make(path, 1)
    subprocess.run(
        ["debugfs", "-w", "-R", "feature needs_recovery", path], capture_output=True, check=True
    )
    assert volumes.needs_recovery(path)


def test_what_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise TimeoutError("it hangs")

    monkeypatch.setattr(volumes.run, "run", fails)
    with pytest.raises(InternalError):
        volumes.make(tmp_path / "v1.ext4", 1)
    assert list(tmp_path.iterdir()) == []
