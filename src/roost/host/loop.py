"""Loop devices, by ioctl: attach a file, detach, and find what is attached."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01
_LO_FLAGS_DIRECT_IO = 16
_LO_FLAGS_AUTOCLEAR = 4


class _LoopInfo64(ctypes.Structure):
    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


def attach(path: Path, *, direct_io: bool = False, autoclear: bool = True) -> tuple[Path, int]:
    """The device, and an open descriptor of it that keeps it alive: with ``autoclear`` the kernel
    detaches the file when the last user (this descriptor, then the mount) goes."""
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(64):
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                device = Path(f"/dev/loop{number}")
                try:
                    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
                except FileNotFoundError:
                    time.sleep(0.001)  # devtmpfs makes the node a moment after the device
                    continue
                config = _LoopConfig()
                config.fd = backing
                config.info.lo_flags = (_LO_FLAGS_DIRECT_IO if direct_io else 0) | (
                    _LO_FLAGS_AUTOCLEAR if autoclear else 0
                )
                name = os.fsencode(path)[-63:]
                ctypes.memmove(config.info.lo_file_name, name, len(name))
                try:
                    fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                except OSError as exc:
                    os.close(fd)
                    if exc.errno == errno.EBUSY:
                        continue  # somebody else took this number
                    if exc.errno == errno.EINVAL and direct_io:
                        direct_io = False  # the file system under us has no direct I/O
                        continue
                    raise
                return device, fd
            raise OSError(errno.EBUSY, "no loop device to be had", str(path))
        finally:
            os.close(control)
    finally:
        os.close(backing)


def detach(device: Path) -> None:
    """Idempotent. A device still in use detaches when its last user goes."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _LOOP_CLR_FD)
    finally:
        os.close(fd)


def attached() -> Iterator[tuple[Path, str]]:
    """Every attached device and its backing file's path as the kernel tells it (a deleted file ends in
    ``" (deleted)"``)."""
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):
            yield Path("/dev") / entry.name, (entry / "loop/backing_file").read_text().rstrip("\n")


def devices_of(path: Path) -> list[Path]:
    """Devices whose backing file is ``path``."""
    real = os.path.realpath(path)
    return [device for device, backing in attached() if backing in (real, real + " (deleted)")]


def wait_gone(device: Path, path: Path, timeout_s: float) -> bool:
    """True when ``device`` no longer holds ``path``: only then may the file be attached again, since two
    devices over one file are two caches over one disk."""
    real = os.path.realpath(path)
    backing_file = Path("/sys/block") / device.name / "loop/backing_file"
    deadline = time.monotonic() + timeout_s
    delay = 0.0005
    while True:
        try:
            backing = backing_file.read_text().rstrip("\n")
        except OSError:
            return True
        if backing not in (real, real + " (deleted)"):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(delay)
        delay = min(delay * 2, 0.02)
