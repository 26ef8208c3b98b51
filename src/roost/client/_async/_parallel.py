"""Work side by side, in tasks here and in threads in the sync half. Written by hand in both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from roost.errors import error


async def side_by_side(jobs: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """All of them, so many at a time. Left early (cancelled, a job that raises) none goes on."""
    turns = asyncio.Semaphore(at_once)

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        async with turns:
            await job()

    tasks = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(work: Callable[[], Awaitable[None]]) -> None:
    """To its end, also when the caller is cancelled meanwhile; then that comes after it."""
    task = asyncio.ensure_future(work())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()
        raise


async def within(seconds: float | None, work: Callable[[], Any]) -> Any:
    """What it gives, awaited where it can be. Raises TimeoutExpired."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            made = work()
            if inspect.isawaitable(made):
                made = await made
            return made
    except TimeoutError as failure:
        if not limit.expired():  # its own
            raise
        raise error("TIMEOUT", f"It did not end within {seconds:g} s.") from failure
