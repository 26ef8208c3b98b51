"""Roost: a machine for every agent to come home to.

    from roost import Machine

    with Machine.create(template="base", ttl="15m") as m:
        print(m.exec("uname -a").stdout)

The names below are the whole public surface; each is imported when it is first used, so that
``import roost`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "roost.client._async",
    "AsyncExecution": "roost.client._async",
    "AsyncExecStream": "roost.client._async",
    "AsyncMachine": "roost.client._async",
    "AsyncSnapshot": "roost.client._async",
    "AsyncTerminal": "roost.client._async",
    "Client": "roost.client._sync",
    "Execution": "roost.client._sync",
    "ExecStream": "roost.client._sync",
    "Machine": "roost.client._sync",
    "Snapshot": "roost.client._sync",
    "Terminal": "roost.client._sync",
    "Chunk": "roost.client._types",
    "CommandFailed": "roost.client._types",
    "ExecExit": "roost.client._types",
    "ExecResult": "roost.client._types",
    "ExecTimeout": "roost.client._types",
    "FileEvent": "roost.client._types",
    "FileInfo": "roost.client._types",
    "AuthError": "roost.errors",
    "CapacityError": "roost.errors",
    "ConflictError": "roost.errors",
    "ForbiddenError": "roost.errors",
    "InternalError": "roost.errors",
    "InvalidRequestError": "roost.errors",
    "LimitError": "roost.errors",
    "MachineError": "roost.errors",
    "NotFoundError": "roost.errors",
    "RoostError": "roost.errors",
    "TimeoutExpired": "roost.errors",
    "UnavailableError": "roost.errors",
    "UnsupportedError": "roost.errors",
}

__all__ = [
    "AsyncClient",
    "AsyncExecStream",
    "AsyncExecution",
    "AsyncMachine",
    "AsyncSnapshot",
    "AsyncTerminal",
    "AuthError",
    "CapacityError",
    "Chunk",
    "Client",
    "CommandFailed",
    "ConflictError",
    "ExecExit",
    "ExecResult",
    "ExecStream",
    "ExecTimeout",
    "Execution",
    "FileEvent",
    "FileInfo",
    "ForbiddenError",
    "InternalError",
    "InvalidRequestError",
    "LimitError",
    "Machine",
    "MachineError",
    "NotFoundError",
    "RoostError",
    "Snapshot",
    "Terminal",
    "TimeoutExpired",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
]

if TYPE_CHECKING:
    from roost.client._async import (
        AsyncClient,
        AsyncExecStream,
        AsyncExecution,
        AsyncMachine,
        AsyncSnapshot,
        AsyncTerminal,
    )
    from roost.client._sync import Client, ExecStream, Execution, Machine, Snapshot, Terminal
    from roost.client._types import (
        Chunk,
        CommandFailed,
        ExecExit,
        ExecResult,
        ExecTimeout,
        FileEvent,
        FileInfo,
    )
    from roost.errors import (
        AuthError,
        CapacityError,
        ConflictError,
        ForbiddenError,
        InternalError,
        InvalidRequestError,
        LimitError,
        MachineError,
        NotFoundError,
        RoostError,
        TimeoutExpired,
        UnavailableError,
        UnsupportedError,
    )


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'roost' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
