"""What is counted before and after many machines came and went."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bench import cycles


def test_a_namespace_of_any_kind_is_counted_while_somebody_is_in_it_or_holds_it() -> None:
    command = ["unshare", "--uts", *(() if os.geteuid() == 0 else ("--user",)), "cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"on\n")
        child.stdin.flush()
        if child.stdout.readline() != b"on\n":
            pytest.skip("this kernel gives an ordinary user no namespace")
        name = os.readlink(f"/proc/{child.pid}/ns/uts")
        found = cycles.namespaces(os.getpid(), "/roost-ours/")
        assert set(found) == set(cycles.NAMESPACES) and len(found["uts"]) >= 2
        assert name in found["uts"]
        held = os.open(f"/proc/{child.pid}/ns/uts", os.O_RDONLY)
        child.stdin.close()
    assert name in cycles.namespaces(os.getpid(), "/roost-ours/")["uts"]
    os.close(held)
    assert name not in cycles.namespaces(os.getpid(), "/roost-ours/")["uts"]


def test_what_is_left_in_the_pool_is_counted(tmp_path: Path) -> None:
    for name in cycles.KEPT:
        (tmp_path / "pool" / name).mkdir(parents=True)
    before = cycles.footprint(os.getpid(), tmp_path / "run", tmp_path)
    (tmp_path / "pool/homes/left").mkdir()
    (tmp_path / "pool/tmp/left").touch()
    after = cycles.footprint(os.getpid(), tmp_path / "run", tmp_path)
    grown = {what for what, count in after.items() if count > before[what]}
    assert {"pool's homes", "pool's tmp"} <= grown
    assert not {"pool's disks", "pool's snapshots"} & grown
