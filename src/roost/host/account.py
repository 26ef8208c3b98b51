"""Whom workspaces run as: who the daemon is, or, of a daemon of root's, an account that is told it."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass


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
