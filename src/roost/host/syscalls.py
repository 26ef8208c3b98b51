"""The system calls Python 3.11 has no name for. All raise ``OSError``; all let other threads run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_FS = 0x00000200
CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

OPEN_TREE_CLONE = 1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_IDMAP = 0x100000

PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 4

_SYS_OPENAT2 = 437  # the same number on every architecture
_SYS_MOUNT_SETATTR = 442
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_LANDLOCK_CREATE_RULESET = 444
# These differ by architecture: pivot_root, setgroups, setresgid, setresuid, keyctl.
_SYS_PIVOT_ROOT, _SYS_SETGROUPS, _SYS_SETRESGID, _SYS_SETRESUID, _SYS_KEYCTL = {
    "x86_64": (155, 116, 119, 117, 250),
    "aarch64": (41, 159, 149, 147, 219),
}.get(platform.machine(), (-1, -1, -1, -1, -1))
_KEYCTL_JOIN_SESSION_KEYRING = 1


def _check(result: int, *path: str | os.PathLike[str]) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *(os.fspath(p) for p in path[:1]))
    return result


def _b(value: str | os.PathLike[str] | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def mount(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    fstype: str | None,
    flags: int = 0,
    options: str | None = None,
) -> None:
    _check(
        _libc.mount(_b(source), _b(target), _b(fstype), ctypes.c_ulong(flags), _b(options)), target
    )


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    _check(_libc.umount2(_b(target), flags), target)


def open_tree(path: str | os.PathLike[str], flags: int = 0) -> int:
    return _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, _b(path), flags | os.O_CLOEXEC), path)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(mount: int, *, attr_set: int, user_namespace: int = 0) -> None:
    """Of the mount whose descriptor it is."""
    attr = _MountAttr(attr_set, 0, 0, user_namespace)
    _check(
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            mount,
            b"",
            _AT_EMPTY_PATH,
            ctypes.byref(attr),
            ctypes.c_size_t(ctypes.sizeof(attr)),
        )
    )


def move_mount(mount: int, target: str | os.PathLike[str]) -> None:
    """``mount``: a descriptor of ``open_tree``."""
    _check(
        _libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, _b(target), _MOVE_MOUNT_F_EMPTY_PATH),
        target,
    )


def unshare(flags: int) -> None:
    """For the calling thread."""
    _check(_libc.unshare(flags))


def setns(fd: int, kind: int = 0) -> None:
    """For the calling thread."""
    _check(_libc.setns(fd, kind))


def join(namespace: str | os.PathLike[str], kind: int) -> None:
    """The calling thread, by the file that names it. Raises OSError."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, kind)
    finally:
        os.close(fd)


def set_child_subreaper(on: bool) -> None:
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1 if on else 0), 0, 0, 0))


def pivot_root(new: str | os.PathLike[str], old: str | os.PathLike[str]) -> None:
    """For every thread that shares the calling one's mount namespace and root."""
    _check(_libc.syscall(_SYS_PIVOT_ROOT, _b(new), _b(old)), new)


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def leave_keys() -> None:
    """The calling thread, and what it starts, has a session's keyring of its own: whoever has ours reads what is in it, as
    whichever user."""
    with contextlib.suppress(OSError):  # a kernel without keys
        _check(_libc.syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None))


def drop_privileges(uid: int, last_capability: int) -> None:
    """The calling thread alone becomes user and group ``uid``: no other groups, no capabilities, none to be had again by
    any exec, and no keys. The C library's setuid would do so to every thread of the process; the kernel knows users of
    threads. In a process that is to go on, only as a user whose processes cannot name the thread (their namespace of
    pids is another): one that can may kill it, and so all of the process."""
    leave_keys()
    for capability in range(last_capability + 1):
        _check(_libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0))
    _check(_libc.syscall(_SYS_SETGROUPS, 0, None))
    _check(_libc.syscall(_SYS_SETRESGID, uid, uid, uid))
    # From root to another user: the kernel clears the permitted, effective and ambient capabilities.
    _check(_libc.syscall(_SYS_SETRESUID, uid, uid, uid))
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (uid,) * 3 or os.getgroups():
        raise PermissionError("privileges could not be dropped")


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(fd))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dir_fd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    return _check(
        _libc.syscall(_SYS_OPENAT2, dir_fd, _b(path), ctypes.byref(how), ctypes.sizeof(how)), path
    )


def landlock_version() -> int:
    """0 where the kernel has no Landlock, or has it switched off."""
    version = 1  # the flag that asks for it
    return max(0, int(_libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, 0, version)))
