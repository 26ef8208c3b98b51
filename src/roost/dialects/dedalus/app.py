"""Which calls there are, and what the gateway must know of them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import Scope

from roost.clock import Clock, SystemClock
from roost.dialects.dedalus.absent import Absent
from roost.dialects.dedalus.errors import problem
from roost.dialects.dedalus.executions import Executions
from roost.dialects.dedalus.machines import Machines
from roost.dialects.dedalus.ports import Ports
from roost.dialects.dedalus.ssh import Ssh
from roost.dialects.dedalus.terminals import BELOW, Terminals
from roost.dialects.dedalus.tickets import Tickets
from roost.dialects.dedalus.usage import Usage
from roost.dialects.serving import App, Services
from roost.gateway.dispatch import Action, Target
from roost.services.models import Principal

PREFIX = "dsk"
_ONE = "/v1/machines/{machine_id}"
_PATH = re.compile(r"(?:/dedalus)?/v1/machines(?:/([^/]+)(?:/([a-z]+).*)?)?", re.DOTALL)
_STREAM = re.compile(rf"{BELOW}/v1/machines/([^/]+)/terminals/([^/]+)/stream")
_VERBS = {"POST": "create", "PATCH": "update", "PUT": "update", "DELETE": "delete"}
_INSIDE = frozenset({"executions", "terminals"})
_OF_MACHINE = frozenset({"sleep", "wake", "reboot"})


def targets(services: Services, clock: Clock | None = None) -> list[Target]:
    """Two doors to the same calls: by the form of the key, and below a path of their own, where a terminal's stream
    needs no header."""
    clock = clock or SystemClock()
    tickets = Tickets(services.keys, clock)
    app = App(routes(services, tickets, clock))

    async def admit(scope: Scope) -> Principal | None:
        match = _STREAM.fullmatch(scope["path"])
        if match is None or scope["type"] != "websocket":
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=20)
        return await tickets.admit(match[1], match[2], dict(query))

    return [
        Target("dedalus", app, paths=("/v1",), prefixes=(PREFIX,), action=action, problem=problem),
        Target(
            "dedalus",
            App([Mount(BELOW, app=app)]),
            paths=(BELOW,),
            action=action,
            problem=problem,
            admit=admit,
        ),
    ]


def routes(services: Services, tickets: Tickets, clock: Clock) -> list[BaseRoute]:
    machines = Machines(services)
    executions = Executions(services, clock)
    terminals = Terminals(services, tickets)
    ssh = Ssh(services)
    usage = Usage(services, clock)
    artifacts = Absent("artifacts of executions")
    logs = Absent("log streams of executions")
    resizing = Absent("machines that resize themselves")
    ran = f"{_ONE}/executions/{{execution_id}}"
    opened = f"{_ONE}/terminals/{{terminal_id}}"
    found: list[BaseRoute] = [
        Route("/v1/machines", machines.list, methods=["GET"]),
        Route("/v1/machines", machines.create, methods=["POST"]),
        Route(_ONE, machines.retrieve, methods=["GET"]),
        Route(_ONE, machines.update, methods=["PATCH"]),
        Route(_ONE, machines.delete, methods=["DELETE"]),
        Route(f"{_ONE}/sleep", machines.sleep, methods=["POST"]),
        Route(f"{_ONE}/wake", machines.wake, methods=["POST"]),
        Route(f"{_ONE}/reboot", machines.reboot, methods=["POST"]),
        Route(f"{_ONE}/status/stream", machines.watch, methods=["GET"]),
        Route(f"{_ONE}/executions", executions.list, methods=["GET"]),
        Route(f"{_ONE}/executions", executions.create, methods=["POST"]),
        Route(ran, executions.retrieve, methods=["GET"]),
        Route(ran, executions.delete, methods=["DELETE"]),
        Route(f"{ran}/output", executions.output, methods=["GET"]),
        Route(f"{ran}/events", executions.events, methods=["GET"]),
        Route(f"{_ONE}/terminals", terminals.list, methods=["GET"]),
        Route(f"{_ONE}/terminals", terminals.create, methods=["POST"]),
        Route(opened, terminals.retrieve, methods=["GET"]),
        Route(opened, terminals.delete, methods=["DELETE"]),
        WebSocketRoute(f"{opened}/stream", terminals.stream),
        Route(f"{_ONE}/ssh", ssh.list, methods=["GET"]),
        Route(f"{_ONE}/ssh", ssh.create, methods=["POST"]),
        Route(f"{_ONE}/ssh/{{session_id}}", ssh.retrieve, methods=["GET"]),
        Route(f"{_ONE}/ssh/{{session_id}}", ssh.delete, methods=["DELETE"]),
        Route("/v1/usage", usage.retrieve, methods=["GET"]),
        Route("/v1/usage/machines/compute", usage.compute, methods=["GET"]),
        Route("/v1/usage/machines/storage", usage.storage, methods=["GET"]),
        Route(f"{_ONE}/artifacts", artifacts.serve, methods=["GET"]),
        Route(f"{_ONE}/artifacts/{{artifact_id}}", artifacts.serve, methods=["GET", "DELETE"]),
        Route(f"{ran}/logs", logs.serve, methods=["GET"]),
        Route(f"{ran}/logs/token", logs.serve, methods=["POST"]),
        Route(f"{ran}/logs/reauthorize", logs.serve, methods=["POST"]),
        Route(f"{_ONE}/autoresizing", resizing.serve, methods=["GET", "PUT"]),
        Route("/v1/organization/autoresizing", resizing.serve, methods=["GET", "PUT"]),
    ]
    for noun in ("preview", "port"):
        ports = Ports(services, noun)
        one = f"{_ONE}/{noun}s/{{{noun}_id}}"
        found += [
            Route(f"{_ONE}/{noun}s", ports.list, methods=["GET"]),
            Route(f"{_ONE}/{noun}s", ports.create, methods=["POST"]),
            Route(one, ports.retrieve, methods=["GET"]),
            Route(one, ports.delete, methods=["DELETE"]),
        ]
    return found


def action(scope: Scope) -> Action | None:
    """By the path alone, so that what was refused before it was routed is told alike."""
    match = _PATH.fullmatch(scope["path"])
    if match is None:
        return None
    machine_id, noun = match[1], match[2] or "machines"
    if scope["type"] == "websocket":
        return Action(f"dedalus_{noun}_socket", False, machine_id)
    verb = _VERBS.get(scope["method"])
    if verb is None:
        return None
    if noun in _OF_MACHINE:
        return Action(f"dedalus_machines_{noun}", True, machine_id)
    return Action(f"dedalus_{noun}_{verb}", noun not in _INSIDE, machine_id)
