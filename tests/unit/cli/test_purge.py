from __future__ import annotations

from pathlib import Path

import pytest

from roost import ConflictError
from roost.purge import holders, mounts_below, remove_directory


def test_only_what_is_ours_is_deleted(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("")
    with pytest.raises(ConflictError, match="does not look like Roost's"):
        remove_directory(tmp_path / "photos", said.append)
    assert (tmp_path / "photos/cat.jpg").exists()
    data = tmp_path / "data"
    (data / "logs").mkdir(parents=True)
    (data / "roost.db").write_text("")
    remove_directory(data, said.append)
    assert not data.exists()
    remove_directory(data, said.append)
    assert said == [f"removed {data}"]


def test_a_linked_directory_is_removed_with_its_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/key").write_text("")
    (tmp_path / "link").symlink_to("real")
    remove_directory(tmp_path / "link", lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_mounts_are_seen() -> None:
    assert "/proc" in mounts_below(Path("/"), "self") or mounts_below(Path("/proc"))
    assert mounts_below(Path("/nowhere/at/all")) == []
    assert holders(Path("/nowhere/at/all")) == []
