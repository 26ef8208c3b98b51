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
    "AsyncBuild": "roost.client._async",
    "AsyncClient": "roost.client._async",
    "AsyncExecution": "roost.client._async",
    "AsyncExecStream": "roost.client._async",
    "AsyncMachine": "roost.client._async",
    "AsyncSnapshot": "roost.client._async",
    "AsyncTemplate": "roost.client._async",
    "AsyncTerminal": "roost.client._async",
    "AsyncVolume": "roost.client._async",
    "Build": "roost.client._sync",
    "async_explore": "roost.client._async:explore",
    "Client": "roost.client._sync",
    "Execution": "roost.client._sync",
    "ExecStream": "roost.client._sync",
    "Machine": "roost.client._sync",
    "Snapshot": "roost.client._sync",
    "Template": "roost.client._sync",
    "Terminal": "roost.client._sync",
    "Volume": "roost.client._sync",
    "BrowserPage": "roost.client._results",
    "CodeError": "roost.client._results",
    "CodeFailed": "roost.client._results",
    "CodeOutput": "roost.client._results",
    "CodeResult": "roost.client._results",
    "CodeTimeout": "roost.client._results",
    "Window": "roost.client._results",
    "explore": "roost.client._sync",
    "Diff": "roost.client._diff",
    "Difference": "roost.client._diff",
    "DiffSide": "roost.client._diff",
    "Attempt": "roost.client._explored",
    "Explored": "roost.client._explored",
    "Chunk": "roost.client._types",
    "CommandFailed": "roost.client._types",
    "Egress": "roost.client._types",
    "EgressDecision": "roost.client._types",
    "EgressPolicy": "roost.client._types",
    "ExecExit": "roost.client._types",
    "ExecResult": "roost.client._types",
    "ExecTimeout": "roost.client._types",
    "FileEvent": "roost.client._types",
    "FileInfo": "roost.client._types",
    "Secret": "roost.client._types",
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
    "AsyncBuild",
    "AsyncClient",
    "AsyncExecStream",
    "AsyncExecution",
    "AsyncMachine",
    "AsyncSnapshot",
    "AsyncTemplate",
    "AsyncTerminal",
    "AsyncVolume",
    "Attempt",
    "AuthError",
    "BrowserPage",
    "Build",
    "CapacityError",
    "Chunk",
    "Client",
    "CodeError",
    "CodeFailed",
    "CodeOutput",
    "CodeResult",
    "CodeTimeout",
    "CommandFailed",
    "ConflictError",
    "Diff",
    "DiffSide",
    "Difference",
    "Egress",
    "EgressDecision",
    "EgressPolicy",
    "ExecExit",
    "ExecResult",
    "ExecStream",
    "ExecTimeout",
    "Execution",
    "Explored",
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
    "Secret",
    "Snapshot",
    "Template",
    "Terminal",
    "TimeoutExpired",
    "UnavailableError",
    "UnsupportedError",
    "Volume",
    "Window",
    "__version__",
    "async_explore",
    "explore",
]

if TYPE_CHECKING:
    from roost.client._async import (
        AsyncBuild,
        AsyncClient,
        AsyncExecStream,
        AsyncExecution,
        AsyncMachine,
        AsyncSnapshot,
        AsyncTemplate,
        AsyncTerminal,
        AsyncVolume,
    )
    from roost.client._async import explore as async_explore
    from roost.client._diff import Diff, Difference, DiffSide
    from roost.client._explored import Attempt, Explored
    from roost.client._results import (
        BrowserPage,
        CodeError,
        CodeFailed,
        CodeOutput,
        CodeResult,
        CodeTimeout,
        Window,
    )
    from roost.client._sync import (
        Build,
        Client,
        ExecStream,
        Execution,
        Machine,
        Snapshot,
        Template,
        Terminal,
        Volume,
        explore,
    )
    from roost.client._types import (
        Chunk,
        CommandFailed,
        Egress,
        EgressDecision,
        EgressPolicy,
        ExecExit,
        ExecResult,
        ExecTimeout,
        FileEvent,
        FileInfo,
        Secret,
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
    module, _, attribute = home.partition(":")
    value = getattr(import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
