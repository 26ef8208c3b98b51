from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.storage.interface import Image
from roost.templates.build import Builder
from roost.templates.progress import PackagesProgress
from roost.templates.tree import settle

EPOCH = 1_700_000_000


def _tree(root: Path, when: int) -> Path:
    (root / "etc").mkdir(parents=True)
    (root / "etc/motd").write_text("hello\n")
    (root / "bin").symlink_to("usr/bin")
    os.utime(root / "etc/motd", (when, when))
    return root


def test_the_same_content_has_the_same_digest_whenever_it_was_made(tmp_path: Path) -> None:
    early, late = EPOCH + 5, EPOCH + 50_000
    one = settle(_tree(tmp_path / "1", early), EPOCH)
    assert one == settle(_tree(tmp_path / "2", late), EPOCH)
    assert (tmp_path / "1/etc/motd").stat().st_mtime == EPOCH


def test_the_digest_tells_content_mode_owner_and_link_apart(tmp_path: Path) -> None:
    seen = set()
    for number, change in enumerate(
        (
            lambda r: None,
            lambda r: (r / "etc/motd").write_text("hullo\n"),
            lambda r: os.chmod(r / "etc/motd", 0o4755),
            lambda r: ((r / "bin").unlink(), (r / "bin").symlink_to("bin")),
            lambda r: (r / "etc/empty").mkdir(),
        )
    ):
        root = _tree(tmp_path / str(number), EPOCH)
        change(root)
        seen.add(settle(root, EPOCH))
    assert len(seen) == 5


def test_progress_only_goes_up_and_says_what_happens() -> None:
    told: list[tuple[str, int | None, str]] = []
    progress = PackagesProgress(lambda *event: told.append(event))
    for line in (
        "I: running apt-get update...",
        "I: downloading packages with apt...",
        "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
        "Get:1 http://m.example/debian bookworm/main a 1 [1 kB]",
        "Get:2 http://m.example/debian bookworm/main b 1 [1 kB]",
        "Setting up a (1) ...",
        "Setting up b (1) ...",
        "I: installing remaining packages inside the chroot...",
        "0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.",
        "Unpacking c (1) ...",
        "Setting up c (1) ...",
        "I: cleaning package lists and apt cache...",
    ):
        progress.line(line)
    percents = [percent or 0 for _, percent, _ in told]
    assert percents == sorted(percents)
    assert percents[0] == 2
    assert percents[-1] <= 80
    assert told[-1][2] == "cleaning up"


async def test_what_the_host_does_not_mount_is_nobodys_who_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same content, built by one tenant in a microVM, is no image of another's containers."""
    builder = Builder(None, None, SimpleNamespace(digest="sha256:agent"))  # type: ignore[arg-type]
    named: list[str] = []
    monkeypatch.setattr(builder, "_sealed", lambda layer, name, manifest: named.append(name))
    for raw_written, imported in ((False, False), (True, False), (False, True)):
        layer = Image("sha256:layer", tmp_path, 1, 1, raw_written, imported, None)
        await builder.seal(layer, "sha256:content", {})
    assert named[0] not in named[1:]
