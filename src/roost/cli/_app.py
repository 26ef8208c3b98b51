"""The list of commands, and the one place where errors become text and exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from roost.cli._commands import COMMANDS, EPILOG, GROUPS, HELP, overview


class Commands(TyperGroup):
    """Imports a command's module when it is called for."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module = import_module(f"roost.cli.{COMMANDS[cmd_name][0]}")
            command: Any = get_command(module.app)
            if cmd_name not in GROUPS and isinstance(command, TyperGroup):
                command = command.commands[cmd_name]
            command.name = cmd_name
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(overview())

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(
                f"No such command {args[0]!r}."
                + (f" Did you mean {near[0]!r}?" if near else " See roost --help.")
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    name="roost",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    pass


def run(argv: list[str]) -> int:
    """The exit code of one command line."""
    from roost.errors import RoostError

    # httpx brings a command line of its own, with rich and all; without it a command starts 60 ms sooner.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    try:
        get_command(app).main(args=argv, prog_name="roost", standalone_mode=True)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except RoostError as exc:
        from roost.cli._out import fail

        return fail(exc)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as exc:
        print(f"error: {exc.strerror or exc}: {exc.filename or ''}".rstrip(": "), file=sys.stderr)
        return 1
    return 0
