"""Named network namespaces (``ip netns`` sees them), made and entered without starting a process."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from roost.host import idmaps, mounts, syscalls

DIRECTORY = Path("/run/netns")


@contextlib.contextmanager
def entered(fd: int) -> Iterator[None]:
    """The calling thread, and what it starts, is in namespace ``fd`` for the block's duration."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)


def prepare() -> None:
    """Once before ``create``: the directory, shared as ``ip netns`` shares it."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if not mounts.is_mounted(DIRECTORY):
        syscalls.mount(DIRECTORY, DIRECTORY, None, syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount(None, DIRECTORY, None, syscalls.MS_SHARED | syscalls.MS_REC)


def create(name: str, of: idmaps.Block | None = None) -> int:
    """A new, empty namespace under that name; an open descriptor of it. Of a block: it belongs to a user namespace of
    that block, which lives as long."""
    path = DIRECTORY / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o000))
    try:
        if of is None:
            _create(path)
        else:
            with idmaps.namespaces(of) as made:
                syscalls.mount(made / "net", path, None, syscalls.MS_BIND)
        return open_fd(name)
    except BaseException:
        delete(name)
        raise


def _create(path: Path) -> None:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            syscalls.mount("/proc/thread-self/ns/net", path, None, syscalls.MS_BIND)
        finally:
            syscalls.setns(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)


def open_fd(name: str) -> int:
    """Raises FileNotFoundError also for a name whose namespace is gone (a reboot without tmpfs)."""
    path = DIRECTORY / name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(fd).st_dev == os.stat(DIRECTORY).st_dev:
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no namespace is mounted there", str(path))
    return fd


def made_by(name: str) -> int | None:
    """First of the numbers of the block that it was made of; None for one of the host's own users. Raises OSError."""
    fd = open_fd(name)
    try:
        owner = idmaps.owner_of(fd)
    finally:
        os.close(fd)
    if owner is None:
        return None
    try:
        return idmaps.maker_of(owner)
    finally:
        os.close(owner)


def delete(name: str) -> None:
    """Idempotent. The namespace itself goes with its last process and descriptor."""
    path = DIRECTORY / name
    with contextlib.suppress(FileNotFoundError):
        with contextlib.suppress(OSError):
            syscalls.umount(path, syscalls.MNT_DETACH)
        path.unlink()


def names(prefix: str) -> list[str]:
    if not DIRECTORY.exists():
        return []
    return sorted(p.name for p in DIRECTORY.iterdir() if p.name.startswith(prefix))
