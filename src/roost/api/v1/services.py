"""What the API calls."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from roost.gateway.app import Caller
from roost.gateway.metrics import Metrics
from roost.services.executions import Executions
from roost.services.files import Files
from roost.services.host import Host
from roost.services.keys import Keys
from roost.services.machines import Machines
from roost.services.snapshots import Snapshots
from roost.services.templates import Templates
from roost.services.terminals import Terminals
from roost.services.usage import Usage


@dataclass(frozen=True, slots=True)
class Services:
    machines: Machines
    snapshots: Snapshots
    executions: Executions
    terminals: Terminals
    files: Files
    templates: Templates
    keys: Keys
    host: Host
    usage: Usage
    metrics: Metrics


def caller(connection: HTTPConnection) -> Caller:
    """Who asks, as the gateway found."""
    found = connection.scope["roost"]
    assert isinstance(found, Caller)
    return found


def tenant(connection: HTTPConnection) -> str:
    return caller(connection).tenant


def key_id(connection: HTTPConnection) -> str | None:
    """Of the key the caller came with."""
    principal = caller(connection).principal
    return None if principal is None else principal.key_id
