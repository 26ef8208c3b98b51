"""Files as E2B's clients are told of them."""

from __future__ import annotations

import posixpath
from datetime import UTC, datetime
from typing import Any

from roost.services.files import FileInfo

_TYPES = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY"}
_LAST_NS = 253_402_300_799 * 10**9  # the end of the year 9999


def text(name: bytes) -> str:
    """Names are bytes to the machine; what is not UTF-8 is shown with marks."""
    return name.decode(errors="replace")


def entry(info: FileInfo, path: bytes, target: FileInfo | None = None) -> dict[str, Any]:
    """``EntryInfo``. Of a link: the type of what it leads to, and, where that was looked at, its mode and path."""
    link = info.kind == "symlink"
    kind = _TYPES.get((info.target_kind or "") if link else info.kind)
    if link and kind is None:
        kind = "FILE_TYPE_SYMLINK"  # to nothing; without a type clients would not list it
    shown: dict[str, Any] = {
        "name": text(posixpath.basename(path)) or "/",
        "type": kind or "FILE_TYPE_UNSPECIFIED",
        "path": text(path),
        "size": str(min(info.size, 2**63 - 1)),
        "mode": (target or info).mode & 0o777,
        "permissions": permissions(info),
        "owner": info.owner,
        "group": info.group,
        "modifiedTime": timestamp(info.mtime_ns),
    }
    if link:
        shown["isSymlink"] = True
        leads = target.path if target is not None else pointed(info, path)
        shown["symlinkTarget"] = text(leads)
    return shown


def pointed(link: FileInfo, path: bytes) -> bytes:
    """What a link says, from where it stands."""
    joined = posixpath.join(posixpath.dirname(path), link.link_target or b"")
    return posixpath.normpath(joined)


def permissions(info: FileInfo) -> str:
    """As Go writes a file's mode, which E2B's own daemon is written in."""
    letters = {"directory": "d", "symlink": "L", "other": "?"}.get(info.kind, "")
    for bit, letter in ((0o4000, "u"), (0o2000, "g"), (0o1000, "t")):
        letters += letter if info.mode & bit else ""
    rights = "".join(
        letter if info.mode & (0o400 >> at) else "-" for at, letter in enumerate("rwxrwxrwx")
    )
    return (letters or "-") + rights


def timestamp(since_1970_ns: int) -> str:
    seconds, ns = divmod(max(0, min(since_1970_ns, _LAST_NS)), 10**9)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns:09d}Z"
