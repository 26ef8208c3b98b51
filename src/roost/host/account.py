"""Whom workspaces run as: who the daemon is, or, of a daemon of root's, an account that is told it."""

from __future__ import annotations

import os
import pwd
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from roost.host import syscalls

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    uid: int
    gid: int

    @property
    def ours(self) -> bool:
        """Nothing needs to be given to it: it is who runs."""
        return self.uid == os.geteuid()


def of_workspaces(named: str) -> Account:
    """Never root. Raises LookupError, with the reason."""
    uid = os.geteuid()
    if uid != 0:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = str(uid)
        return Account(name, uid, os.getegid())
    try:
        found = pwd.getpwnam(named)
    except KeyError:
        raise LookupError(f"there is no account {named!r} for programs to run as") from None
    if found.pw_uid == 0 or found.pw_gid == 0:
        raise LookupError(f"programs would run as {named!r}, which is root")
    return Account(named, found.pw_uid, found.pw_gid)


def run(account: Account, function: Callable[[], T]) -> T:
    """In a thread that is that account, for good and with no way back; what it starts is, too. Not by subprocess's own
    ``user``: with that it forks, and what libraries of the daemon do at a fork (gRPC's) can end the child."""
    done: list[T] = []
    failed: list[BaseException] = []
    last = syscalls.last_capability()

    def body() -> None:
        try:
            syscalls.drop_privileges(account.uid, last, account.gid)
            done.append(function())
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=body, name="account", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
