"""Nothing runs on as users that are to be another machine's."""

from __future__ import annotations

import os
import subprocess

import pytest

from roost.host import ending, processes

UIDS = range(0x5FFF_0000, 0x6000_0000)  # the last block there is

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


def _as(uid: int) -> subprocess.Popen[bytes]:
    argv = ["setpriv", f"--reuid={uid}", "--clear-groups", "--", "sh", "-c", "echo; exec sleep 60"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"\n"
    return process


def test_all_of_a_block_are_ended_and_nobody_else() -> None:
    with _as(UIDS.start) as first, _as(UIDS.stop - 1) as last, _as(UIDS.start - 1) as other:
        try:
            assert processes.of_users(UIDS) == {first.pid, last.pid}
            ending.end_users(UIDS, 10)
            assert processes.of_users(UIDS) == set()
            assert other.poll() is None
        finally:
            for each in (first, last, other):
                each.kill()
