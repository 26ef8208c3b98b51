"""What drivers see to where volumes change hands."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.drivers import container
from roost.drivers.interface import Root, Size, StartSpec, Volume
from roost.drivers.qemu import launch, options
from roost.errors import InternalError
from roost.host import ending
from roost.storage import disks, mounting


def test_no_guest_writes_what_the_host_still_has_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container that read it last is gone, its mount not yet."""
    image, books = tmp_path / "v.ext4", tmp_path / "b.ext4"
    disks.write(image, disks.DiskInfo("volume", 1, False, False, None, fresh=True))
    books.write_bytes(bytes(4096))
    asked: list[Path] = []

    def mounted(disk: Path) -> None:
        asked.append(disk)
        raise InternalError("in use", retryable=True)

    monkeypatch.setattr(mounting, "wait_free", mounted)
    unused: Any = None
    plan = launch.Plan(
        spec=StartSpec(
            "m",
            "host",
            Size(1.0, 64, 1),
            Root(tmp_path / "root.ext4"),
            None,
            "token",
            "0" * 32,
            volumes=(Volume(books, "/books", True), Volume(image, "/data", False)),
        ),
        place=launch.Place(tmp_path / "place"),
        uid=1,
        runtime=unused,
        guest=unused,
        start=options.Boot("line"),
        snapshot=None,
        accel=options.Accel.TCG,
        cpu=options.Cpu(),
    )
    with pytest.raises(InternalError):
        launch.launch(plan)
    assert asked == [image], "what is only read may be read by others"
    info = disks.read(image)
    assert info is not None and not info.raw_written


def test_a_machines_directory_does_not_go_with_a_volume_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its root is gone already, as after a removal that came half way."""
    monkeypatch.setattr(ending, "end_group", lambda *_: None)
    kept = tmp_path / "volumes" / "0" / "kept"
    kept.parent.mkdir(parents=True)
    kept.touch()
    driver: Any = SimpleNamespace(
        _directory=lambda _: tmp_path,
        _group=lambda _: "group",
        cgroups=SimpleNamespace(remove=lambda _: None),
    )
    with pytest.raises(OSError, match="not empty"):
        container.ContainerDriver._remove(driver, "m", None)
    assert kept.exists()
