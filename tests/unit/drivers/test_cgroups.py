"""Reading and writing control groups, v1 and v2, on directories that look like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.host.cgroups import Cgroups, Limits


def _v1(root: Path) -> Path:
    for controller in ("cpu", "cpuacct", "memory", "pids", "freezer", "systemd"):
        (root / controller / "roost-t").mkdir(parents=True)
        (root / controller / "cgroup.procs").write_text("")
    return root


def _put(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


def test_v1_usage(tmp_path: Path) -> None:
    _v1(tmp_path)
    _put(tmp_path / "cpuacct/roost-t/m", cpuacct__usage="2500000\n")
    _put(
        tmp_path / "memory/roost-t/m",
        memory__usage_in_bytes="1000\n",
        memory__stat="inactive_file 50\ntotal_inactive_file 300\n",
        memory__limit_in_bytes="9223372036854771712\n",
    )
    _put(tmp_path / "pids/roost-t/m", pids__current="7\n")
    reading = Cgroups("roost-t", tmp_path).read("m")
    assert (reading.cpu_usage_us, reading.memory_bytes, reading.pids) == (2500, 700, 7)
    assert reading.memory_limit_bytes is None


def test_v2_usage(tmp_path: Path) -> None:
    _put(tmp_path, cgroup__controllers="cpu memory pids\n")
    _put(
        tmp_path / "roost-t/m",
        cpu__stat="usage_usec 42\nuser_usec 1\n",
        memory__current="500\n",
        memory__stat="anon 1\ninactive_file 100\n",
        memory__max="4096\n",
        pids__current="3\n",
    )
    groups = Cgroups("roost-t", tmp_path)
    assert groups.v2
    reading = groups.read("m")
    assert (reading.cpu_usage_us, reading.memory_bytes) == (42, 400)
    assert reading.memory_limit_bytes == 4096


def test_a_group_that_is_gone(tmp_path: Path) -> None:
    groups = Cgroups("roost-t", _v1(tmp_path))
    with pytest.raises(FileNotFoundError):
        groups.read("m")
    groups.remove("m")
    assert groups.oom_kills("m") == 0
    assert groups.procs("m") == set()
    assert groups.names() == set()


@pytest.mark.parametrize("now", [100, 10_000])
def test_v1_memory_with_swap_stays_at_least_memory(tmp_path: Path, now: int) -> None:
    _v1(tmp_path)
    group = tmp_path / "memory/roost-t/m"
    _put(group, memory__limit_in_bytes=str(now), memory__memsw__limit_in_bytes=str(now))
    _put(tmp_path / "cpu/roost-t/m", cpu__cfs_quota_us="", cpu__shares="")
    _put(tmp_path / "pids/roost-t/m", pids__max="")
    Cgroups("roost-t", tmp_path).set_limits("m", Limits(2, 5000, 9))
    assert (tmp_path / "cpu/roost-t/m/cpu.cfs_quota_us").read_text() == "200000"
    assert (group / "memory.limit_in_bytes").read_text().startswith("5000")
    assert (group / "memory.memsw.limit_in_bytes").read_text().startswith("5000")


def test_v2_limits(tmp_path: Path) -> None:
    _put(tmp_path, cgroup__controllers="cpu memory pids\n")
    _put(tmp_path / "roost-t/m", memory__max="", cpu__max="", cpu__weight="", pids__max="")
    Cgroups("roost-t", tmp_path).set_limits("m", Limits(1.5, 1 << 20, 64))
    group = tmp_path / "roost-t/m"
    assert (group / "cpu.max").read_text() == "150000 100000"
    assert (group / "memory.max").read_text() == str(1 << 20)
    assert (group / "pids.max").read_text() == "64"
    assert 1 <= int((group / "cpu.weight").read_text()) <= 10_000
    assert not (group / "memory.swap.max").exists(), "a kernel that does not count swap"


@pytest.mark.parametrize("was", ["max", "1000"])
def test_v2_swap_is_bounded_where_it_is_counted(tmp_path: Path, was: str) -> None:
    _put(tmp_path, cgroup__controllers="cpu memory pids\n")
    group = tmp_path / "roost-t/m"
    _put(group, memory__max=was, memory__swap__max=was)
    Cgroups("roost-t", tmp_path).bound_memory("m", 1 << 20)
    for name in ("memory.max", "memory.swap.max"):
        assert (group / name).read_text() == str(1 << 20)


def test_oom_kills_of_both(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    _v1(one)
    _put(
        one / "memory/roost-t/m",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    assert Cgroups("roost-t", one).oom_kills("m") == 2
    _put(two, cgroup__controllers="memory\n")
    _put(two / "roost-t/m", memory__events="low 0\nmax 3\noom 1\noom_kill 1\n")
    assert Cgroups("roost-t", two).oom_kills("m") == 1


def test_the_smallest_cpu_share_is_one_the_kernel_takes() -> None:
    assert Limits(0.001, 1, 1).quota_us == 1000
    assert Limits(0.0001, 1, 1).shares == 2


def test_a_device_is_denied_where_that_is_the_groups_to_say(tmp_path: Path) -> None:
    _v1(tmp_path / "v1")
    (tmp_path / "v1/devices").mkdir()
    _put(tmp_path / "v1/devices/roost-t/m", devices__deny="")
    Cgroups("roost-t", tmp_path / "v1").deny_device("m", "c 10:200 rwm")
    assert (tmp_path / "v1/devices/roost-t/m/devices.deny").read_text() == "c 10:200 rwm"
    _put(tmp_path / "v2", cgroup__controllers="cpu\n")
    Cgroups("roost-t", tmp_path / "v2").deny_device("m", "c 10:200 rwm")
