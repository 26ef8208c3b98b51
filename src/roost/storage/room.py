"""Room of the pool, asked for by threads that write into it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

Room = Callable[[int], None]  # for so many bytes more, before they are written; raises STORAGE_FULL


@contextlib.contextmanager
def asked(
    require: Callable[[int], Coroutine[Any, Any, None]], left: Callable[[], Exception]
) -> Iterator[Room]:
    """To be called in a thread, as long as this lasts; later it raises what ``left`` makes, for nobody waits then."""
    loop, gone = asyncio.get_running_loop(), threading.Event()

    def room(count: int) -> None:
        if gone.is_set():
            raise left()
        asyncio.run_coroutine_threadsafe(require(count), loop).result()

    try:
        yield room
    finally:
        gone.set()
