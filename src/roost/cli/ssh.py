"""``roost ssh``: OpenSSH's client, led to the daemon and sure of its host key.

It comes in with the API key in use here, as the password: what may run ``roost exec`` may run this. ``--config`` prints
what other programs need (an editor, ``rsync``), which come in with keys of ``roost ssh-key``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from roost.cli._connect import client, find
from roost.cli._out import Json, print_json, usage_error
from roost.cli.exec import Inward
from roost.errors import error

if TYPE_CHECKING:
    from roost import Machine

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)

SUFFIX = ".roost"
KEY_VARIABLE = "ROOST_SSH_ASKED"


@app.command(cls=Inward)
def ssh(
    machine: Annotated[
        str | None, typer.Argument(metavar="MACHINE", help="Id, start of an id, key or name.")
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--] COMMAND ARG", show_default=False, help="Instead of a shell."),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="User in the machine.")] = None,
    forward: Annotated[
        list[str],
        typer.Option("-L", metavar="[BIND:]PORT:HOST:PORT", help="As of ssh; HOST is localhost."),
    ] = [],  # noqa: B006
    nothing: Annotated[bool, typer.Option("-N", help="As of ssh: no command.")] = False,
    terminal: Annotated[bool, typer.Option("-t", help="As of ssh: a terminal.")] = False,
    option: Annotated[
        list[str], typer.Option("-o", metavar="NAME=VALUE", help="As of ssh; repeatable.")
    ] = [],  # noqa: B006
    config: Annotated[
        bool,
        typer.Option("--config", help="Print what goes into ~/.ssh/config, for every machine."),
    ] = False,
    json: Json = False,
) -> None:
    """SSH into a machine with OpenSSH's client; its exit code is this command's."""
    door = _door()
    if config:
        _print_config(door, [find(machine)] if machine else None, json)
        return
    if machine is None:
        raise usage_error("name a machine, or give --config.")
    m = find(machine)
    who = f"{m.id}+{user}" if user else m.id
    program = shutil.which("ssh")
    if program is None:
        raise error(
            "DEPENDENCY_UNAVAILABLE",
            "There is no ssh here: install OpenSSH's client, or use `roost shell`.",
        )
    arguments = [program, *_options(door), "-l", who, "-p", str(door["port"])]
    for each in option:
        arguments += ["-o", each]
    for each in forward:
        arguments += ["-L", each]
    arguments += ["-N"] * nothing + ["-t"] * terminal + ["--", door["name"], *(command or [])]
    if json:
        print_json({"arguments": arguments})
        return
    raise typer.Exit(_run(arguments))


def _door() -> dict[str, Any]:
    """Where to go: {name (of the host key), host, port, host_key}. Raises UnsupportedError where SSH is off."""
    from roost.client._config import resolve

    found = client().ssh()
    if not found["enabled"]:
        raise error(
            "UNSUPPORTED",
            "SSH is off on this host: set ROOST_SSH_PORT and restart the daemon, or use `roost shell`.",
        )
    host = found["host"]
    if host in (None, "", "0.0.0.0", "::"):  # noqa: S104
        host = urlsplit(resolve().url).hostname
    return {**found, "host": host, "name": f"roost-{found['fingerprint'][7:15]}"}


def _options(door: dict[str, Any]) -> list[str]:
    settings = {
        "HostName": door["host"],
        **_trust(door),
        "PreferredAuthentications": "password",
        "PubkeyAuthentication": "no",
        "NumberOfPasswordPrompts": "1",
        "LogLevel": "ERROR",
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def _trust(door: dict[str, Any]) -> dict[str, str]:
    """The one host key, which came by way of the API."""
    return {
        "HostKeyAlias": door["name"],
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "KnownHostsCommand": f"/bin/echo {door['name']} {door['host_key']}",
        "SendEnv": "LANG LC_*",
    }


def _run(arguments: list[str]) -> int:
    """ssh asks a program for the password; that says what stands in its environment, and nowhere else."""
    import subprocess

    from roost.client._config import resolve

    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="roost-ssh-") as directory:
        asked = Path(directory) / "password"
        asked.write_text(f"#!/bin/sh\nprintf '%s\\n' \"${KEY_VARIABLE}\"\n")
        asked.chmod(0o700)
        environment = {
            **os.environ,
            "SSH_ASKPASS": str(asked),
            "SSH_ASKPASS_REQUIRE": "force",
            KEY_VARIABLE: resolve().api_key,
        }
        with _as_ssh_pleases():
            code = subprocess.run(arguments, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code


class _as_ssh_pleases:
    """Ctrl-C is ssh's."""

    def __enter__(self) -> None:
        import signal

        self._before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *exc: object) -> None:
        import signal

        signal.signal(signal.SIGINT, self._before)


def _print_config(door: dict[str, Any], machines: list[Machine] | None, json: bool) -> None:
    from roost import Machine as Machines

    found = Machines.list(limit=500) if machines is None else machines
    hosts = {f"{m.key or m.name or m.id}{SUFFIX}": m.id for m in reversed(found)}
    if json:
        print_json({"host": door["host"], "port": door["port"], "users": hosts, **_trust(door)})
        return
    print("# Of `roost ssh --config`. Who may come in: roost ssh-key add ~/.ssh/id_ed25519.pub")
    for host, user in hosts.items():
        print(f"Host {host}\n  User {user}")
    print(f"Host *{SUFFIX}\n  HostName {door['host']}\n  Port {door['port']}")
    for name, value in _trust(door).items():
        print(f"  {name} {value}")
