"""``roost port-forward``: ports of a machine as ports here, raw TCP, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import Annotated

import typer

from roost.cli._connect import MachineArg, find
from roost.cli._out import Json, note, print_json, say, usage_error
from roost.errors import RoostError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command("port-forward")
def port_forward(
    machine: MachineArg,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="[LOCAL:]REMOTE...",
            help="Port of the machine, and here: the same, if it is free; 0: any.",
        ),
    ],
    address: Annotated[
        str, typer.Option("--address", metavar="ADDRESS", help="To listen on here.")
    ] = "127.0.0.1",
    json: Json = False,
) -> None:
    """Make ports of a machine reachable here, whatever is spoken on them, until Ctrl-C.

    Also reaches servers that listen on the machine's 127.0.0.1. A connection wakes the machine.
    """
    wanted = [parse(each) for each in ports]
    m = find(machine)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        opened = []
        for local, remote in wanted:
            forward = m.forward(remote, local, host=address)
            forward.on_error = lambda failure, port=remote: _failed(port, failure)  # type: ignore[misc]
            opened.append(stack.enter_context(forward))
        if json:
            items = [{"host": f.host, "port": f.port, "remote": f.remote} for f in opened]
            print_json({"machine_id": m.id, "forwards": items})
        else:
            for each in opened:
                say(f"{each.host}:{each.port} -> {m.key or m.id}:{each.remote}")
        sys.stdout.flush()
        while not stop.wait(3600):
            pass


def parse(text: str) -> tuple[int, int]:
    """Local and remote port. Exits with 2 for what is none."""
    local, colon, remote = text.rpartition(":")
    try:
        numbers = (int(local) if colon else int(remote), int(remote))
    except ValueError:
        numbers = (-1, -1)
    if not (0 <= numbers[0] <= 65535 and 1 <= numbers[1] <= 65535):
        raise usage_error(f"{text!r} is neither REMOTE nor LOCAL:REMOTE (ports from 1 to 65535).")
    return numbers


def _failed(port: int, failure: RoostError) -> None:
    note(f"error: port {port}: {failure.message} [{failure.code}]")
