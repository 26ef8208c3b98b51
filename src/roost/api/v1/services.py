"""What the API calls."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from roost.errors import AuthError, ForbiddenError
from roost.gateway.app import Caller
from roost.gateway.metrics import Metrics
from roost.services.approvals import Approvals
from roost.services.audit import Audit
from roost.services.browser import Browser
from roost.services.build_files import BuildFiles
from roost.services.builds import Builds
from roost.services.code import Code
from roost.services.computer import Computer
from roost.services.diffs import Diffs
from roost.services.doors import Doors
from roost.services.exchange import Exchange
from roost.services.executions import Executions
from roost.services.files import Files
from roost.services.host import Host
from roost.services.keys import Keys
from roost.services.listening import ListeningPorts
from roost.services.machines import Machines
from roost.services.models import Principal, Role
from roost.services.policies import Policies
from roost.services.ports import Ports
from roost.services.promotions import Promotions
from roost.services.secrets import Secrets
from roost.services.snapshots import Snapshots
from roost.services.ssh_keys import SshAddress, SshKeys
from roost.services.templates import Templates
from roost.services.tenants import Tenants
from roost.services.terminals import Terminals
from roost.services.tickets import Tickets
from roost.services.toolsets import Toolsets
from roost.services.transfer import Transfers
from roost.services.trees import Trees
from roost.services.usage import Usage
from roost.services.volume_files import VolumeFiles
from roost.services.volumes import Volumes


@dataclass(frozen=True, slots=True)
class Services:
    machines: Machines
    snapshots: Snapshots
    volumes: Volumes
    volume_files: VolumeFiles
    executions: Executions
    approvals: Approvals
    terminals: Terminals
    files: Files
    templates: Templates
    builds: Builds
    build_files: BuildFiles
    keys: Keys
    ports: Ports
    tenants: Tenants
    audit: Audit
    host: Host
    usage: Usage
    doors: Doors
    ssh_keys: SshKeys
    ssh: SshAddress
    secrets: Secrets
    metrics: Metrics
    policies: Policies
    toolsets: Toolsets
    transfers: Transfers
    browser: Browser
    computer: Computer
    code: Code
    promotions: Promotions
    diffs: Diffs
    trees: Trees
    tickets: Tickets
    exchange: Exchange
    listening: ListeningPorts


def caller(connection: HTTPConnection) -> Caller:
    """Who asks, as the gateway found."""
    found = connection.scope["roost"]
    assert isinstance(found, Caller)
    return found


def tenant(connection: HTTPConnection) -> str:
    return caller(connection).tenant


def key_id(connection: HTTPConnection) -> str | None:
    """Of the key the caller came with."""
    who = caller(connection).principal
    return None if who is None else who.key_id


def principal(connection: HTTPConnection) -> Principal:
    found = caller(connection)
    if found.principal is None:
        raise AuthError("This call needs a key.", code="AUTH_REQUIRED")
    return found.principal


def only_admin(connection: HTTPConnection) -> None:
    """The gateway has refused others already, by the path; this asks again where it would matter most. Raises
    FORBIDDEN."""
    if principal(connection).role is not Role.ADMIN:
        raise ForbiddenError("Only an admin may do this.")
