"""The SDK's objects; see ``roost.client``."""

from roost.client._sync._client import Client
from roost.client._sync._executions import Execution
from roost.client._sync._explore import explore
from roost.client._sync._machine import Machine
from roost.client._sync._snapshot import Snapshot
from roost.client._sync._stream import ExecStream
from roost.client._sync._template import Build, Template
from roost.client._sync._terminal import Terminal
from roost.client._sync._volume import Volume

__all__ = [
    "Build",
    "Client",
    "ExecStream",
    "Execution",
    "Machine",
    "Snapshot",
    "Template",
    "Terminal",
    "Volume",
    "explore",
]
