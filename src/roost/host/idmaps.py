"""Numbers of users and groups that a machine's own stand for on the host.

A machine whose kernel is the host's counts its users from 0, as every system does; on the host these are the
numbers of a block that is nobody else's, as far as the host tells. Its user namespace says so for its processes, and
mounts that are shown by the same namespace say so for its files: on disk there are only the machine's own numbers, so a
disk is any machine's and nothing is ever chowned.

The namespace is made by the block's first number, not by root, since the kernel counts what a namespace uses of
limits per user (inotify, pending signals, message queues, ...) for its maker, too: these are the machine's own then.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roost.host import processes, syscalls

COUNT = 65536  # what distributions count on: 65534 is nobody
DEFAULT_BASE = 0x2000_0000
LAST = 0x6000_0000  # before the numbers of our own processes and of VMMs
_NS_GET_USERNS = 0xB701
_NS_GET_OWNER_UID = 0xB704
_KEPT = "-all,+sys_admin"  # for kernels that let only root make user namespaces


@dataclass(frozen=True, slots=True)
class Block:
    first: int
    count: int = COUNT

    @property
    def mappings(self) -> list[dict[str, int]]:
        """As an OCI bundle says it."""
        return [{"containerID": 0, "hostID": self.first, "size": self.count}]

    def overlaps(self, other: Block) -> bool:
        return self.first < other.first + other.count and other.first < self.first + self.count


def block(index: int, base: int = DEFAULT_BASE) -> Block:
    """Of the machine in slot ``index``."""
    if not 0 <= index < capacity(base):
        raise ValueError(f"there is no block {index} from {base}")
    return Block(base + index * COUNT)


def capacity(base: int = DEFAULT_BASE) -> int:
    """How many blocks there are from ``base``."""
    return max(0, LAST - base) // COUNT


def others(base: int) -> set[int]:
    """Indices of the blocks from ``base`` of which somebody has a number by now, machines' own programs among them: by
    files that give out numbers, or by running under one. Whom a directory alone knows (LDAP, SSSD) is seen once
    he runs something. Blocking: 25 µs a process."""
    if why_not() is not None:  # then no machine is given any
        return set()
    last = base + COUNT * capacity(base) - 1
    held = [(begin, end) for _, begin, end in _given_out(base, last)]
    held += [(each, each) for each in processes.numbered(range(base, last + 1)).values()]
    found: set[int] = set()
    for begin, end in held:
        found.update(
            range((max(begin, base) - base) // COUNT, (min(end, last) - base) // COUNT + 1)
        )
    return found


def taken(first: int, last: int) -> list[str]:
    """Who else on this host has numbers of that range, as the files that give them out and processes say."""
    found = [text for text, _, _ in _given_out(first, last)]
    for pid, number in processes.numbered(range(first, last + 1)).items():
        with contextlib.suppress(OSError):
            if not processes.is_grouped(pid):
                found.append(f"{number} (process {pid})")
    return found


def _given_out(first: int, last: int) -> list[tuple[str, int, int]]:
    """Whose, from, to."""
    found = []
    for path, number, count in (
        ("/etc/passwd", 2, None),
        ("/etc/group", 2, None),
        ("/etc/subuid", 1, 2),
        ("/etc/subgid", 1, 2),
    ):
        with contextlib.suppress(OSError):
            for line in Path(path).read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, IndexError):
                    fields = line.split(":")
                    begin = int(fields[number])
                    end = begin if count is None else begin + int(fields[count]) - 1
                    if begin <= last and end >= first:
                        found.append((f"{fields[0]}'s {begin}-{end} ({path})", begin, end))
    return found


def members(of: Block) -> set[int]:
    """Live processes in a user namespace of that block, but for those of machines' groups: another daemon of this host
    may have given the same to one of its own."""
    return {pid for pid in processes.everyone() if is_member(pid, of)}


def is_member(pid: int, of: Block) -> bool:
    """Whether it is one of the ``members``. The map alone does not tell: who else takes blocks of 65,536 (systemd-nspawn)
    may have come upon the same. The maker does: ours are made by the block's own first number, theirs by root, and a user
    of that number may not map so many."""
    process = Path(f"/proc/{pid}")
    try:
        if (process / "uid_map").read_text().split() != ["0", str(of.first), str(of.count)]:
            return False
        with open(process / "ns/user") as namespace:
            made_by = maker_of(namespace.fileno())
        return (
            made_by == of.first
            and processes.start_ticks(pid) is not None
            and not processes.is_grouped(pid)
        )
    except OSError:
        return False


@contextlib.contextmanager
def namespaces(of: Block) -> Iterator[Path]:
    """``/proc/PID/ns`` of a process with a user namespace of that block, and a network namespace that belongs to it:
    root of the machine is root of that network, too. They go with the process, the end of the block, unless somebody
    holds them. Raises OSError."""
    argv = [
        "setpriv",
        f"--reuid={of.first}",
        f"--regid={of.first}",
        "--clear-groups",
        f"--inh-caps={_KEPT}",
        f"--ambient-caps={_KEPT}",
        "--no-new-privs",
        "unshare",
        "--user",
        "--net",
        "cat",
    ]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
            if process.stdout.read(1) != b"\n":  # it stands where it was sent to
                assert process.stderr is not None
                said = process.stderr.read(500).decode(errors="replace").strip()
                raise OSError(f"no user namespace can be made: {said}")
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text(f"0 {of.first} {of.count}\n")
            yield Path(f"/proc/{process.pid}/ns")
        finally:
            process.kill()


def why_not() -> str | None:
    """None where this host makes such namespaces, as far as its root can tell; once it did it does. Blocking."""
    if os.geteuid() != 0:
        return None
    try:
        _made_once()
    except OSError as exc:
        return str(exc)
    return None


@functools.cache
def _made_once() -> None:
    with namespaces(block(0)):
        pass


def owner_of(namespace: int) -> int | None:
    """The user namespace (a descriptor of it) that the namespace of that descriptor belongs to; None where that is
    the host's own."""
    fd = fcntl.ioctl(namespace, _NS_GET_USERNS)
    with open("/proc/self/ns/user") as own:
        if os.fstat(fd).st_ino == os.fstat(own.fileno()).st_ino:
            os.close(fd)
            return None
    return fd


def maker_of(user_namespace: int) -> int:
    """The number of whoever made it."""
    found = ctypes.c_uint32()
    fcntl.ioctl(user_namespace, _NS_GET_OWNER_UID, found)
    return found.value


def show(source: Path, target: Path, user_namespace: int, *, attributes: int = 0) -> None:
    """What is mounted at ``source`` once more at ``target``, its files' owners by the numbers of that namespace.
    ``attributes``: more of ``MOUNT_ATTR_*``. In the calling thread's mount table. Raises OSError: EINVAL for a
    file system that cannot."""
    tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(
            tree,
            attr_set=syscalls.MOUNT_ATTR_IDMAP | attributes,
            user_namespace=user_namespace,
        )
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)
