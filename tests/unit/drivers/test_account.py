"""What is started as another user has nothing of root's."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from roost.host import account, syscalls
from roost.host.account import Account

NOBODY = Account("nobody", 65534, 65534)
_JOIN, _SESSION = 1, -3


def _keyctl(*arguments: int | None) -> int:
    return int(syscalls._libc.syscall(syscalls._SYS_KEYCTL, *arguments))


def _said(*command: str) -> str:
    process = account.start(NOBODY, command, stdout=subprocess.PIPE, cwd="/", env={})
    with process:
        return str(process.communicate()[0], "ascii")


def test_no_keyring_of_the_daemons() -> None:
    """Whoever possesses a session's keyring reads the keys in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def session() -> int:
        return _keyctl(0, _SESSION, 0)

    def both() -> tuple[int, int]:
        _keyctl(_JOIN, None)  # as a login has one
        asks = f"import ctypes; print(ctypes.CDLL(None).syscall({syscalls._SYS_KEYCTL}, 0, {_SESSION}, 0))"
        return session(), int(_said("python3", "-c", asks))

    with ThreadPoolExecutor(1) as thread:
        ours, theirs = thread.submit(both).result()
    if ours < 0:
        pytest.skip("this kernel has no keys, or does not give them to us")
    assert theirs != ours


def test_what_is_started_is_that_account_with_no_way_back() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    said = _said("cat", "/proc/self/status")
    for line in (
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t",
        "NoNewPrivs:\t1",
        *(f"Cap{name}:\t{0:016x}" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")),
    ):
        assert f"\n{line.strip()}" in said, line
