from __future__ import annotations

from pathlib import Path

import pytest

from roost.storage import disks
from roost.storage.disks import DiskInfo

INFO = DiskInfo("sha256:aa", 10, False, False, "sha256:bb", True)


def test_what_is_known_of_a_disk_survives(tmp_path: Path) -> None:
    disk = tmp_path / "m1.ext4"
    assert disks.read(disk) is None
    disks.write(disk, INFO)
    assert disks.read(disk) == INFO
    disks.mark_used(disk)
    assert disks.read(disk) == DiskInfo("sha256:aa", 10, False, False, "sha256:bb", False)


def test_raw_writing_is_never_forgotten(tmp_path: Path) -> None:
    disk = tmp_path / "m1.ext4"
    disks.write(disk, INFO)
    disks.mark_used(disk, raw_written=True)
    disks.mark_used(disk)
    found = disks.read(disk)
    assert found is not None
    assert found.raw_written


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": 1}', '{"format": 9}'])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, text: str) -> None:
    disk = tmp_path / "m1.ext4"
    disk.with_suffix(".json").write_text(text)
    assert disks.read(disk) is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-rf", "a\n", "x" * 129, "a\0"])
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        disks.check_id(name)
