"""Threads with a mount table of their own.

What is mounted on the host's table is copied into every mount namespace that anybody makes meanwhile, and
stays mounted there whatever the host does later. So machines' disks are only ever mounted apart: nobody
else sees them, and the kernel takes them away with the last process that uses them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from roost.host import syscalls

T = TypeVar("T")


def enter() -> None:
    """The calling thread leaves the host's mount table for a copy: what the host unmounts later goes
    here too, what is mounted here is seen by nobody else. Only for a thread that ends afterwards."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)


def run(function: Callable[[], T]) -> T:
    """In such a thread, to its end."""
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            enter()
            done.append(function())
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=body, name="apart", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
