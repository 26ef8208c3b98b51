"""Whom workspaces run as: who the daemon is, or, of a daemon of root's, an account that is told it."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from roost.host import syscalls


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


def start(account: Account, command: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    """As ``Popen``, as that account, for good and with no way back: a program of its own becomes it, no thread of ours.
    Whoever runs as the account already may kill a thread that is it, and the kernel then ends all of the daemon. Nor by
    subprocess's own ``user``: with that it forks, and what libraries of the daemon do at a fork (gRPC's) can end the
    child."""
    if account.ours:
        return subprocess.Popen(command, **how)
    became = [
        "setpriv",
        f"--reuid={account.uid}",
        f"--regid={account.gid}",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--no-new-privs",
        "--",
        *command,
    ]
    with ThreadPoolExecutor(1, thread_name_prefix="keyless") as thread:  # keyrings are threads' own

        def keyless() -> subprocess.Popen[bytes]:
            syscalls.leave_keys()
            return subprocess.Popen(became, **how)

        return thread.submit(keyless).result()
