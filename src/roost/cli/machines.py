"""Machines: create ensure ls show ps metrics watch sleep wake reboot rm."""

from __future__ import annotations

import sys
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roost.cli._connect import MachineArg, MachineArgs, complete_machine, find, pairs
from roost.cli._egress import Allow, Mode, Observe, asked
from roost.cli._inert import plain
from roost.cli._inside import AllowInside, allowed
from roost.cli._ladder import Driver, Isolation
from roost.cli._out import Json, age, fields, note, print_json, say, size, table, usage_error
from roost.cli._tools import AllowTool, ToolMode
from roost.cli._tools import asked as asked_tools

if TYPE_CHECKING:
    from roost import Machine


def complete_mount(incomplete: str) -> list[str]:
    """Of the volume's name; what comes after it is the user's."""
    from roost.cli.volume import complete_volume

    return [] if ":" in incomplete else [f"{name}:/" for name in complete_volume(incomplete)]


app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

Template = Annotated[str, typer.Option("--template", "-t", help="Template it starts from.")]
Name = Annotated[str | None, typer.Option(help="A name; need not be unique.")]
Vcpu = Annotated[float | None, typer.Option(help="Virtual CPUs.")]
Memory = Annotated[int | None, typer.Option("--memory", metavar="MIB", help="Memory, MiB.")]
Storage = Annotated[int | None, typer.Option("--storage", metavar="GIB", help="Disk, GiB.")]
Env = Annotated[list[str], typer.Option("--env", "-e", metavar="K=V", help="Repeatable.")]
Labels = Annotated[list[str], typer.Option("--label", "-l", metavar="K=V", help="Repeatable.")]
Autosleep = Annotated[str | None, typer.Option(metavar="TIME", help="Idle time; or never.")]
HibernateAfter = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Frozen so long, then its memory goes to the disk; or never."
    ),
]
Ttl = Annotated[str | None, typer.Option(metavar="TIME", help="Destroyed after this: 15m, 2h.")]
Volumes = Annotated[
    list[str],
    typer.Option(
        "--volume",
        metavar="NAME:/PATH[:ro]",
        help="A volume it mounts. Repeatable.",
        autocompletion=complete_mount,
    ),
]
Expiry = Annotated[
    str | None,
    typer.Option(
        help="What --ttl ends in: destroy or sleep.",
        autocompletion=lambda: ["destroy", "sleep"],
    ),
]
Autowake = Annotated[
    bool | None,
    typer.Option(
        "--autowake/--no-autowake", help="Asleep, what needs it wakes it; or wake alone does."
    ),
]
Unrestricted = Annotated[
    bool,
    typer.Option(
        "--unrestricted",
        help="No list of tools holds; on rungs 0 and 1 neither Landlock nor a workspace's limits. The boundary stays.",
    ),
]
RunAs = Annotated[
    str | None,
    typer.Option(metavar="USER", help="Whom commands run as unless they say (the template's)."),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until it runs.")]


@app.command()
def create(
    template: Annotated[
        str | None, typer.Option("--template", "-t", help="Template it starts from (base).")
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(metavar="SNAPSHOT", help="Go on from this one instead (id or name)."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Your own unique key for it.")] = None,
    name: Name = None,
    vcpu: Vcpu = None,
    memory: Memory = None,
    storage: Storage = None,
    isolation: Isolation = None,
    driver: Driver = None,
    env: Env = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    autosleep: Autosleep = None,
    hibernate_after: HibernateAfter = None,
    ttl: Ttl = None,
    volume: Volumes = [],  # noqa: B006
    expiry: Expiry = None,
    autowake: Autowake = None,
    unrestricted: Unrestricted = False,
    run_as: RunAs = None,
    egress: Mode = None,
    allow: Allow = [],  # noqa: B006
    observe: Observe = False,
    allow_inside: AllowInside = [],  # noqa: B006
    tools: ToolMode = None,
    allow_tool: AllowTool = [],  # noqa: B006
    wait: Wait = True,
    json: Json = False,
) -> None:
    """Make a machine; prints its id."""
    from roost import Machine

    settings = _settings(
        name, vcpu, memory, storage, isolation, driver, env, label, autosleep, hibernate_after, ttl
    )
    settings |= {"volumes": volume or None, "expiry": expiry, "autowake": autowake}
    settings["unrestricted"] = unrestricted or None
    settings["run_as"] = run_as
    settings["egress"] = asked(egress, allow, observe)
    settings["allow_inside"] = allowed(allow_inside)
    settings["tools"] = asked_tools(tools, allow_tool)
    _made(Machine.create(template, key=key, snapshot=snapshot, wait=wait, **settings), json)


@app.command()
def ensure(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Whose machine, for example user-42.")],
    template: Template = "base",
    name: Name = None,
    vcpu: Vcpu = None,
    memory: Memory = None,
    storage: Storage = None,
    isolation: Isolation = None,
    driver: Driver = None,
    env: Env = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    autosleep: Autosleep = None,
    hibernate_after: HibernateAfter = None,
    ttl: Ttl = None,
    volume: Volumes = [],  # noqa: B006
    expiry: Expiry = None,
    autowake: Autowake = None,
    unrestricted: Unrestricted = False,
    run_as: RunAs = None,
    egress: Mode = None,
    allow: Allow = [],  # noqa: B006
    observe: Observe = False,
    allow_inside: AllowInside = [],  # noqa: B006
    tools: ToolMode = None,
    allow_tool: AllowTool = [],  # noqa: B006
    json: Json = False,
) -> None:
    """The machine of KEY: made if there is none, woken if it slept; prints its id.

    The settings count only when it is made.
    """
    from roost import Machine

    settings = _settings(
        name, vcpu, memory, storage, isolation, driver, env, label, autosleep, hibernate_after, ttl
    )
    settings |= {"volumes": volume or None, "expiry": expiry, "autowake": autowake}
    settings["unrestricted"] = unrestricted or None
    settings["run_as"] = run_as
    settings["egress"] = asked(egress, allow, observe)
    settings["allow_inside"] = allowed(allow_inside)
    settings["tools"] = asked_tools(tools, allow_tool)
    _made(Machine.ensure(key, template=template, **settings), json)


def _settings(
    name: str | None,
    vcpu: float | None,
    memory: int | None,
    storage: int | None,
    isolation: str | None,
    driver: str | None,
    env: list[str],
    label: list[str],
    autosleep: str | None,
    hibernate_after: str | None,
    ttl: str | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "vcpu": vcpu,
        "memory_mib": memory,
        "storage_gib": storage,
        "isolation": isolation,
        "driver": driver,
        "env": pairs(env, "--env") or None,
        "labels": pairs(label, "--label") or None,
        "autosleep": autosleep,
        "hibernate_after": hibernate_after,
        "ttl": ttl,
    }


def show_made(machines: list[Machine], json: bool) -> None:
    """Machines just made: their ids, and what they are on a terminal."""
    if json:
        print_json({"items": [m.to_json() for m in machines]})
        return
    for machine in machines:
        say(machine.id)
    if sys.stdout.isatty():
        _list(machines)


def _made(machine: Machine, json: bool) -> None:
    for warning in machine.warnings:
        note(f"Warning: {warning}")
    if json:
        print_json(machine.to_json())
        return
    if not sys.stdout.isatty():
        say(machine.id)
        return
    say(machine.id)
    _list([machine])


@app.command("ls")
def list_(
    phase: Annotated[
        list[str] | None, typer.Option(help="running, sleeping, failed, ...; repeatable.")
    ] = None,
    label: Labels = [],  # noqa: B006
    key: Annotated[str | None, typer.Option(help="The one with this key.")] = None,
    template: Annotated[str | None, typer.Option("--template", "-t")] = None,
    order: Annotated[
        str | None,
        typer.Option(help="newest (first) or oldest.", autocompletion=lambda: ["newest", "oldest"]),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Ids only.")] = False,
    json: Json = False,
) -> None:
    """List machines, newest first."""
    from roost import Machine

    machines = Machine.list(
        phase=phase,
        key=key,
        labels=pairs(label, "--label"),
        template=template,
        order=order,
        limit=limit,
    )
    if json:
        print_json({"items": [m.to_json() for m in machines]})
    elif quiet:
        for machine in machines:
            say(machine.id)
    else:
        _list(machines)


def _list(machines: list[Machine]) -> None:
    table(
        ["ID", "KEY", "NAME", "PHASE", "ISOLATION", "VCPU", "MEMORY", "DISK", "AGE"],
        [
            (
                m.id,
                m.key,
                m.name,
                _phase(m),
                m.isolation.get("driver"),
                f"{m.vcpu:g}",
                f"{m.memory_mib} MiB",
                f"{m.storage_gib} GiB",
                age(m.to_json().get("created_at")),
            )
            for m in machines
        ],
        empty="No machines. Make one: roost create",
    )


def _phase(machine: Machine) -> str:
    return f"{machine.phase} ({machine.tier})" if machine.tier else machine.phase


@app.command()
def show(machine: MachineArg, json: Json = False) -> None:
    """Everything about one machine."""
    m = find(machine)
    if json:
        print_json(m.to_json())
        return
    data, isolation = m.to_json(), m.isolation
    status = data["status"]
    fields(
        [
            ("id", m.id),
            ("key", m.key),
            ("name", m.name),
            ("phase", f"{_phase(m)}: {status['reason']}" if status.get("reason") else _phase(m)),
            *([("error", status["last_error"])] if status.get("last_error") else []),
            ("template", m.template),
            *([("parent", m.parent)] if m.parent else []),
            *([("replaces", m.replaces)] if m.replaces else []),
            ("size", f"{m.vcpu:g} vCPU, {m.memory_mib} MiB, {m.storage_gib} GiB disk"),
            ("isolation", f"{isolation.get('claim')} [{isolation.get('driver')}]"),
            ("boundary", isolation.get("boundary")),
            *(("warning", each) for each in m.warnings),
            ("autosleep", "never" if m.autosleep is None else f"after {m.autosleep} s idle"),
            (
                "hibernates",
                "never" if m.hibernate_after is None else f"after {m.hibernate_after} s frozen",
            ),
            ("egress", _egress(data.get("egress"))),
            ("tools", _tools(m.tools)),
            ("inside", f"may {', '.join(m.inside['allow'])}" if m.inside["allow"] else None),
            ("expires", _expires(data)),
            ("wakes", None if m.autowake else "by roost wake alone"),
            ("runs as", m.run_as),
            *(
                ("volume", f"{v['name']} at {v['path']}{', read-only' if v['read_only'] else ''}")
                for v in m.volumes
            ),
            ("labels", ", ".join(f"{k}={v}" for k, v in m.labels.items()) or None),
            ("env", ", ".join(sorted(m.env)) or None),
            ("created", f"{data.get('created_at')} ({age(data.get('created_at'))} ago)"),
        ]
    )


def _expires(data: dict[str, Any]) -> str | None:
    at = data.get("expires_at")
    return f"{at}: then it sleeps" if at and data.get("expiry") == "sleep" else at


def _tools(tools: dict[str, Any]) -> str | None:
    if tools["mode"] == "off":
        return None
    return f"{len(tools['allow'])} listed, {tools['mode']} for the rest"


def _egress(policy: dict[str, Any] | None) -> str | None:
    if policy is None:
        return None
    listed = f" of {len(policy['allow'])}" if policy["mode"] == "allowlist" else ""
    return f"{policy['mode']}{listed}{', observed' if policy['observe'] else ''}"


@app.command()
def ps(
    machine: MachineArg,
    every: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False,
    json: Json = False,
) -> None:
    """Commands that run in a machine."""
    found = find(machine).executions.list(status=None if every else "running")
    if json:
        print_json({"items": [e.to_json() for e in found]})
        return
    table(
        ["ID", "NAME", "STATUS", "EXIT", "AGE", "COMMAND"],
        [
            (
                e.id,
                e.name,
                e.status,
                e.exit_code,
                age(e.to_json().get("created_at")),
                _command(e.command),
            )
            for e in found
        ],
        empty="Nothing runs." if not every else "Nothing was run.",
    )


def _command(command: str | list[str]) -> str:
    import shlex

    text = command if isinstance(command, str) else shlex.join(command)
    return text if len(text) <= 80 else text[:79] + "…"


@app.command()
def metrics(machine: MachineArg, json: Json = False) -> None:
    """What a machine used while it ran: one line a minute, the last is now."""
    found = find(machine).metrics()
    if json:
        print_json({"items": found})
        return
    table(
        ["AT", "CPU", "MEMORY", "OF", "DISK", "OF"],
        [
            (
                each["at"],
                f"{each['cpu_used_pct']:.1f} % of {each['cpu_count']:g}",
                size(each["memory_used_bytes"]),
                size(each["memory_total_bytes"]),
                size(each["disk_used_bytes"]),
                size(each["disk_total_bytes"]),
            )
            for each in found
        ],
        empty="Nothing is known yet: it slept since the daemon started.",
    )


@app.command()
def sleep(
    machines: MachineArgs,
    tier: Annotated[
        str | None,
        typer.Option(
            help="frozen (memory stays), hibernated (memory to the disk) or stopped (the disk alone).",
            autocompletion=lambda: ["frozen", "hibernated", "stopped"],
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Take machines off the host's memory and CPU; whatever needs them wakes them."""
    _each(machines, "sleep", json, tier=tier)


@app.command()
def reboot(machines: MachineArgs, json: Json = False) -> None:
    """Start machines again from their disks; their processes are gone."""
    _each(machines, "reboot", json)


@app.command()
def watch(machine: MachineArg, json: Json = False) -> None:
    """Tell what a machine comes to be, as it happens, until it is destroyed or Ctrl-C."""
    for m in find(machine).states():
        if json:
            print(dumps(m.to_json()), flush=True)
            continue
        status = m.to_json()["status"]
        line = f"{status['last_progress_at']}  {_phase(m):22}  {status.get('reason') or ''}"
        print(plain(line.rstrip()), flush=True)


@app.command()
def wake(machines: MachineArgs, json: Json = False) -> None:
    """Start sleeping machines."""
    _each(machines, "wake", json)


def _each(names: list[str], verb: str, json: bool, **options: Any) -> None:
    done = []
    for name in names:
        machine = getattr(find(name), verb)(**options)
        done.append(machine.to_json())
        if not json:
            say(f"{machine.id} {_phase(machine)}")
    if json:
        print_json({"items": done})


@app.command()
def rm(
    machines: Annotated[
        list[str] | None,
        typer.Argument(metavar="MACHINE...", autocompletion=complete_machine),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every machine of this key's tenant.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    json: Json = False,
) -> None:
    """Destroy machines and their disks.

    Asks first on a terminal, unless --yes.
    """
    from roost import Machine

    if bool(machines) == every:
        raise usage_error("name the machines to destroy, or --all.")
    found = Machine.list() if every else [find(name) for name in machines or []]
    if not found:
        note("No machines.")
    ask = not yes and not json and sys.stdin.isatty() and sys.stdout.isatty()
    if found and ask:
        _list(found)
        if not typer.confirm(f"Destroy {len(found)} with their disks?"):
            raise typer.Exit(1)
    done = []
    for machine in found:
        done.append(machine.destroy().to_json())
        if not json:
            say(machine.id)
    if json:
        print_json({"items": done})
