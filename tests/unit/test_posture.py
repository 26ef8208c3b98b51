"""What a posture says of a process, on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.attack import posture


def test_from_outside_and_from_inside_it_is_the_same_process() -> None:
    here = posture.outside([os.getpid()], {})
    ((name, (facts,)),) = here.items()
    assert facts["namespaces"] == [] and facts["root"] == "the host's"
    assert set(facts) > {
        "uid",
        "groups",
        "uid_map",
        "gid_map",
        "CapEff",
        "Seccomp",
        "NoNewPrivs",
        "descriptors",
        "mounts",
        "cgroups",
    }
    done = subprocess.run(
        [sys.executable, "-c", posture.TELL], capture_output=True, text=True, check=True
    )
    for seen in posture.inside(done.stdout, {name}, {})[name]:
        assert {"namespaces", "cgroups", "gid_map", "groups"} <= set(seen)
    assert facts["gid_map"] in [
        seen["gid_map"] for seen in posture.inside(done.stdout, {name}, {})[name]
    ]
    assert posture.inside(done.stdout, {"nobody"}, {}) == {}
    assert json.loads(json.dumps(here)) == here, "it can be recorded"


def test_one_that_ended_is_nobody() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert posture.outside([child.pid, 1 << 22], {}) == {}
    child.wait()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("socket:[123]", "socket"),
        ("anon_inode:[eventpoll]", "anon_inode:[eventpoll]"),
        ("/dev/null", "/dev/null"),
        ("/var/lib/roost/pool/disks/x.ext4", "file"),
        ("/dev/pts/7", "/dev/pts/N"),
    ],
)
def test_descriptors(target: str, said: str) -> None:
    assert posture._descriptor(target) == said


@pytest.mark.parametrize(
    ("groups", "said"),
    [("", []), ("0", []), ("0 6 27", ["27", "6"]), ("536870913", ["reserved, 1 inside"])],
)
def test_groups_beside_its_own(groups: str, said: list[str]) -> None:
    status = {"Gid": "0\t0\t0\t0", "Groups": groups}
    mapped = "0 536870912 65536\n"
    assert sorted(posture._number(each, mapped) for each in posture._supplementary(status)) == said


def _mountinfo(*mounts: tuple[str, str, str]) -> str:
    return "".join(f"1 0 0:1 / {at} {how},relatime - {kind} it {how}\n" for at, kind, how in mounts)


def test_which_kernel_a_guest_has_is_not_told() -> None:
    newer = _mountinfo(("/usr/lib/modules/6.1.0-99-cloud-amd64", "ext4", "ro"))
    assert posture.mounts(newer) == ["/usr/lib/modules/KERNEL ext4 ro"]


def test_of_what_is_masked_only_what_is_not_is_told() -> None:
    """However many of the files the host's kernel has."""
    proc, sysfs = ("/proc", "proc", "rw"), ("/sys", "sysfs", "ro")
    file = ("/proc/version", "devtmpfs", "rw")
    masked = ["/proc/version", "/proc/none-of-this-kernel", "/sys/kernel"]
    seen = posture.mounts(_mountinfo(proc, file), masked)
    assert seen == ["/proc proc rw"]
    assert (
        posture.mounts(_mountinfo(proc, file, ("/proc/none-of-this-kernel", "tmpfs", "ro")), masked)
        == seen
    )
    assert posture.mounts(_mountinfo(proc), masked) == [*seen, "/proc/version not masked"]
    assert posture.mounts(_mountinfo(proc, sysfs, file), masked)[-1] == "/sys/kernel not masked"
    open_again = posture.mounts(_mountinfo(proc, ("/proc/version", "proc", "rw")), masked)
    assert open_again == [*seen, "/proc/version not masked", "/proc/version proc rw"]


def test_what_an_execution_changed_is_told() -> None:
    told = {
        "status": "Name:\tsleep\nUid:\t0 0 0 0\nGid:\t0 0 0 0\nGroups:\t0 27 \n",
        "uid_map": "0 0 4294967295\n",
        "gid_map": "0 536870912 65536\n",
        "mountinfo": "",
        "fds": [],
        "apart": ["mnt"],
        "cgroup": "0::/roost-x/runc-m\n1:name=systemd:/\n",
    }
    ((facts,),) = posture.inside(json.dumps(told), {"sleep"}, {"-m": "-ID"}).values()
    assert facts["groups"] == ["27"] and facts["namespaces"] == ["mnt"]
    assert facts["gid_map"] == ["0 -> reserved, 65536"]
    assert facts["cgroups"] == ["/roost-x/runc-ID"]
    less = {key: told[key] for key in ("status", "uid_map", "mountinfo", "fds")}
    ((facts,),) = posture.inside(json.dumps(less), {"sleep"}, {}).values()
    assert not {"gid_map", "namespaces", "cgroups"} & set(facts), "what was not told is left out"


def test_numbers_that_are_reserved_are_not_told() -> None:
    assert posture._map("0 536870912 65536\n") == ["0 -> reserved, 65536"]
    assert posture._map("         0          0 4294967295\n") == ["0 -> 0, 4294967295"]
