"""Processes that may not be our children: identity, end, reaping."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path


@functools.cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None where there is no such process, or only its zombie."""
    fields = _stat(pid)
    # With its first thread gone it shows as a zombie, whatever the others do.
    if fields is None or (fields[0] in ("Z", "X") and int(fields[17]) <= 1):
        return None
    return int(fields[19])


def begun(pid: int) -> int | None:
    """As ``start_ticks``, also of one that has ended and waits to be reaped."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def parent(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def tree(top: int, among: set[int]) -> set[int]:
    """``top`` and all that descends from it within ``among``."""
    return trees([top], among)


def trees(tops: Iterable[int], among: set[int]) -> set[int]:
    below: dict[int, list[int]] = {}
    for pid in among:
        if (above := parent(pid)) is not None:
            below.setdefault(above, []).append(pid)
    found: set[int] = set()
    todo = [*tops]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += below.get(pid, ())
    return found


def number_inside(pid: int) -> int | None:
    """What a process is called in the innermost of its pid namespaces; None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    # A name, its line feeds escaped, can forge no line; other marks that end lines for splitlines() it can hold.
    line = next((line for line in text.split("\n") if line.startswith("NSpid:")), None)
    return None if line is None else int(line.split()[-1])


def is_killed(pid: int) -> bool:
    """Whether SIGKILL waits for it to be thawed (v1's freezer holds even that back)."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    pending = [line for line in text.split("\n") if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(int(line.split()[1], 16) >> (signal.SIGKILL - 1) & 1 for line in pending)


def _stat(pid: int) -> list[str] | None:
    """Fields from the third on: a process's name can hold anything, parentheses included."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def is_same(pid: int, ticks: int, boot: str) -> bool:
    return boot == boot_id() and start_ticks(pid) == ticks


def open_pidfd(pid: int, ticks: int) -> int | None:
    """A descriptor of exactly that process; None where it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_ticks(pid) != ticks:
        os.close(fd)
        return None
    return fd


def wait_pidfds(fds: list[int], timeout_s: float) -> bool:
    """Blocks until all have ended; False at the deadline."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    left = set(fds)
    deadline = time.monotonic() + timeout_s
    while left:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        for fd, _ in poll.poll(remaining * 1000):
            poll.unregister(fd)
            left.discard(fd)
    return True


async def ended(fd: int) -> None:
    """Until the process behind the pidfd has ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(fd, ready)
    try:
        await future
    finally:
        loop.remove_reader(fd)


def jailed(uid: int) -> set[int]:
    """Live processes that run as that user with numbers of processes of their own, but for those of machines' groups:
    root in a container without a user namespace can be whomever it likes."""
    return {pid for pid in everyone() if is_jailed(pid, uid)}


def is_jailed(pid: int, uid: int) -> bool:
    """Whether it is one of the ``jailed``."""
    with contextlib.suppress(OSError):
        # Not the directory's owner, which a process can have hidden.
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        return (
            f"\nUid:\t{uid}\t" in status
            and not _ended(status)
            and not is_grouped(pid)
            and not _shares(pid, "pid")
            and _shares(pid, "user")
        )
    return False


def _shares(pid: int, namespace: str) -> bool:
    return os.path.samestat(*(os.stat(f"/proc/{each}/ns/{namespace}") for each in (pid, "self")))


def numbered(numbers: range) -> dict[int, int]:
    """Live processes of which any user or group (real, effective, saved, of files) is one of these: which."""
    found = {}
    for pid in everyone():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
            told = status.partition("\nUid:\t")[2].partition("\nFDSize:")[0]
            number = next(
                (n for n in map(int, told.replace("Gid:", "").split()) if n in numbers), None
            )
            if number is not None and not _ended(status):
                found[pid] = number
    return found


def _ended(status: str) -> bool:
    return "\nState:\tZ" in status and "\nThreads:\t1\n" in status


def is_grouped(pid: int) -> bool:
    """Whether it is in a machine's group, of whichever daemon. Raises OSError."""
    return "/roost-" in Path(f"/proc/{pid}/cgroup").read_text(errors="replace")


def reap(pid: int) -> tuple[int | None, int | None] | None:
    """(exit code, signal) of a child of ours that has ended; None where it is not ours to reap."""
    with contextlib.suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return None, os.WTERMSIG(status)
            return os.WEXITSTATUS(status), None
    return None


def kill(pid: int, ticks: int) -> None:
    fd = open_pidfd(pid, ticks)
    if fd is not None:
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def everyone() -> set[int]:
    return {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()}


def marked(variable: str) -> set[int]:
    """Processes that were started with this variable (``NAME=value``) in their environment, as far as it can be seen."""
    mark = b"\0" + os.fsencode(variable) + b"\0"
    found = set()
    for pid in everyone():
        with contextlib.suppress(OSError):
            if mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                found.add(pid)
    return found


def called(*words: str) -> set[int]:
    """Processes on whose command line these words follow one another."""
    told = b"".join(b"\0" + os.fsencode(word) for word in words) + b"\0"
    found = set()
    for pid in everyone():
        with contextlib.suppress(OSError):
            if told in b"\0" + Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def tasks_of(uid: int) -> int:
    """Threads of a user, as the kernel counts them against its limit of processes."""
    count = 0
    for pid in everyone():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{pid}/status").read_text(errors="replace").split("\n")
                if line.startswith(("Uid:", "Threads:"))
            )
            if int(fields["Uid"].split()[0]) == uid:
                count += int(fields["Threads"])
    return count


def consumed(pids: set[int]) -> tuple[int, int]:
    """(CPU time in microseconds, those ended and waited for included; resident bytes) of these processes."""
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    cpu = memory = 0
    for pid in pids:
        fields = _stat(pid)
        if fields is not None and len(fields) > 21:
            cpu += sum(int(each) for each in fields[11:15])
            memory += int(fields[21]) * page
    return cpu * 1_000_000 // ticks, memory
