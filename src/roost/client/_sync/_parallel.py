"""Work side by side, in threads here and in tasks in the async half. Written by hand in both.

Threads cannot be ended: whoever leaves early takes away what they work on (``_explore`` destroys the machines), which
ends them. None of them keeps the program from its end.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from roost.errors import error

T = TypeVar("T")


def side_by_side(jobs: Sequence[Callable[[], None]], at_once: int) -> None:
    """All of them, so many at a time. Left early (Ctrl-C, a job that raises) none is begun any more."""
    waiting = deque(jobs)
    failures: list[BaseException] = []
    over = threading.Event()
    left = min(at_once, len(jobs))
    lock = threading.Lock()

    def work() -> None:
        nonlocal left
        try:
            while not failures and not over.is_set():
                try:
                    job = waiting.popleft()
                except IndexError:
                    return
                job()
        except BaseException as failure:
            failures.append(failure)
            over.set()
        finally:
            with lock:
                left -= 1
                if left == 0:
                    over.set()

    if not jobs:
        return
    for number in range(left):
        threading.Thread(target=work, name=f"roost-explore-{number}", daemon=True).start()
    try:
        over.wait()
    finally:
        waiting.clear()
        over.set()
    if failures:
        raise failures[0]


def whole(work: Callable[[], None]) -> None:
    """To its end, also when Ctrl-C comes meanwhile; then that comes after it. A second one does not wait."""
    failures: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=do, name="roost-whole", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        thread.join()
        raise
    if failures:
        raise failures[0]


def within(seconds: float | None, work: Callable[[], T]) -> T:
    """What it gives. Raises TimeoutExpired, and then leaves it to itself."""
    if seconds is None:
        return work()
    made: list[T] = []
    failures: list[BaseException] = []

    def do() -> None:
        try:
            made.append(work())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=do, name="roost-within", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise error("TIMEOUT", f"It did not end within {seconds:g} s.")
    if failures:
        raise failures[0]
    return made[0]
