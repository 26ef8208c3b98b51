"""Directories of machines that have no disk: ``homes/<machine id>``, and ``home`` in their snapshots.

    made, copied: in the pool's tmp, then renamed      removed: renamed there, then emptied

so that a home is whole or not there, and what a crash leaves half made or half gone is swept with the tmp. A home is its
account's alone (0700). Of a daemon of root's the way down to it can be gone by everybody, and nothing beside it seen.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from roost.errors import NotFoundError, UnsupportedError
from roost.host import account, files
from roost.host.account import Account
from roost.storage import disks, trees
from roost.storage.pool import Pool

_PASSABLE = 0o711


class Homes:
    def __init__(self, pool: Pool, named: str) -> None:
        """``named``: the account of workspaces, where the daemon is root."""
        self._pool = pool
        self._named = named

    def at(self, machine_id: str) -> Path:
        return self._pool.homes / disks.check_id(machine_id)

    def make(self, machine_id: str) -> None:
        """Empty. Replaces nothing."""
        owner = self._account()
        made = self._beside()
        made.mkdir(mode=0o700)
        if not owner.ours:
            os.chown(made, owner.uid, owner.gid)
        self._put(made, machine_id)

    def clone(self, source: Path, machine_id: str) -> None:
        """Of a home or a snapshot's; replaces what the machine had."""
        made = self._beside()
        self.copy(source, made, durable=False)
        self.delete(machine_id)
        self._put(made, machine_id)

    def copy(self, source: Path, target: Path, *, durable: bool = True) -> None:
        owner = self._account()
        if not source.is_dir():
            raise NotFoundError("The directory of this machine is gone.", code="NOT_FOUND")
        trees.copy(source, target, (owner.uid, owner.gid), durable=durable)

    def delete(self, machine_id: str) -> None:
        gone = self._beside()
        try:
            os.rename(self.at(machine_id), gone)
        except FileNotFoundError:
            return
        trees.remove(gone)

    def list(self) -> set[str]:
        return {p.name for p in self._pool.homes.iterdir()}

    def _put(self, made: Path, machine_id: str) -> None:
        self._open_the_way()
        os.rename(made, self.at(machine_id))
        files.sync_dir(self._pool.homes)

    def _beside(self) -> Path:
        return self._pool.tmp / f"home-{secrets.token_hex(8)}"

    def _open_the_way(self) -> None:
        if os.geteuid() == 0:
            for directory in (self._pool.homes, self._pool.root, self._pool.root.parent):
                mode = directory.stat().st_mode & 0o7777
                if mode & _PASSABLE != _PASSABLE:
                    directory.chmod(mode | _PASSABLE)

    def _account(self) -> Account:
        try:
            return account.of_workspaces(self._named)
        except LookupError as failure:
            raise UnsupportedError(f"There can be no workspace: {failure}.") from failure
