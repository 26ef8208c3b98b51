"""``roost shell``: a true terminal in a machine.

keys -> raw tty -> WebSocket -> pty        thread ``_keys``
screen <- stdout <- WebSocket <- pty       main thread
"""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from roost.cli._connect import MachineArg, find, pairs
from roost.cli._out import Json, age, note, print_json, table
from roost.cli._tty import Escape, as_exit, on_resize, raw, window
from roost.errors import RoostError

if TYPE_CHECKING:
    from roost import Machine, Terminal

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def shell(
    machine: MachineArg,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND [ARG]...]", help="Instead of a shell."),
    ] = None,
    cwd: Annotated[
        str | None, typer.Option("--cwd", "-w", help="Directory in the machine.")
    ] = None,
    env: Annotated[list[str], typer.Option("--env", "-e", metavar="K=V", help="Repeatable.")] = [],  # noqa: B006
    user: Annotated[str | None, typer.Option("--user", "-u", help="User in the machine.")] = None,
    terminal: Annotated[
        str | None, typer.Option("--terminal", metavar="ID", help="Attach to one that runs.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Terminals of the machine.")] = False,
    json: Json = False,
) -> None:
    """Open a terminal in a machine; its exit code is this command's.

    Enter ~ . detaches and leaves it running.
    """
    m = find(machine)
    if list_:
        _list(m, json)
        return
    cols, rows = window()
    if terminal is not None:
        t = m.terminals.get(terminal)
    else:
        t = m.terminals.create(
            cols,
            rows,
            command=command or None,
            cwd=cwd,
            env=pairs(env, "--env") or None,
            user=user,
            term=os.environ.get("TERM") or "xterm-256color",
            attach=False,
        )
    if json:
        print_json(t.to_json())
        return
    t.attach()
    if terminal is not None:
        t.resize(cols, rows)
    raise typer.Exit(_run(m, t))


def _run(machine: Machine, terminal: Terminal) -> int:
    left = threading.Event()
    wake_read, wake_write = os.pipe()
    keys = threading.Thread(target=_keys, args=(terminal, left, wake_read), daemon=True)
    lost: RoostError | None = None
    with as_exit(), raw(0), on_resize(lambda cols, rows: _resize(terminal, cols, rows)):
        keys.start()
        try:
            while not terminal.closed and not left.is_set():
                data = terminal.read_bytes(timeout=0.5)
                while data:
                    data = data[os.write(1, data) :]
        except RoostError as exc:
            lost = exc
        finally:
            os.write(wake_write, b"x")
    keys.join(2)
    again = f"roost shell {machine.key or machine.id} --terminal {terminal.id}"
    if terminal.closed:
        return terminal.exit_code if terminal.exit_code is not None else 0
    terminal.detach()
    if left.is_set():
        print(file=sys.stderr)
        note(f"detached; come back with: {again}")
        return 0
    assert lost is not None
    note(f"error: {lost.message} [{lost.code}]")
    note(f"hint: {again}")
    return 1


def _keys(terminal: Terminal, left: threading.Event, stop: int) -> None:
    """What is typed, until the terminal closes or the user detaches."""
    escape = Escape() if os.isatty(0) else None
    try:
        while True:
            ready, _, _ = select.select([0, stop], [], [])
            if stop in ready:
                return
            data = os.read(0, 1 << 16)
            if not data:
                terminal.send(b"\x04")  # a script on stdin has ended: so has the typing
                return
            detach = False
            if escape is not None:
                data, detach = escape.feed(data)
            if data:
                terminal.send(data)
            if detach:
                left.set()
                return
    except (RoostError, OSError):
        return  # the reading side tells why


def _resize(terminal: Terminal, cols: int, rows: int) -> None:
    """In a thread: the handler may have interrupted a send that holds the connection's lock."""

    def send() -> None:
        try:
            terminal.resize(cols, rows)
        except RoostError:
            return

    threading.Thread(target=send, daemon=True).start()


def _list(machine: Machine, json: bool) -> None:
    found = [t.to_json() for t in machine.terminals.list()]
    if json:
        print_json({"items": found})
        return
    table(
        ["ID", "STATUS", "SIZE", "VIEWERS", "AGE"],
        [
            (
                t["terminal_id"],
                t["status"],
                f"{t.get('width')}x{t.get('height')}",
                t.get("viewers"),
                age(t.get("created_at")),
            )
            for t in found
        ],
        empty="No terminals.",
    )
    sys.stdout.flush()
