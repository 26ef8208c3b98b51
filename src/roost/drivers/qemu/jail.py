"""Where a VMM runs: with nothing of the host's but what it needs, as a user that owns nothing.

```
thread of the daemon --unshare mount, pid, ipc, uts; enter the machine's network namespace
                     --root: the runtime directory, read-only; the guest's or the snapshot's files in it
                     --user and group of the machine's own, no capabilities, no_new_privs
                     '-> exec: the VMM is PID 1 of its namespace, with the descriptors it was given
```
Users, namespaces and roots are the kernel's properties of a thread, so one thread of the daemon becomes what
the VMM shall be and starts it; no helper program, and no fork that copies the daemon's page tables. Nothing in the
jail can be written: disks, sockets and files to save to come as descriptors.

The VMM lives on when the daemon ends: nobody's death signal is its own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roost.host import syscalls

_READ_ONLY = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
_ENVIRONMENT = {"LC_ALL": "C", "G_SLICE": "always-malloc"}


@dataclass(frozen=True, slots=True)
class Jail:
    root: Path  # a runtime's
    uid: int
    netns: Path | None  # None: an empty one
    files: Mapping[str, Path] = field(default_factory=dict)  # name in the root -> source


def enter(jail: Jail) -> None:
    """Irrevocably, for a thread with a mount table of its own (``apart.run``) that then only calls
    ``spawn``. Raises OSError."""
    if jail.netns is None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
    else:
        syscalls.join(jail.netns, syscalls.CLONE_NEWNET)
    _bind(jail.root, jail.root, syscalls.MS_REC)
    for name, source in jail.files.items():
        _bind(source, jail.root / name)
        _seal(jail.root / name, syscalls.MS_NOEXEC)
    _seal(jail.root)
    os.chdir(jail.root)
    syscalls.unshare(syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWPID)
    last = syscalls.last_capability()  # of /proc, which the jail has not
    # The old root lands on top of the new one, and goes from there (pivot_root(2), NOTES).
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    syscalls.drop_privileges(jail.uid, last)


def _bind(source: Path, target: Path, flags: int = 0) -> None:
    syscalls.mount(source, target, None, syscalls.MS_BIND | flags)


def _seal(target: Path, flags: int = 0) -> None:
    syscalls.mount(None, target, None, syscalls.MS_BIND | syscalls.MS_REMOUNT | _READ_ONLY | flags)


def spawn(argv: Sequence[str], fds: Sequence[int], output: int) -> int:
    """The VMM's pid. ``fds`` keep their numbers; ``output`` becomes its standard output and error."""
    process = subprocess.Popen(
        argv,
        stdin=output,
        stdout=output,
        stderr=output,
        pass_fds=fds,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,  # a terminal's interrupt of the daemon is not for machines
    )
    # Whoever watches it by its pidfd reaps it; subprocess must not.
    process.returncode = 0
    return process.pid
