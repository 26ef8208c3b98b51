"""A bash that keeps its state between commands.

    run -> attach -> mark, command -> (output) -> mark, exit code -> detach
                                 \\ time is up: Ctrl-C -> as above, or the shell is ended and a new one begins

It lives on a terminal of the machine, which outlasts this process's connections and sleeps that keep memory; between
commands nobody is attached, so the machine may sleep. What commands write goes through a pipe: no program takes it for a terminal
and waits for somebody to page. Two marks around the output, made anew for each command, say where it begins and ends.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost.errors import NotFoundError, RoostError
from roost.tools._errors import ToolFailure
from roost.tools._text import OUTPUT_CHARS, Clip

if TYPE_CHECKING:
    from roost.client._sync._machine import Machine
    from roost.client._sync._terminal import Terminal

TIMEOUT_S = 120.0
GRACE_S = 3.0  # for a command to end after Ctrl-C
COMMAND_BYTES = 128 * 1024
BROKEN = frozenset({"DAEMON_UNREACHABLE", "SHUTTING_DOWN", "AGENT_LOST"})
INTERRUPT = "\x03"
SIGNALS = frozenset("\0\x03\x1a\x1c")  # NUL ends a command, a terminal acts on the others

# Commands come from file 3 and output goes to file 4; commands see neither. Both are pipes: `read -d` sets a terminal's
# modes while it reads. A command that is interrupted leaves the shell alive. No key that stands for a signal is
# undefined: gVisor would take NUL for it. It also reads the Ctrl-C that it acted on.
SCRIPT = r"""
stty raw -echo isig noflsh
exec 3< <(trap '' INT; exec cat) 4> >(trap '' INT; exec cat) </dev/null
__roost_pump=$!
exec >&4 2>&1
trap : INT
trap 'exec >&- 2>&- 4>&-; wait "$__roost_pump"' EXIT
while :; do
  IFS= read -r -d '' -u 3 __roost_mark; __roost_status=$?
  [ "$__roost_status" -gt 128 ] && continue
  [ "$__roost_status" -eq 0 ] && IFS= read -r -d '' -u 3 __roost_command || exit 0
  __roost_mark=${__roost_mark#$'\003'}
  builtin printf '\036%s\036' "$__roost_mark" >&4
  eval "$__roost_command" </dev/null >&4 2>&1 3<&- 4>&-
  builtin printf '\036%s %d\036' "$__roost_mark" "$?" >&4
done
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. ``exit_code`` None: it did not end in time, or the shell ended with it (``note`` says)."""

    output: str
    exit_code: int | None
    note: str = ""
    timed_out: bool = False

    @property
    def text(self) -> str:
        """All of it, for a model."""
        code = f"[exit code {self.exit_code}]" if self.exit_code else ""
        return "\n".join(each for each in (self.output.rstrip("\n"), code, self.note) if each)


class Shell:
    """``timeout``: seconds a command may take unless it says otherwise; ``limit``: characters of output that are kept."""

    def __init__(
        self,
        machine: Machine,
        *,
        user: str | None = None,
        cwd: str | None = None,
        timeout: float = TIMEOUT_S,
        limit: int = OUTPUT_CHARS,
    ) -> None:
        self._machine = machine
        self._user, self._cwd = user, cwd
        self._timeout, self._limit = timeout, limit
        self._terminal: Terminal | None = None

    def run(self, command: str, timeout: float | None = None) -> Ran:
        """Raises ToolFailure for what is no command, RoostError where the machine cannot be asked."""
        if len(command.encode("utf-8", "replace")) > COMMAND_BYTES:
            raise ToolFailure("The command is above 128 KiB: write it to a file and run that.")
        if set(command) & SIGNALS:
            raise ToolFailure(
                "The command has a control character in it (NUL, Ctrl-C, Ctrl-Z, Ctrl-\\)."
            )
        terminal, note = self._attached()
        try:
            ran = self._converse(terminal, command, timeout or self._timeout)
        finally:
            terminal.detach()
        return Ran(
            ran.output, ran.exit_code, " ".join(filter(None, (note, ran.note))), ran.timed_out
        )

    def restart(self) -> None:
        """Ends the shell and all it started; the next command begins a new one."""
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            with contextlib.suppress(NotFoundError):  # it went with its machine's boot
                terminal.close()

    def _attached(self) -> tuple[Terminal, str]:
        note = ""
        if self._terminal is not None:
            try:
                return self._terminal.attach(), ""
            except NotFoundError as gone:
                if gone.code != "TERMINAL_NOT_FOUND":
                    raise
                note = "[a new shell: the machine was started again since]"
        self._terminal = self._machine.terminals.create(
            command=["bash", "--noprofile", "--norc", "-c", SCRIPT],
            env={"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat"},
            user=self._user,
            cwd=self._cwd,
        )
        return self._terminal, note

    def _converse(self, terminal: Terminal, command: str, timeout: float) -> Ran:
        mark = secrets.token_hex(8)
        heard = Heard(mark, self._limit)
        terminal.send(f"{mark}\0{command}\0")
        deadline = time.monotonic() + timeout
        interrupted = False
        while not heard.over:
            left = deadline - time.monotonic()
            if terminal.closed:
                self.restart()
                note = f"[the shell ended with exit code {terminal.exit_code}; the next command starts a new one]"
                return Ran(heard.text, None, note)
            if left <= 0 and interrupted:
                self.restart()
                note = f"[not ended within {timeout:g} s, nor by Ctrl-C: the shell was restarted, its state is lost]"
                return Ran(heard.text, None, note, timed_out=True)
            if left <= 0:
                terminal.send(INTERRUPT)
                interrupted, deadline = True, time.monotonic() + GRACE_S
                continue
            try:
                heard.feed(terminal.read_bytes(min(left, 30.0)))
            except RoostError as failure:
                if failure.code not in BROKEN:
                    raise
                terminal.detach()
                terminal.attach()  # shows once more what was shown
                heard = Heard(mark, self._limit)
        if interrupted:
            note = f"[not ended within {timeout:g} s: interrupted. The shell keeps its state]"
            return Ran(heard.text, None, note, timed_out=True)
        return Ran(heard.text, heard.exit_code)


class Heard:
    """What a terminal says, from the mark that begins a command's output to the one that ends it."""

    def __init__(self, mark: str, limit: int) -> None:
        self._marks = re.compile(rb"\x1e" + mark.encode() + rb"(?: (\d{1,3}))?\x1e")
        self._longest = len(mark) + 6
        self._limit = limit
        self._clip = Clip(limit)
        self._rest = b""
        self.exit_code: int | None = None

    @property
    def over(self) -> bool:
        return self.exit_code is not None

    @property
    def text(self) -> str:
        return self._clip.text()

    def feed(self, data: bytes) -> None:
        data, self._rest = self._rest + data, b""
        while found := self._marks.search(data):
            if found[1] is not None:
                self._clip.feed(data[: found.start()])
                self.exit_code = int(found[1])
                return
            self._clip = Clip(self._limit)
            data = data[found.end() :]
        begun = data.rfind(b"\x1e", max(0, len(data) - self._longest))
        if begun >= 0:
            data, self._rest = data[:begun], data[begun:]
        self._clip.feed(data)
