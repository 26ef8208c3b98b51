"""Writing into a hostile tree: nothing outside it changes, whatever lies at the path."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from roost.drivers import tree
from roost.host.safefs import Tree
from tests.attack.record import case

DATA = b"agent"


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """A machine's root, and a canary outside it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "etc").mkdir(parents=True)
    outside.mkdir()
    (outside / "canary").write_text("untouched")
    return root, outside


def _unchanged(outside: Path) -> bool:
    return [p.name for p in outside.iterdir()] == ["canary"] and (
        (outside / "canary").read_text() == "untouched"
    )


@case(22)
def test_a_link_at_the_name_is_replaced_not_followed(place: tuple[Path, Path]) -> None:
    root, outside = place
    (root / "etc/resolv.conf").symlink_to(outside / "canary")
    with Tree(root) as t:
        t.write("etc/resolv.conf", DATA, 0o644)
    assert not (root / "etc/resolv.conf").is_symlink()
    assert (root / "etc/resolv.conf").read_bytes() == DATA
    assert _unchanged(outside)


@case(22)
@pytest.mark.parametrize("target", ["outside", "/", "../outside", "self"])
def test_a_link_on_the_way_is_refused(place: tuple[Path, Path], target: str) -> None:
    root, outside = place
    (root / "etc").rmdir()
    (root / "etc").symlink_to({"outside": str(outside), "self": "."}.get(target, target))
    with Tree(root) as t, pytest.raises(OSError):
        t.write("etc/canary", DATA, 0o644)
    assert _unchanged(outside)


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_the_agents_directory_is_made_whatever_stands_there(
    place: tuple[Path, Path], kind: str, tmp_path: Path
) -> None:
    root, outside = place
    if kind == "link":
        (root / ".roost").symlink_to(outside)
    elif kind == "file":
        (root / ".roost").write_text("x")
    else:
        os.mkfifo(root / ".roost")
    binary = tmp_path / "agent"
    binary.write_bytes(DATA)
    agent = tree.AgentBinary(binary)
    with Tree(root) as t:
        assert tree.put_agent(t, agent)
        assert not tree.put_agent(t, agent)
    written = root / ".roost/agent"
    assert written.read_bytes() == DATA
    assert written.stat().st_mode & 0o7777 == 0o555
    assert _unchanged(outside)


def test_another_agent_of_the_same_size_is_replaced(
    place: tuple[Path, Path], tmp_path: Path
) -> None:
    root, _ = place
    (root / ".roost").mkdir()
    (root / ".roost/agent").write_bytes(b"AGENT")
    os.chmod(root / ".roost/agent", 0o555)
    os.utime(root / ".roost/agent", (1, 1))
    binary = tmp_path / "agent"
    binary.write_bytes(DATA)
    with Tree(root) as t:
        assert tree.put_agent(t, tree.AgentBinary(binary))
    assert (root / ".roost/agent").read_bytes() == DATA


def test_a_directory_at_the_name_is_put_aside(place: tuple[Path, Path]) -> None:
    root, _ = place
    (root / "etc/hosts/full").mkdir(parents=True)
    with Tree(root) as t:
        t.write("etc/hosts", DATA, 0o644)
    assert (root / "etc/hosts").read_bytes() == DATA


@case(23)
def test_reading_never_waits_nor_follows(place: tuple[Path, Path]) -> None:
    root, outside = place
    os.mkfifo(root / "etc/hosts")
    (root / "etc/link").symlink_to(outside / "canary")
    (root / "etc/large").write_bytes(bytes(100))
    with Tree(root) as t:
        assert t.read("etc/hosts", 10) is None
        assert t.read("etc/link", 10) is None
        assert t.read("etc/large", 10) is None
        assert t.read("etc/absent", 10) is None
        assert t.digest("etc/hosts", 0, 0o644) is None


def test_a_failed_write_leaves_the_old_file(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = place
    (root / "etc/hosts").write_text("old")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", refuse)
    with Tree(root) as t, pytest.raises(OSError):
        t.write("etc/hosts", DATA, 0o644)
    assert [p.name for p in (root / "etc").iterdir()] == ["hosts"]
    assert (root / "etc/hosts").read_text() == "old"


def test_our_files_are_written_as_far_as_the_tree_lets(
    place: tuple[Path, Path], tmp_path: Path
) -> None:
    root, outside = place
    (root / "etc/resolv.conf").symlink_to("../../outside/canary")
    binary = tmp_path / "agent"
    binary.write_bytes(DATA)
    agent = tree.AgentBinary(binary)
    for _ in range(2):
        assert _prepare(root, agent)
    assert (root / "etc/hostname").read_text() == "box\n"
    assert "nameserver 10.0.0.1" in (root / "etc/resolv.conf").read_text()
    assert (root / "etc/hosts").read_text().count("box") == 1
    (root / "etc/hosts").write_text("127.0.1.1\tbox\n10.1.1.1 mine\n")
    _prepare(root, agent, has_agent=True)
    assert "mine" in (root / "etc/hosts").read_text()
    assert _unchanged(outside)


def test_a_fresh_disk_is_given_its_identity_and_a_used_one_keeps_it(
    place: tuple[Path, Path], tmp_path: Path
) -> None:
    root, outside = place
    agent = tree.AgentBinary(tmp_path / "agent")
    own = root / "etc/machine-id"
    own.symlink_to("../../outside/canary")
    assert _prepare(root, agent, has_agent=True, linux_id="a" * 32)
    assert own.read_text() == "a" * 32 + "\n" and not own.is_symlink()
    assert _prepare(root, agent, has_agent=True)
    assert own.read_text() == "a" * 32 + "\n"
    (root / "etc/ssh").mkdir()
    assert _prepare(root, agent, has_agent=True, linux_id="b" * 32)
    (root / "etc/ssh/ssh_host_rsa_key").write_text("shared")
    assert not _prepare(root, agent, has_agent=True, linux_id="c" * 32)
    assert _prepare(root, agent, has_agent=True)
    assert _unchanged(outside)


def _prepare(
    root: Path, agent: tree.AgentBinary, has_agent: bool = False, linux_id: str | None = None
) -> bool:
    return tree.prepare(
        root,
        agent,
        has_agent=has_agent,
        hostname="box",
        linux_id=linux_id,
        nameserver="10.0.0.1",
        host_ca=False,
    )


def test_mount_points_are_everybodys_to_pass_and_inside(place: tuple[Path, Path]) -> None:
    root, outside = place
    (root / "out").symlink_to(outside)
    (root / "file").write_text("x")
    (root / "kept").mkdir(mode=0o700)
    before = os.umask(0o077)
    try:
        tree.make_mount_points(root, ["/a/b/c", "/out/x", "/file/x", "/kept/d"])
    finally:
        os.umask(before)
    for made in ("a", "a/b", "a/b/c", "kept/d"):
        assert (root / made).stat().st_mode & 0o7777 == 0o755
    assert (root / "kept").stat().st_mode & 0o7777 == 0o700, "it was there"
    assert (root / "file").read_text() == "x"
    assert _unchanged(outside)


def test_a_directory_of_more_names_than_honest_ones_have_is_not_read(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard links are names without end: they cost no blocks of their own."""
    root, _ = place
    for name in ("a", "b", "c"):
        (root / "etc" / name).touch()
    monkeypatch.setattr("roost.host.safefs._MOST_NAMES", 3)
    with Tree(root) as t:
        assert sorted(t.names("etc")) == ["a", "b", "c"]
        (root / "etc/d").touch()
        with pytest.raises(OSError, match="more than 3 entries"):
            t.names("etc")
        with pytest.raises(OSError):
            t.names("etc/a")
    agent = tree.AgentBinary(root / "etc/a")
    for name, done in (("d", False), ("a", True)):
        (root / "etc/ssh").mkdir(exist_ok=True)
        for each in "abcd"[: "abcd".index(name) + 1]:
            (root / "etc/ssh" / each).touch()
        found = tree.prepare(
            root,
            agent,
            has_agent=True,
            hostname="m",
            linux_id="0" * 32,
            nameserver="::1",
            host_ca=False,
        )
        assert found == done, "what cannot be looked through is left to the agent"
        shutil.rmtree(root / "etc/ssh")
