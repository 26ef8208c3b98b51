"""Copies, lists, JSON, and ``up``/``down`` on the real thing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from roost import Machine

from .conftest import Host

Roost = Callable[..., subprocess.CompletedProcess[bytes]]
pytestmark = pytest.mark.system


def listing(root: Path) -> dict[str, tuple[str, int]]:
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = (f"-> {path.readlink()}", 0)
        elif path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = (digest, path.stat().st_mode & 0o777)
        else:
            found[name] = ("dir", 0)
    return found


def test_trees_both_ways(roost: Roost, machine: Machine, tmp_path: Path) -> None:
    source = tmp_path / "project"
    (source / "deep/er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "deep/er/data.bin").write_bytes(os.urandom(5 << 20))
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / "deep/link").symlink_to("er/data.bin")
    (source / "ü name").write_text("unicode")
    for i in range(200):
        (source / f"f{i}").write_text(str(i))
    done = roost("cp", source, f"{machine.key}:/workspace/")
    assert done.returncode == 0, done.stderr
    assert machine.exec("/workspace/project/run.sh").stdout == "ran\n"
    (tmp_path / "back").mkdir()
    done = roost("cp", f"{machine.key}:/workspace/project", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert listing(tmp_path / "back/project") == listing(source)


def test_files_both_ways_and_pipes(roost: Roost, machine: Machine, tmp_path: Path) -> None:
    data = os.urandom(30 << 20)
    (tmp_path / "big").write_bytes(data)
    assert roost("cp", tmp_path / "big", f"{machine.id}:/root/big").returncode == 0
    assert machine.exec("sha256sum < /root/big").stdout[:64] == hashlib.sha256(data).hexdigest()
    assert roost("cp", f"{machine.id}:/root/big", tmp_path / "again").returncode == 0
    assert (tmp_path / "again").read_bytes() == data
    assert roost("cp", f"{machine.id}:/root/big", "-").stdout == data
    assert roost("cp", "-", f"{machine.id}:/root/typed", input=b"typed").returncode == 0
    assert machine.files.read("/root/typed") == b"typed"
    assert roost("cp", f"{machine.id}:/root/typed", f"{machine.id}:/root/two").returncode == 0
    assert machine.files.read("/root/two") == b"typed"
    missing = roost("cp", f"{machine.id}:/root/missing", tmp_path)
    assert missing.returncode == 1
    assert b"FILE_NOT_FOUND" in missing.stderr


def test_a_tree_with_links_that_lead_out(roost: Roost, machine: Machine, tmp_path: Path) -> None:
    machine.exec(
        "mkdir -p /root/evil/d && cd /root/evil && echo fine > d/f && ln -s /etc/passwd out && "
        "ln -s ../../../../etc d/up && ln -s d/f good && ln d/f hard",
        check=True,
    )
    done = roost("cp", f"{machine.id}:/root/evil", tmp_path / "got")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "got").iterdir()) == ["d", "good", "hard"]
    assert (tmp_path / "got/good").read_text() == "fine\n"
    assert done.stderr.count(b"leads out") >= 2
    machine.exec("mkfifo /root/evil/pipe", check=True)
    refused = roost("cp", f"{machine.id}:/root/evil", tmp_path / "got2")
    assert refused.returncode in (0, 1), "the agent may leave it away; we never make it"
    assert not (tmp_path / "got2/pipe").exists()


def test_json_of_everything(roost: Roost, machine: Machine) -> None:
    for argv in (
        ["ls"],
        ["show", machine.key],
        ["ps", machine.key, "--all"],
        ["usage", machine.key],
        ["usage"],
        ["usage", "--by", "machine,key"],
        ["logs", machine.key],
        ["logs", "--daemon"],
        ["template", "ls"],
        ["template", "show", "base"],
        ["template", "build", "base"],
        ["key", "ls"],
        ["key", "show"],
        ["doctor"],
        ["version"],
        ["shell", machine.key, "--list"],
    ):
        done = roost(*argv, "--json")
        assert done.returncode == 0, (argv, done.stderr)
        assert isinstance(json.loads(done.stdout), dict), argv
        plain = roost(*argv)
        assert plain.returncode == 0, (argv, plain.stderr)


def test_a_machines_life(roost: Roost) -> None:
    made = roost("create", "--name", "life", "--label", "t=1", "--ttl", "10m")
    assert made.returncode == 0, made.stderr
    machine_id = made.stdout.decode().strip()
    try:
        assert roost("ls", "-q", "--label", "t=1").stdout.decode().split() == [machine_id]
        slept = roost("sleep", "life").stdout.decode().split()
        assert slept[:2] == [machine_id, "sleeping"]
        assert slept[2:] in (["(hibernated)"], ["(stopped)"])
        assert roost("ls", "-q", "--phase", "sleeping", "--label", "t=1").stdout.strip()
        assert roost("wake", machine_id[:8]).stdout.decode().split() == [machine_id, "running"]
    finally:
        assert roost("rm", machine_id).stdout.decode().strip() == machine_id
    gone = roost("show", machine_id)
    assert gone.returncode in (0, 1)
    assert roost("ls", "-q", "--label", "t=1").stdout == b""


def test_doctor_without_a_daemon(roost: Roost) -> None:
    done = roost("doctor", "--json", env={"ROOST_URL": "http://127.0.0.1:9", "ROOST_API_KEY": "k"})
    assert done.returncode == 0, done.stderr
    host = json.loads(done.stdout)
    assert host["daemon"]["pid"] is None
    assert [r["driver"] for r in host["rungs"]] == [
        "qemu",
        "gvisor",
        "runc",
        "user",
        "workspace",
    ]
    assert host["checks"]


def test_up_is_quick_the_second_time(roost: Roost, daemon: Host) -> None:
    try:
        assert roost("up", timeout=300).returncode == 0
        begun = time.monotonic()
        done = roost("up", "--json")
        took = time.monotonic() - begun
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["started"] is False
        assert took < 20, "2 s on an idle host"
    finally:
        roost("rm", "first")


def test_keys_come_and_go(roost: Roost, daemon: Host) -> None:
    made = roost("key", "create", "cli-test")
    key = made.stdout.decode().strip()
    assert roost("ls", env={"ROOST_API_KEY": key}).returncode == 0
    assert roost("key", "revoke", "cli-test").returncode == 0
    refused = roost("ls", env={"ROOST_API_KEY": key})
    assert refused.returncode == 1
    assert b"AUTH_INVALID" in refused.stderr


def test_completion_lists_machines(roost: Roost, machine: Machine) -> None:
    done = roost(
        env={
            "_ROOST_COMPLETE": "complete_bash",
            "COMP_WORDS": "roost exec cli-",
            "COMP_CWORD": "2",
        }
    )
    assert machine.key in done.stdout.decode().split(), done.stderr
