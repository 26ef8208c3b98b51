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
    assert name in posture.inside(done.stdout, {name})
    assert posture.inside(done.stdout, {"nobody"}) == {}
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


def test_numbers_that_are_reserved_are_not_told() -> None:
    assert posture._map("0 536870912 65536\n") == ["0 -> reserved, 65536"]
    assert posture._map("         0          0 4294967295\n") == ["0 -> 0, 4294967295"]
