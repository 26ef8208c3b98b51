"""The SDK's objects; see ``roost.client``."""

from roost.client._async._client import AsyncClient
from roost.client._async._executions import AsyncExecution
from roost.client._async._explore import explore
from roost.client._async._machine import AsyncMachine
from roost.client._async._snapshot import AsyncSnapshot
from roost.client._async._stream import AsyncExecStream
from roost.client._async._template import AsyncBuild, AsyncTemplate
from roost.client._async._terminal import AsyncTerminal
from roost.client._async._volume import AsyncVolume

__all__ = [
    "AsyncBuild",
    "AsyncClient",
    "AsyncExecStream",
    "AsyncExecution",
    "AsyncMachine",
    "AsyncSnapshot",
    "AsyncTemplate",
    "AsyncTerminal",
    "AsyncVolume",
    "explore",
]
