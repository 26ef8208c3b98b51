"""What runs inside a machine against the kernel under it: each probe by its name, in a process of its own; tells as JSON
what came of each: the name of an error, or "done". Asks for what harms nobody where it is granted: files are opened and
given back what they had, calls have arguments that cannot work, so that only their right to be made is tried.
"""

import ctypes
import errno
import json
import os
import signal
import socket
import stat
import struct
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = {  # x86-64
    "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167,
    "reboot": 169, "sethostname": 170, "iopl": 172, "init_module": 175, "delete_module": 176,
    "quotactl": 179, "acct": 163, "add_key": 248, "request_key": 249, "keyctl": 250,
    "clock_settime": 227, "kexec_load": 246, "unshare": 272, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "finit_module": 313, "bpf": 321,
    "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "mount_setattr": 442, "syslog": 103,
}  # fmt: skip
NEWNS, NEWUSER, NEWNET, NEWPID = 0x20000, 0x10000000, 0x40000000, 0x20000000


def call(name, *args):
    LIBC.syscall.restype = ctypes.c_long
    given = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in args]
    if LIBC.syscall(ctypes.c_long(CALLS[name]), *given) < 0:
        raise OSError(ctypes.get_errno(), name)


def write(path):
    """Opens it, and writes what it says already."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.close(fd)
    if "restrained" in sys.argv:
        return
    with open(path, "rb+", buffering=0) as file:
        had = file.read(4096)
        file.seek(0)
        file.write(had)


def opened(path, flags=os.O_RDWR):
    os.close(os.open(path, flags | os.O_NONBLOCK))


def node(kind, major, minor):
    """A device of its own making, opened."""
    path = os.path.expanduser(f"~/node-{major}-{minor}")
    try:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    finally:
        if os.path.lexists(path):
            os.unlink(path)


def mounted():
    call("mount", b"none", os.path.expanduser("~").encode(), b"tmpfs", 0, 0)
    call("umount2", os.path.expanduser("~").encode(), 2)


def breakout():
    """Out of a root by a working directory left outside of it. What is found must be of this machine: one of the
    directories that led to where it began."""
    home = os.path.expanduser("~")
    os.makedirs(f"{home}/jail", exist_ok=True)
    known, path = [[]], home
    while True:
        known.append(sorted(os.listdir(path)))
        if path == "/":
            break
        path = os.path.dirname(path)
    os.chdir(home)
    os.chroot(f"{home}/jail")
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    if sorted(os.listdir("/")) in known:
        raise OSError(errno.EPERM, "still where it began")


def sock(family, kind=socket.SOCK_RAW, protocol=0):
    socket.socket(family, kind, protocol).close()


def pair(family, kind=socket.SOCK_STREAM):
    for each in socket.socketpair(family, kind):
        each.close()


def handle():
    given = (ctypes.c_char * 24)()
    ctypes.memmove(given, (8).to_bytes(4, "little") + (1).to_bytes(4, "little"), 8)
    LIBC.syscall.restype = ctypes.c_long
    root = os.open("/", os.O_RDONLY)
    number = ctypes.c_long(CALLS["open_by_handle_at"])
    if LIBC.syscall(number, ctypes.c_long(root), given, ctypes.c_long(0)) < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")


def bpf():
    attributes = (ctypes.c_char * 128)()
    attributes[0:16] = b"".join(n.to_bytes(4, "little") for n in (2, 4, 4, 1))  # an array
    LIBC.syscall.restype = ctypes.c_long
    if (
        LIBC.syscall(ctypes.c_long(CALLS["bpf"]), ctypes.c_long(0), attributes, ctypes.c_long(128))
        < 0
    ):
        raise OSError(ctypes.get_errno(), "bpf")


def perf():
    attributes = (ctypes.c_char * 128)()
    attributes[0:8] = (1).to_bytes(4, "little") + (128).to_bytes(4, "little")  # a software counter
    LIBC.syscall.restype = ctypes.c_long
    number = ctypes.c_long(CALLS["perf_event_open"])
    minus = ctypes.c_long(-1)
    if LIBC.syscall(number, attributes, ctypes.c_long(0), minus, minus, ctypes.c_long(0)) < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open")


def ring():
    parameters = (ctypes.c_char * 120)()
    LIBC.syscall.restype = ctypes.c_long
    if LIBC.syscall(ctypes.c_long(CALLS["io_uring_setup"]), ctypes.c_long(1), parameters) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")


PROBES = {
    # 11
    "core_pattern": lambda: write("/proc/sys/kernel/core_pattern"),
    "modprobe": lambda: write("/proc/sys/kernel/modprobe"),
    "panic": lambda: write("/proc/sys/kernel/panic"),
    "overcommit": lambda: write("/proc/sys/vm/overcommit_memory"),
    "drop_caches": lambda: opened("/proc/sys/vm/drop_caches", os.O_WRONLY),
    "sysrq-trigger": lambda: opened("/proc/sysrq-trigger", os.O_WRONLY),
    "binfmt": lambda: opened("/proc/sys/fs/binfmt_misc/register", os.O_WRONLY),
    "uevent_helper": lambda: write("/sys/kernel/uevent_helper"),
    "power": lambda: opened("/sys/power/state", os.O_WRONLY),
    "release_agent": lambda: opened("/sys/fs/cgroup/memory/release_agent", os.O_WRONLY),
    "release_agent_of_rdma": lambda: opened("/sys/fs/cgroup/rdma/release_agent", os.O_WRONLY),
    "cgroup.procs": lambda: opened("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY),
    "firmware": lambda: opened("/sys/firmware/efi/efivars", os.O_RDONLY),
    # 12
    "mount": mounted,
    "unshare_mount": lambda: call("unshare", NEWNS),
    "unshare_user": lambda: call("unshare", NEWUSER),
    "unshare_network": lambda: call("unshare", NEWNET),
    "unshare_pid": lambda: call("unshare", NEWPID),
    "setns": lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0),
    "setns_user": lambda: call("setns", os.open("/proc/1/ns/user", os.O_RDONLY), 0),
    "pivot_root": lambda: call("pivot_root", b"/", b"/"),
    "fsopen": lambda: call("fsopen", b"tmpfs", 0),
    "open_tree": lambda: call("open_tree", -100, b"/", 1),
    "mount_setattr": lambda: call("mount_setattr", -100, b"/", 0, bytes(32), 32),
    "open_by_handle_at": handle,
    "breakout": breakout,
    # 13
    "node_of_memory": lambda: node(stat.S_IFCHR, 1, 1),
    "node_of_kvm": lambda: node(stat.S_IFCHR, 10, 232),
    "node_of_tun": lambda: node(stat.S_IFCHR, 10, 200),
    "node_of_fuse": lambda: node(stat.S_IFCHR, 10, 229),
    "node_of_loop-control": lambda: node(stat.S_IFCHR, 10, 237),
    "node_of_a_loop": lambda: node(stat.S_IFBLK, 7, 0),
    "node_of_a_disk": lambda: node(stat.S_IFBLK, 8, 0),
    "node_of_a_virtual_disk": lambda: node(stat.S_IFBLK, 254, 0),
    "/dev/mem": lambda: opened("/dev/mem"),
    "/dev/kmsg": lambda: opened("/dev/kmsg", os.O_RDONLY),
    "/dev/kvm": lambda: opened("/dev/kvm"),
    "/dev/loop0": lambda: opened("/dev/loop0"),
    "/dev/fuse": lambda: opened("/dev/fuse"),
    "/dev/vsock": lambda: opened("/dev/vsock"),
    "iopl": lambda: call("iopl", 3),
    # 15
    "packet": lambda: sock(17),
    "alg": lambda: sock(38, socket.SOCK_SEQPACKET),
    "vsock": lambda: sock(40, socket.SOCK_STREAM),
    "netlink_uevent": lambda: sock(16, socket.SOCK_RAW, 15),
    "netlink_netfilter": lambda: sock(16, socket.SOCK_RAW, 12),
    "bluetooth": lambda: sock(31),
    "can": lambda: sock(29),
    "tipc": lambda: sock(30, socket.SOCK_SEQPACKET),
    "xdp": lambda: sock(44),
    "pair_of_unix": lambda: pair(1),
    "pair_of_packet": lambda: pair(17, socket.SOCK_RAW),
    "pair_of_alg": lambda: pair(38, socket.SOCK_SEQPACKET),
    "pair_of_vsock": lambda: pair(40),
    "pair_of_bluetooth": lambda: pair(31, socket.SOCK_RAW),
    "pair_of_can": lambda: pair(29, socket.SOCK_RAW),
    "pair_of_tipc": lambda: pair(30, socket.SOCK_SEQPACKET),
    "pair_of_xdp": lambda: pair(44, socket.SOCK_RAW),
    # 16
    "init_module": lambda: call("init_module", 0, 0, b""),
    "finit_module": lambda: call("finit_module", 0, b"", 0),
    "delete_module": lambda: call("delete_module", b"no-such-module-of-roost", 0),
    "bpf": bpf,
    "perf": perf,
    "io_uring": ring,
    "userfaultfd": lambda: call("userfaultfd", 0),
    "keyctl": lambda: call("keyctl", 0, -3, 0, 0, 0),
    "add_key": lambda: call("add_key", b"user", b"roost", b"x", 1, -3),
    "kexec": lambda: call("kexec_load", 0, 1, 0, 0),
    "reboot": lambda: call("reboot", 0xDEAD, 0, 0, 0),
    "swapon": lambda: call("swapon", b"/no-such-file", 0),
    "acct": lambda: call("acct", b"/no-such-file"),
    "syslog": lambda: call("syslog", 2, 0, 0),
    "clock": lambda: call("clock_settime", 0, struct.pack("qq", int(time.time()), 0)),
}


def attempt(probe):
    """In a child, for what it does to itself."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            PROBES[probe]()
            said = "done"
        except OSError as exc:
            said = errno.errorcode.get(exc.errno, str(exc.errno))
        except BaseException as exc:
            said = type(exc).__name__
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return said or f"ended by {status}"


if __name__ == "__main__":
    print(json.dumps({probe: attempt(probe) for probe in json.load(sys.stdin)}))
