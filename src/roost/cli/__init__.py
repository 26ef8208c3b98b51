"""The ``roost`` command.

``_commands`` lists every command with its help and module; a command's module is imported when the
command runs, and ``roost --help`` does not even load the parser. Each command is a thin layer over the
SDK: it finds the machine (``_connect``), calls, and prints (``_out``) a table for people or, with
``--json``, the daemon's own record and nothing else. ``up`` and ``down`` also drive the daemon's
process (``_daemon``).

What machines say goes to a person's terminal only after ``_inert`` took its teeth out; ``roost shell`` is
the exception, being a terminal itself.

Exit codes: 0; 1 an error; 2 wrong usage; those of commands run by ``exec`` and ``shell``, 128 + n where
signal n ended them, 124 where their time ran out. ``exec`` keeps its own failures apart from the command's:
125, 126 the command may not be run, 127 it was not found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command line and exits."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--help"]:
        from roost.cli._commands import overview

        print(overview(), end="")
        sys.exit(0)
    from roost.cli._app import run

    sys.exit(run(arguments))
