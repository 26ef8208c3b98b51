"""Machines made, forked, put to sleep, ended; their ports and what they may reach."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from roost import AsyncMachine
from roost.mcp import shapes
from roost.mcp.callers import client_of
from roost.mcp.tool import Call, MachineName, meant, tool

TRIED = 100
FIRST_S = 600.0  # the first of a kind boots once, for all that come after it
Ttl = Annotated[
    str, Field(description="How long it lives, as 30m, 2h, 7d; empty: until it is destroyed")
]
Allow = Annotated[
    list[str],
    Field(description="With egress allowlist: names, *.names, addresses, networks, with :port"),
]


def _egress(mode: str, allow: list[str]) -> Any:
    return {"mode": "allowlist", "allow": allow} if allow or mode == "allowlist" else mode or None


@tool("create_machine", "Make a machine")
async def create_machine(
    call: Call,
    key: Annotated[
        str, Field(description="A name of your own for it, as user-42; empty: none", max_length=128)
    ] = "",
    template: Annotated[str, Field(description="What it starts from; empty: base")] = "",
    snapshot: Annotated[str, Field(description="Id or name of a snapshot to go on from")] = "",
    vcpu: Annotated[float | None, Field(gt=0, le=64)] = None,
    memory_mib: Annotated[int | None, Field(ge=64)] = None,
    storage_gib: Annotated[int | None, Field(ge=1)] = None,
    env: Annotated[dict[str, str] | None, Field(description="Environment of its commands")] = None,
    ttl: Ttl = "",
    egress: Annotated[
        Literal["", "open", "allowlist", "off"],
        Field(description="What it may reach; empty: as the host has it"),
    ] = "",
    allow: Allow = [],  # noqa: B006
) -> shapes.Machine:
    """Makes a Linux machine of its own, with root inside, and starts it. With a key that a machine has already, that
    machine is woken and returned as it is."""
    context = call.request_context
    client = client_of(context.request, context.lifespan_context)
    settings: dict[str, Any] = {
        "vcpu": vcpu,
        "memory_mib": memory_mib,
        "storage_gib": storage_gib,
        "env": env,
        "ttl": ttl or None,
        "egress": _egress(egress, allow),
        "timeout": FIRST_S,
        "client": client,
    }
    if key and not snapshot:
        made = await AsyncMachine.ensure(key, template=template or "base", **settings)
    else:
        made = await AsyncMachine.create(
            template or None, key=key or None, snapshot=snapshot or None, **settings
        )
    return shapes.Machine.of(made)


@tool("list_machines", "List machines", reads=True)
async def list_machines(
    call: Call,
    phase: Annotated[
        Literal["", "running", "sleeping", "failed"], Field(description="Only those; empty: all")
    ] = "",
    limit: Annotated[int, Field(ge=1, le=500)] = 50,
) -> shapes.Machines:
    """The machines there are, newest first."""
    context = call.request_context
    client = client_of(context.request, context.lifespan_context)
    found = await AsyncMachine.list(phase=phase or None, limit=limit + 1, client=client)
    return shapes.Machines(
        machines=[shapes.Machine.of(each) for each in found[:limit]], more=len(found) > limit
    )


@tool("fork_machine", "Fork a machine")
async def fork_machine(
    call: Call,
    machine: MachineName,
    count: Annotated[int, Field(description="How many", ge=1, le=16)] = 1,
    ttl: Ttl = "",
) -> shapes.Machines:
    """Makes machines that go on from this one's present instant, with its files and, where its isolation can, its
    running programs. It goes on itself. For trying several ways at once."""
    parent = await meant(call, machine)
    made = await parent.fork(count, ttl=ttl or None)
    assert isinstance(made, list)
    return shapes.Machines(machines=[shapes.Machine.of(each) for each in made], more=False)


@tool("snapshot_machine", "Snapshot a machine")
async def snapshot_machine(
    call: Call,
    machine: MachineName,
    name: Annotated[str, Field(description="A name for it, unique among yours; empty: none")] = "",
) -> shapes.Snapshot:
    """Keeps this instant of a machine; create_machine makes machines from it. The machine goes on."""
    made = await (await meant(call, machine)).snapshot(name or None)
    return shapes.Snapshot(
        snapshot_id=made.id,
        name=made.name,
        machine_id=made.machine_id,
        memory=made.memory,
        size_bytes=made.size_bytes,
    )


@tool("sleep_machine", "Put a machine to sleep", again=True)
async def sleep_machine(
    call: Call,
    machine: MachineName,
    tier: Annotated[
        Literal["", "frozen", "hibernated", "stopped"],
        Field(description="frozen, hibernated: its programs go on at waking; stopped: they end"),
    ] = "",
) -> shapes.Machine:
    """Takes a machine off the host's CPU, and its memory too unless it is frozen. Whatever needs it wakes it."""
    return shapes.Machine.of(await (await meant(call, machine)).sleep(tier or None))


@tool("wake_machine", "Wake a machine", again=True)
async def wake_machine(call: Call, machine: MachineName) -> shapes.Machine:
    """Starts a sleeping machine where it was. Other tools do it by themselves."""
    return shapes.Machine.of(await (await meant(call, machine)).wake())


@tool("destroy_machine", "Destroy a machine", destroys=True, again=True)
async def destroy_machine(call: Call, machine: MachineName) -> shapes.Gone:
    """Ends a machine and deletes its disk: nothing of it comes back. Snapshots of it stay."""
    gone = await (await meant(call, machine)).destroy()
    return shapes.Gone(machine_id=gone.id, phase=gone.phase)


@tool("expose_port", "Show a port outside", again=True, world=True)
async def expose_port(
    call: Call,
    machine: MachineName,
    port: Annotated[int, Field(ge=1, le=65535)],
    public: Annotated[bool, Field(description="For everybody, without a key")] = False,
    link_seconds: Annotated[
        int, Field(description="How long the link is good for", ge=60, le=604800)
    ] = 3600,
) -> shapes.Port:
    """Gives an HTTP server in a machine a URL. A private one comes with a link that opens it in a browser for a while."""
    ports = (await meant(call, machine)).ports
    shown = await ports.ensure(port)
    wanted = "public" if public else "private"
    if shown["visibility"] != wanted and public:
        shown = await ports.update(port, visibility=wanted)
    link = None if shown["visibility"] == "public" else await ports.link(port, link_seconds)
    return shapes.Port(
        port=port,
        visibility=shown["visibility"],
        url=shown["url"] or "",
        link=link["url"] if link else None,
        link_expires_at=link["expires_at"] if link else None,
    )


@tool("egress", "What a machine may reach", reads=True)
async def egress(call: Call, machine: MachineName) -> shapes.Egress:
    """A machine's network policy, what it tried to reach since it last started, and what was refused."""
    found = await (await meant(call, machine)).egress()
    tried = [
        shapes.Tried(
            host=each.host,
            port=each.port,
            protocol=each.protocol,
            allowed=each.allowed,
            reason=each.reason,
            count=each.count,
        )
        for each in found.decisions[:TRIED]
    ]
    return shapes.Egress(
        mode=found.policy.mode,
        allow=list(found.policy.allow),
        observe=found.policy.observe,
        tried=tried,
        more=max(0, len(found.decisions) - TRIED),
        suggested=list(found.suggested[:TRIED]),
    )
