"""Work that cannot be stopped in its midst, or must not be: whoever is cancelled waits for its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T], undo: Callable[[T], Awaitable[object]] | None = None) -> T:
    """What it returns, or raises. Cancelled meanwhile, however often: once it has ended, and what it did is undone, is
    the cancellation raised; what went wrong with the work is then nobody's any more."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as caught:
            cancelled = caught
    if cancelled is None:
        return task.result()
    if not task.cancelled() and task.exception() is None and undo is not None:
        await to_the_end(undo(task.result()))
    raise cancelled
