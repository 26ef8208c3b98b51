"""Reaping what the machines' runtimes leave to us.

The daemon is a child subreaper: a runtime that detaches leaves the machine's processes to it. Whoever
watches one of them by pidfd reaps it (``processes.reap``). What nobody watches (helpers of the runtimes)
is swept here: only zombies of the runtimes' names, or of a user whom nothing of ours runs as, older than a grace, so
that no status is taken from asyncio's, uvloop's or subprocess's own children.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from roost.host import processes

_GRACE_S = 2.0
_NAMES = ("runsc", "exe", "runc", "gofer", "sandbox", "boot", "roost-")


class Reaper:
    def __init__(self, uid: int | None = None) -> None:
        """``uid``: whose zombies are swept whatever their names."""
        self._uid = uid
        self._seen: dict[int, float] = {}

    def sweep(self) -> int:
        """Call every second or so; how many it leaves for a later sweep."""
        now = time.monotonic()
        zombies = set(self._zombies())
        self._seen = {pid: self._seen.get(pid, now) for pid in zombies}
        left = 0
        for pid, since in self._seen.items():
            if now - since < _GRACE_S:
                left += 1
            else:
                processes.reap(pid)
        return left

    def _zombies(self) -> list[int]:
        found = []
        for task in Path("/proc/self/task").iterdir():
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue
            for child in children:
                try:
                    text = Path(f"/proc/{child}/stat").read_text(errors="replace")
                    theirs = os.stat(f"/proc/{child}").st_uid == self._uid
                except OSError:
                    continue
                name, _, rest = text.partition("(")[2].rpartition(")")
                if rest.split()[0] == "Z" and (theirs or name.startswith(_NAMES)):
                    found.append(int(child))
        return found
