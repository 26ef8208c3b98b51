"""Where skopeo runs: as a user that owns nothing, with an empty network namespace, the host's programs read-only, and one
directory of ours to write into. What it may know (credentials) lies on a tmpfs that nobody else sees and that goes with it.
"""

from __future__ import annotations

import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roost.host import apart, syscalls
from roost.network.netlink import Netlink

PROXY_PORT = 3128
WORK = "/work"
AUTH = "/home/auth.json"
_ROOT = Path("/mnt")  # covered in a mount table that nobody else has
_LOOPBACK = 1
# Programs, what they are linked with, and what they read to prove servers and to obey the operator's policy.
_SEEN = (
    *("usr", "bin", "sbin", "lib", "lib64", "dev/null", "dev/urandom"),
    *("etc/ssl", "etc/ca-certificates", "etc/containers", "etc/docker", "etc/hosts", "etc/ld.so.cache"),
    *("etc/nsswitch.conf", "etc/alternatives"),
)  # fmt: skip
_READ_ONLY = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | syscalls.MS_NOSUID
_LOOK_S = 0.2
_MAX_ERROR = 64 * 1024
_PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Order:
    argv: Sequence[str]
    uid: int
    work: Path | None = None  # is WORK inside, and its alone
    auth: bytes = field(default=b"{}", repr=False)
    loopback: Sequence[tuple[str, int]] = ()  # that get listeners, besides the proxy
    max_output: int = 4 << 20
    max_file: int = 4 << 20
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Done:
    code: int  # -1: it was ended
    output: bytes
    error: str
    why: str | None = None  # it was ended


# The sockets that the namespace listens on: the proxy's, and those of ``loopback`` in its order.
Ready = Callable[[list[socket.socket]], None]


def run(order: Order, ready: Ready, stop: threading.Event) -> Done:
    """Blocking. ``ready`` is called before the program starts. Raises OSError."""
    last = syscalls.last_capability()

    def inside() -> Done:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        with Netlink() as links:
            links.up(_LOOPBACK)
        ready([_listener("127.0.0.1", PROXY_PORT), *(_listener(*each) for each in order.loopback)])
        _furnish(order)
        syscalls.unshare(syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWPID)
        os.chdir(_ROOT)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        syscalls.drop_privileges(order.uid, last)
        return _follow(order, stop)

    return apart.run(inside)


def _listener(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind((host, port))
        sock.listen(64)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _furnish(order: Order) -> None:
    flags = syscalls.MS_NOSUID
    syscalls.mount("tmpfs", _ROOT, "tmpfs", flags, "size=32m,mode=0755")
    for name in ("dev", "etc", "var"):
        (_ROOT / name).mkdir()
        (_ROOT / name).chmod(0o755)  # whatever the daemon's umask is
    for name in _SEEN:
        source, target = Path("/") / name, _ROOT / name
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.exists():
            target.mkdir() if source.is_dir() else target.touch()
            syscalls.mount(source, target, None, syscalls.MS_BIND)
            if not name.startswith("dev/"):
                syscalls.mount(None, target, None, _READ_ONLY)
    for name in ("home", "tmp", "var/tmp"):
        path = _ROOT / name
        path.mkdir(mode=0o700)
        os.chown(path, order.uid, order.uid)
    auth = _ROOT / AUTH.lstrip("/")
    with os.fdopen(os.open(auth, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(order.auth)
    os.chown(auth, order.uid, order.uid)
    if order.work is not None:
        work = _ROOT / WORK.lstrip("/")
        work.mkdir()
        for path in (order.work, *order.work.rglob("*")):
            os.chown(path, order.uid, order.uid, follow_symlinks=False)
        syscalls.mount(order.work, work, None, syscalls.MS_BIND)


def _follow(order: Order, stop: threading.Event) -> Done:
    process = subprocess.Popen(
        order.argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/home",
            "TMPDIR": "/var/tmp",  # noqa: S108
            "LC_ALL": "C.UTF-8",
            "HTTP_PROXY": f"http://127.0.0.1:{PROXY_PORT}",
            "HTTPS_PROXY": f"http://127.0.0.1:{PROXY_PORT}",
            "GOMAXPROCS": "2",
        },
        start_new_session=True,
    )
    why: str | None = None
    output, error = bytearray(), bytearray()
    deadline = time.monotonic() + order.timeout_s
    try:
        for limit, most in (
            (resource.RLIMIT_FSIZE, order.max_file),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, _PROCESSES),
        ):
            resource.prlimit(process.pid, limit, (most, most))
        assert process.stdout is not None
        assert process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, output)
            selector.register(process.stderr, selectors.EVENT_READ, error)
            while selector.get_map() and why is None:
                for key, _ in selector.select(_LOOK_S):
                    piece = os.read(key.fd, 64 * 1024)
                    if not piece:
                        selector.unregister(key.fileobj)
                    key.data.extend(piece)
                del error[:-_MAX_ERROR]
                if len(output) > order.max_output:
                    why = "it said more than it can have to say"
                elif stop.is_set():
                    why = "it was cancelled"
                elif time.monotonic() > deadline:
                    why = f"it took more than {order.timeout_s:.0f} s"
    finally:
        # PID 1 of its namespace: whatever it started goes with it.
        if why is not None or process.poll() is None:
            try:
                process.wait(0.0 if why is not None else 5.0)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    code = process.returncode if why is None else -1
    return Done(code, bytes(output), error.decode(errors="replace"), why)


def available() -> bool:
    return shutil.which("skopeo") is not None
