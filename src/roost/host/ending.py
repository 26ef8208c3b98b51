"""Ending all processes of a machine, however they came to be its own."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Collection

from roost.errors import InternalError
from roost.host import idmaps, processes
from roost.host.cgroups import Cgroups

_AGAIN_S = 1.0
_PAUSE_S = 0.005


def end_group(groups: Cgroups, name: str, timeout_s: float) -> None:
    """All that is in the group, and returns when it has ended (zombies may be left to be reaped). Raises
    InternalError at the deadline."""
    _end(lambda: groups.procs(name), lambda pids: groups.kill(name), name, timeout_s)


def end_user(uid: int, timeout_s: float) -> None:
    """All in a jail of a user that is one machine's own. Who runs under the number as everybody on the host, or in a
    user namespace, is a directory's user who has the same."""
    is_one = functools.partial(processes.is_jailed, uid=uid)
    _end(lambda: processes.jailed(uid), lambda pids: _kill(pids, is_one), f"user {uid}", timeout_s)


def end_users(of: idmaps.Block, timeout_s: float) -> None:
    """All that still runs in the user namespace of a block that was one machine's own, once its group is empty: first steps
    of a runtime whose daemon died before they were put into the group.

    By the namespace, not by the number: under a number of the block a directory's user may run, or a container that came
    upon the same, in the host's own user namespace or in one that somebody else made. A machine's programs are in the one
    that was made for its slot, which a runtime joins before it becomes any of its numbers, and which they can neither
    leave nor make another in. Of a unit of systemd's, in none of ours, its group is all there is. Where somebody runs on
    under a number all the same, the block is given to no machine (``idmaps.others``)."""
    is_one = functools.partial(idmaps.is_member, of=of)
    what = f"users {of.first} to {of.first + of.count - 1}"
    _end(lambda: idmaps.members(of), lambda pids: _kill(pids, is_one), what, timeout_s)


def _end(
    find: Callable[[], Collection[int]],
    kill: Callable[[Collection[int]], None],
    what: str,
    timeout_s: float,
) -> None:
    deadline = time.monotonic() + timeout_s
    while pids := find():
        fds = [fd for pid in pids if (fd := _pidfd(pid)) is not None]
        try:
            kill(pids)
            # Again after a while: whoever froze it at that very moment holds the blow back.
            processes.wait_pidfds(fds, min(_AGAIN_S, max(0.0, deadline - time.monotonic())))
        finally:
            for fd in fds:
                os.close(fd)
        for pid in pids:
            processes.reap(pid)
        if time.monotonic() > deadline:
            raise InternalError(
                f"Processes of {what} do not end; look at them with `ps` ({sorted(pids)[:5]}).",
                retryable=True,
            )


def _kill(pids: Collection[int], is_one: Callable[[int], bool]) -> None:
    for pid in pids:
        fd = _pidfd(pid)
        if fd is not None:
            try:
                if is_one(pid):  # and nobody who got its number since
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(fd)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def end_trees(tops: Collection[int], mark: str, timeout_s: float) -> None:
    """Without a group to find them by: these processes, what descends from them, and what was started with the variable
    ``mark``. All are stopped until no new one turns up, so that none forks on while others die. Raises InternalError at
    the deadline."""
    deadline = time.monotonic() + timeout_s
    known: dict[int, int] = {pid: ticks for pid in tops if (ticks := processes.begun(pid))}
    while _spread(known, mark):
        _signal(known, signal.SIGSTOP)
        if time.monotonic() > deadline:
            break
    while living := {
        pid: ticks for pid, ticks in known.items() if processes.start_ticks(pid) == ticks
    }:
        _signal(living, signal.SIGKILL)
        for pid in living:
            processes.reap(pid)
        if time.monotonic() > deadline:
            raise InternalError(
                f"Processes do not end; look at them with `ps` ({sorted(living)[:5]}).",
                retryable=True,
            )
        time.sleep(_PAUSE_S)
        _spread(known, mark)
    for pid, ticks in known.items():
        if processes.begun(pid) == ticks:  # its parent gone, it may be left to us
            processes.reap(pid)


def _spread(known: dict[int, int], mark: str) -> bool:
    """Whether there are more of them than ``known``, in which they are then: also those that only wait to be reaped."""
    everyone = processes.everyone()
    found = processes.marked(mark) if mark else set()
    # Another may have one's number by now.
    found |= processes.trees(
        (pid for pid, ticks in known.items() if processes.begun(pid) == ticks), everyone
    )
    fresh = {
        pid: ticks for pid in found if (ticks := processes.begun(pid)) and known.get(pid) != ticks
    }
    known.update(fresh)
    return bool(fresh)


def _signal(them: dict[int, int], number: signal.Signals) -> None:
    for pid, ticks in them.items():
        fd = processes.open_pidfd(pid, ticks)
        if fd is not None:
            try:
                signal.pidfd_send_signal(fd, number)
            except (ProcessLookupError, PermissionError):
                pass
            finally:
                os.close(fd)
