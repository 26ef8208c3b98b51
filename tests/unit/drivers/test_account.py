"""What is started as another user has nothing of root's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from roost.host import account, syscalls
from roost.host.account import Account

_GET_ID, _JOIN, _SESSION = 0, 1, -3


def _keyctl(*arguments: int | None) -> int:
    return int(syscalls._libc.syscall(syscalls._SYS_KEYCTL, *arguments))


def test_no_keyring_of_the_daemons() -> None:
    """Whoever possesses a session's keyring reads the keys in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def session() -> int:
        return _keyctl(_GET_ID, _SESSION, 0)

    def both() -> tuple[int, int]:
        _keyctl(_JOIN, None)  # as a login has one
        return session(), account.run(Account("nobody", 65534, 65534), session)

    with ThreadPoolExecutor(1) as thread:
        ours, theirs = thread.submit(both).result()
    if ours < 0:
        pytest.skip("this kernel has no keys, or does not give them to us")
    assert theirs != ours
