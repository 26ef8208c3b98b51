"""A root tree as content: fixed times, and a digest that does not depend on where or when it was made."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def settle(root: Path, epoch: int) -> str:
    """No time in the tree is later than ``epoch``; the digest of all of it. Names are sorted, times that
    tell only of the build are left out."""
    total = hashlib.sha256(b"roost-tree 1\n")
    for directory, names, files in os.walk(root, topdown=True):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            when = min(int(info.st_mtime), epoch)
            os.utime(path, (when, when), follow_symlinks=False)
            total.update(_entry(path, os.path.relpath(path, root), info, when))
    os.utime(root, (epoch, epoch))
    return f"sha256:{total.hexdigest()}"


def _entry(path: str, name: str, info: os.stat_result, when: int) -> bytes:
    head = f"{info.st_mode:o} {info.st_uid} {info.st_gid}"
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        what = f"{info.st_size} {when} {content}"
    elif stat.S_ISLNK(info.st_mode):
        what = os.readlink(path)
    elif stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
        what = str(info.st_rdev)
    else:
        what = ""
    attributes = [
        f"{key}={os.getxattr(path, key, follow_symlinks=False).hex()}"
        for key in sorted(os.listxattr(path, follow_symlinks=False))
    ]
    line = "\0".join([head, name, what, *attributes])
    return line.encode(errors="surrogateescape") + b"\n"
