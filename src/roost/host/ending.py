"""Ending all processes of a machine, however they came to be its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection

from roost.errors import InternalError
from roost.host import processes
from roost.host.cgroups import Cgroups

_AGAIN_S = 1.0


def end_group(groups: Cgroups, name: str, timeout_s: float) -> None:
    """All that is in the group, and returns when it has ended (zombies may be left to be reaped). Raises
    InternalError at the deadline."""
    _end(lambda: groups.procs(name), lambda pids: groups.kill(name), name, timeout_s)


def end_user(uid: int, timeout_s: float) -> None:
    """All that runs as a user that is one machine's own."""
    _end(lambda: processes.of_user(uid), _kill, f"user {uid}", timeout_s)


def end_users(uids: range, timeout_s: float) -> None:
    """All that still runs as any of a block of users that were one machine's own, once its group is empty."""
    what = f"users {uids.start} to {uids.stop - 1}"
    _end(lambda: processes.of_users(uids), _kill, what, timeout_s)


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


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        fd = _pidfd(pid)
        if fd is not None:
            try:
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
