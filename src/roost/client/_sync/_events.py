"""Server-sent events of one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from roost.client._sync._http import HTTP
from roost.client._wire import Event, EventDecoder

# The daemon sends a comment every 15 s; three of them missing is a dead connection.
SILENCE_S = 45.0


def events(
    http: HTTP, method: str, path: str, *, timeout: float | None = SILENCE_S, **options: Any
) -> Iterator[Event]:
    """Events until the answer ends. Raises RoostError, also where the connection breaks."""
    decoder = EventDecoder()
    headers = {"Accept": "text/event-stream", **options.pop("headers", {})}
    with http.stream(method, path, headers=headers, timeout=timeout, **options) as response:
        for chunk in response.iter_raw():
            yield from decoder.feed(chunk)
