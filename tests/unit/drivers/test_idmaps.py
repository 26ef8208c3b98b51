"""Blocks of numbers: whose they are, how many, and who else has them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.drivers import apparmor, oci, runc, tree
from roost.drivers.interface import Root, Size, StartSpec
from roost.egress.interface import EGRESS_UID
from roost.host import idmaps
from roost.host.cgroups import Limits
from roost.host.run import Done
from roost.network.addresses import MAX_SLOTS, Plan


def test_each_slot_has_a_block_of_its_own() -> None:
    plan = Plan("10.201.0.0/16", Path("/run/roost"))
    first, second, last = (plan.slot(i).users for i in (0, 1, plan.capacity - 1))
    assert first.first == idmaps.DEFAULT_BASE
    assert second.first == first.first + first.count
    assert last.first + last.count <= idmaps.LAST < EGRESS_UID
    assert plan.slot(3).public().users == plan.slot(3).users
    assert plan.capacity == MAX_SLOTS


def test_a_later_base_leaves_room_for_fewer_slots() -> None:
    base = idmaps.LAST - 5 * idmaps.COUNT
    assert Plan("10.201.0.0/16", Path("/run/roost"), base).capacity == 5
    with pytest.raises(ValueError, match="no block"):
        idmaps.block(5, base)


def test_who_else_has_numbers_of_a_range_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "/etc/passwd": "root:x:0:0::/:/bin/sh\nann:x:536870999:5::/:/bin/sh\nodd\n",
        "/etc/subuid": "ben:100000:65536\ncat:536805376:65537\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self, **_: texts.get(str(self), ""))
    monkeypatch.setattr(idmaps, "why_not", lambda: None)
    found = idmaps.taken(536870912, 536870912 + 65535)
    assert [each.split("'")[0] for each in found] == ["ann", "cat"]
    assert idmaps.others(536870912) == {0}
    texts["/etc/subgid"] = "dan:537001983:2000000000\neve:1610612735:9\n"
    assert idmaps.others(536870912) == set(range(idmaps.capacity()))
    assert idmaps.others(idmaps.LAST - idmaps.COUNT) == {0}
    monkeypatch.setattr(idmaps, "why_not", lambda: "no user namespaces")
    assert idmaps.others(536870912) == set()


def test_what_failed_for_a_moment_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[OSError | None] = [OSError("no room"), None]

    @contextlib.contextmanager
    def namespaces(_: idmaps.Block) -> Iterator[Path]:
        if (failure := tries.pop(0)) is not None:
            raise failure
        yield Path("/proc/1/ns")

    monkeypatch.setattr(idmaps, "namespaces", namespaces)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    idmaps._made_once.cache_clear()
    try:
        assert [idmaps.why_not() for _ in range(3)] == ["no room", None, None]
        assert not tries
    finally:
        idmaps._made_once.cache_clear()


def _spec(**changes: object) -> dict[str, object]:
    slot = Plan("10.201.0.0/16", Path("/run/roost")).slot(7).public()
    size, root = Size(1, 512, 10), Root(image=Path("/pool/m1.ext4"))
    start = StartSpec("m1", "box", size, root, slot, "s3cret", "0" * 32)
    arguments: dict[str, object] = {
        "limits": Limits(1, 512 << 20, 100),
        "cgroup": "/roost/m1",
        "environment": {},
        "seccomp": None,
        "network_namespace": str(slot.netns),
    }
    return oci.spec(start, **{**arguments, **changes})  # type: ignore[arg-type]


def test_a_machine_with_users_of_its_own_joins_their_namespace_and_is_mapped_nowhere_else() -> None:
    block = idmaps.block(7)
    linux = _spec(users=oci.Users("/proc/1/fd/9", block))["linux"]
    assert {"type": "user", "path": "/proc/1/fd/9"} in linux["namespaces"]  # type: ignore[index]
    whole = [{"containerID": 0, "hostID": block.first, "size": 65536}]
    assert linux["uidMappings"] == linux["gidMappings"] == whole  # type: ignore[index]
    without = _spec()["linux"]
    assert "uidMappings" not in without  # type: ignore[operator]


def test_the_profile_is_named_where_one_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _spec(apparmor="roost-machine")["process"]["apparmorProfile"] == "roost-machine"  # type: ignore[index]
    assert "apparmorProfile" not in _spec()["process"]  # type: ignore[operator]
    monkeypatch.setattr(apparmor, "_lacking", lambda: "no AppArmor")
    apparmor.why_not.cache_clear()
    assert apparmor.loaded() is None
    apparmor.why_not.cache_clear()


def test_a_profile_that_does_not_load_is_not_named_and_not_said_to_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(runc.run, "run", _runs)
    monkeypatch.setattr(idmaps, "why_not", lambda: None)
    monkeypatch.setattr(runc.advisories, "refusal", lambda _: None)
    monkeypatch.setattr(apparmor, "_lacking", lambda: None)
    for tool, name, said in (
        ("false", None, "could not be loaded"),
        ("true", apparmor.NAME, "run under its profile"),
    ):
        monkeypatch.setattr(apparmor, "_TOOL", tool)
        apparmor.why_not.cache_clear()
        assert apparmor.loaded() == name
        assert said in runc._probe.__wrapped__(()).details["apparmor"]
    apparmor.why_not.cache_clear()


def _runs(argv: list[str], **_: object) -> Done:
    if argv[0] == "false":
        raise OSError("the parser failed")
    return Done(0, "runc version 1.2.9", "")


def test_where_a_runtime_lays_its_mounts_no_link_leads_elsewhere(tmp_path: Path) -> None:
    root, elsewhere, binary = tmp_path / "root", tmp_path / "elsewhere", tmp_path / "agent"
    for path in (root, elsewhere):
        path.mkdir()
    binary.write_bytes(b"agent")
    (root / "dev").symlink_to(elsewhere)
    (root / "proc").write_text("a file")
    tree.prepare(
        root,
        tree.AgentBinary(binary),
        has_agent=False,
        hostname="box",
        linux_id=None,
        nameserver="10.0.0.1",
        host_ca=False,
    )
    for name in ("dev", "proc", "run", "sys"):
        assert (root / name).is_dir()
        assert not (root / name).is_symlink()
    assert not list(elsewhere.iterdir())


def test_without_user_namespaces_the_driver_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(runc.run, "run", lambda *_, **__: Done(0, "runc version 1.2.9", ""))
    monkeypatch.setattr(idmaps, "why_not", lambda: "no user namespace can be made: EPERM")
    probe = runc._probe.__wrapped__(())
    assert (probe.available, probe.reason) == (False, "no user namespace can be made: EPERM")
    assert "user_namespaces" in (probe.remedy or "")
    monkeypatch.setattr(idmaps, "why_not", lambda: None)
    monkeypatch.setattr(runc.advisories, "refusal", lambda _: "runc 1.0: CVE-1")
    probe = runc._probe.__wrapped__(())
    assert (probe.available, probe.reason) == (False, "runc 1.0: CVE-1")
