"""Server-sent events of one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from roost.client._async._http import AsyncHTTP
from roost.client._wire import Event, EventDecoder

# The daemon sends a comment every 15 s; three of them missing is a dead connection.
SILENCE_S = 45.0


async def events(
    http: AsyncHTTP, method: str, path: str, *, timeout: float | None = SILENCE_S, **options: Any
) -> AsyncIterator[Event]:
    """Events until the answer ends. Raises RoostError, also where the connection breaks."""
    decoder = EventDecoder()
    headers = {"Accept": "text/event-stream", **options.pop("headers", {})}
    async with http.stream(method, path, headers=headers, timeout=timeout, **options) as response:
        async for chunk in response.aiter_raw():
            for event in decoder.feed(chunk):
                yield event
