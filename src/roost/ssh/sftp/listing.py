"""An open directory, and a file as ``ls -l`` shows it."""

from __future__ import annotations

import stat
import time

from roost.services.files import FileInfo
from roost.ssh.sftp.wire import Attrs
from roost.ssh.visit import Visit

PAGE = 100
_KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}
_HALF_A_YEAR_S = 182 * 86400


class OpenDirectory:
    def __init__(self, visit: Visit, path: bytes) -> None:
        self._visit = visit
        self._path = path
        self._cursor: str | None = None
        self._over = False

    async def read(self) -> list[FileInfo]:
        """The next entries; none at the end. Raises RoostError."""
        if self._over:
            return []
        visit = self._visit
        page = await visit.inside.files.list(
            visit.tenant, visit.machine_id, self._path, PAGE, self._cursor
        )
        self._cursor = page.next_cursor
        self._over = page.next_cursor is None
        return page.items


def attrs(info: FileInfo) -> Attrs:
    mtime = info.mtime_ns // 1_000_000_000
    return Attrs(info.size, info.uid, info.gid, _mode(info), mtime, mtime)


def line(info: FileInfo) -> bytes:
    """Mode, links (not known: 1), owner, group, size, time, name."""
    at = min(max(0, info.mtime_ns // 1_000_000_000), 2**33)
    near = 0 <= time.time() - at < _HALF_A_YEAR_S
    when = time.strftime("%b %e %H:%M" if near else "%b %e  %Y", time.gmtime(at))
    head = f"{stat.filemode(_mode(info))}    1 {info.owner:8} {info.group:8} {info.size:8} {when} "
    return head.encode(errors="replace") + info.name


def _mode(info: FileInfo) -> int:
    return info.mode | _KINDS.get(info.kind, stat.S_IFIFO)
