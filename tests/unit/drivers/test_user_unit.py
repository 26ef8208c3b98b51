"""A machine of one user as a unit of systemd: what it is told, and how exposed systemd itself finds it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from roost.drivers import user_unit
from roost.host.cgroups import Limits

from .test_user import START

PLACES = user_unit.Places(
    root=Path("/run/roost/machines/user/m1/root"),
    passwd=Path("/run/roost/machines/user/m1/passwd"),
    group=Path("/run/roost/machines/user/m1/group"),
    environment=Path("/run/roost/machines/user/m1/environment"),
    console=Path("/run/roost/machines/user/m1/console"),
    volumes=Path("/run/roost/machines/user/m1/volumes"),
)
HOMES = ["/home/user", "/workspace"]
# Of 10, as systemd counts; what is left is what it is for: the network of its slot, its home, programs that compile.
EXPOSURE = 1.5


def _made() -> user_unit.Properties:
    size = Limits(0.5, 512 << 20, 100)
    return user_unit.properties(
        START, size=size, places=PLACES, homes=HOMES, part_of="roostuser.slice"
    )


def test_a_unit_is_known_by_its_name() -> None:
    assert user_unit.machine(user_unit.name("m1")) == "m1"
    assert user_unit.machine("ssh.service") is None


def _analyze(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["systemd-analyze", "--no-pager", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_all_that_confines_it_is_said() -> None:
    made = dict(_made())
    for name in [
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateUsers",
        "RestrictNamespaces",
        "RemoveIPC",
        "RestrictSUIDSGID",
        "ProtectKernelTunables",
        "ProtectControlGroups",
    ]:
        assert made[name] == "yes", name
    assert made["ProtectSystem"] == "strict"
    assert made["ProtectHome"] == "tmpfs"
    assert made["ProtectProc"] == "invisible"
    assert made["CapabilityBoundingSet"] == ""
    assert made["MemoryMax"] == str(512 << 20)
    assert made["TasksMax"] == "100"
    assert made["CPUQuota"] == "50%"
    assert START.slot is not None
    assert START.slot.users is not None
    assert made["User"] == made["Group"] == str(START.slot.users.first + 1000)
    assert made["NetworkNamespacePath"] == str(START.slot.netns)


def test_nothing_of_it_that_everybody_may_read_has_the_token() -> None:
    argv = user_unit.program(START, HOMES)
    assert "s3cret" not in user_unit.text(_made(), argv)
    assert "s3cret" not in str(user_unit.command("u", _made(), argv))
    told = user_unit.environment(START, {})
    assert 'ROOST_AGENT_TOKEN="s3cret"\n' in told


def test_a_value_of_the_environment_stays_one() -> None:
    told = user_unit.environment(
        START, {"X": 'a"b\\c$d`e', "ROOST_AGENT_TOKEN": "other"}
    ).splitlines()
    assert 'X="a\\"b\\\\c\\$d\\`e"' in told
    assert [each for each in told if "TOKEN" in each] == ['ROOST_AGENT_TOKEN="s3cret"']
    assert [each for each in told if "HOME" in each] == ['HOME="/home/user"']


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_it_little_exposed(tmp_path: Path) -> None:
    unit = tmp_path / user_unit.name("m1")
    unit.write_text(user_unit.text(_made(), user_unit.program(START, HOMES)))
    done = _analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", str(unit))
    assert done.returncode == 0, "\n".join(e for e in done.stdout.splitlines() if "✓" not in e)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_word(tmp_path: Path) -> None:
    unit = tmp_path / user_unit.name("m1")
    argv = [
        "/bin/true",
        *user_unit.program(START, HOMES)[1:],
    ]  # it looks for the program on the host
    unit.write_text(user_unit.text(_made(), argv))
    done = _analyze("verify", "--recursive-errors=no", str(unit))
    assert unit.name not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
