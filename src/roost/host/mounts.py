"""Mounts: ext4 images on loop devices, shared parents, freezing and trimming."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roost.host import loop, syscalls

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_FITRIM = 0xC0185879

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    fstype: str


def table() -> Iterator[Mount]:
    """What is mounted in this mount namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            target = left.split(" ")[4]
            fstype, source = right.split(" ")[:2]
            yield Mount(_unescape(source), _unescape(target), fstype)


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda m: chr(int(m[1], 8)), text)


def is_mounted(target: Path) -> bool:
    real = os.path.realpath(target)
    return any(m.target == real for m in table())


def below(directory: Path) -> list[str]:
    """Mount points under ``directory``, innermost last."""
    real = os.path.realpath(directory) + "/"
    return [m.target for m in table() if m.target.startswith(real)]


def mount_image(
    image: Path, target: Path, options: str, *, fstype: str = "ext4", direct_io: bool = True
) -> Path:
    """Attaches and mounts; on failure nothing stays. The device, which goes with its last user."""
    device, fd = loop.attach(image, direct_io=direct_io)
    try:
        syscalls.mount(device, target, fstype, syscalls.MS_NODEV, options)
    finally:
        os.close(fd)
    return device


def unmount_image(image: Path, target: Path, *, timeout_s: float = 5.0) -> None:
    """Takes the mount down and waits until the image is free to be mounted again. Idempotent. Raises
    ``TimeoutError`` where somebody still holds it."""
    if not unmount(target):
        raise TimeoutError(f"{target} stays busy")
    deadline = time.monotonic() + timeout_s
    for device in loop.devices_of(image):
        if not loop.wait_gone(device, image, 0.1):
            loop.detach(device)
        if not loop.wait_gone(device, image, max(0.1, deadline - time.monotonic())):
            raise TimeoutError(f"{device} still holds {image}")


def unmount(target: Path | str, *, timeout_s: float = 2.0) -> bool:
    """Idempotent; retries while busy, then detaches lazily. False if even that failed."""
    deadline = time.monotonic() + timeout_s
    delay = 0.001
    while True:
        try:
            syscalls.umount(target)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return True
            if exc.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                break
            time.sleep(delay)
            delay = min(delay * 2, 0.05)
    with contextlib.suppress(OSError):
        syscalls.umount(target, syscalls.MNT_DETACH)
    return not is_mounted(Path(target))


def freeze(target: Path) -> None:
    """Everything written is on the image when this returns; writers wait. Already frozen is fine."""
    _ioctl(target, _FIFREEZE, errno.EBUSY)


def thaw(target: Path) -> None:
    _ioctl(target, _FITHAW, errno.EINVAL)


def _ioctl(target: Path, request: int, fine: int) -> None:
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, request, 0)
    except OSError as exc:
        if exc.errno != fine:
            raise
    finally:
        os.close(fd)


class _TrimRange(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("minlen", ctypes.c_uint64),
    )


def trim(target: Path, minlen: int = 0) -> int:
    """Tells the device which blocks are free (in runs of ``minlen`` or more); the bytes told of."""
    span = _TrimRange(0, 2**64 - 1, minlen)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)  # blocks freed but not yet committed are passed over
        fcntl.ioctl(fd, _FITRIM, span)
    finally:
        os.close(fd)
    return int(span.len)
