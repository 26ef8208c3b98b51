"""The few things that differ by nature between the async and the sync half. Written by hand in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

sleep = asyncio.sleep


async def in_thread(call: Callable[..., T], *args: object) -> T:
    """Runs what blocks on this machine's disk without holding up the loop."""
    return await asyncio.to_thread(call, *args)


async def from_iterator(source: Iterator[bytes]) -> AsyncIterator[bytes]:
    """An iterator that may block on the disk, as one that may be awaited."""
    while (chunk := await asyncio.to_thread(next, source, None)) is not None:
        yield chunk


def scope() -> object:
    """What a default client belongs to: connections do not outlive their event loop."""
    return asyncio.get_running_loop()
