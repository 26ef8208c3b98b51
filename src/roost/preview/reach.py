"""Into a machine: what ``services.doors`` opened, as a protocol of this loop's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from roost.agent.streams import DialStream
from roost.preview.stream import StreamTransport
from roost.services.doors import Doors
from roost.services.models import Live

P = TypeVar("P", bound=asyncio.Protocol)


async def connect(doors: Doors, live: Live, port: int, make: Callable[[], P]) -> P:
    """Connected. Raises what ``Doors.reach`` raises."""
    found = await doors.reach(live, port)
    if isinstance(found, DialStream):
        protocol = make()
        StreamTransport(found, protocol)
        return protocol
    try:
        _, protocol = await asyncio.get_running_loop().create_connection(make, sock=found)
    except BaseException:
        found.close()
        raise
    return protocol
