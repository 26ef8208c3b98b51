"""One session channel: a shell, a command or SFTP, from its request to its exit status.

Of the environment a client offers only LANG, LC_* and TERM are taken. What a channel started ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, ClassVar

import asyncssh
import structlog

from roost.errors import RoostError, discreet
from roost.ssh import command, shell
from roost.ssh.outcome import Outcome
from roost.ssh.pipe import PACKET, WINDOW, Pipe
from roost.ssh.sftp.server import SftpServer
from roost.ssh.visit import Visit

if TYPE_CHECKING:
    from roost.ssh.connection import Connection, Ended

log = structlog.get_logger(__name__)

FAILED = 255  # the exit status of what could not be run, as sshd's client has it
_ACCEPTED = re.compile(rb"LANG|LC_[A-Z]{1,32}")
_MAX_NAMES = 32
_MAX_VALUE = 256
_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)


class Accepted(dict[bytes, bytes]):
    """The environment as asyncssh gathers it, before anything was started: what is not taken is not kept."""

    def __setitem__(self, name: bytes, value: bytes) -> None:
        plain = len(value) <= _MAX_VALUE and value.isascii() and value.decode("ascii").isprintable()
        if _ACCEPTED.fullmatch(name) and plain and (len(self) < _MAX_NAMES or name in self):
            super().__setitem__(name, value)


class Session(asyncssh.SSHServerSession[bytes]):
    CHANNEL: ClassVar[dict[str, Any]] = {"encoding": None, "window": WINDOW, "max_pktsize": PACKET}

    def __init__(self, visit: Visit, connection: Connection, ended: Ended) -> None:
        self._visit = visit
        self._pipe = Pipe(connection)
        self._ended = ended
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._pty: shell.Pty | None = None
        self._command: str | None = None
        self._sftp = False
        self._controls = shell.Controls()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan
        chan._env = Accepted()
        self._pipe.attach(chan)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.close()
        self._ended()
        task, self._task = self._task, None
        if (
            task is not None
        ):  # not kept: its cancellation holds all it was at, down to the agent's connection
            task.cancel()

    # --- what is asked for ------------------------------------------------------------------------

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Any
    ) -> bool:
        term = term_type if _TERM.fullmatch(term_type) else "xterm"
        self._pty = shell.Pty(term, *shell.bounded(term_size[0], term_size[1]))
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self._sftp = subsystem == "sftp"
        return self._sftp

    def session_started(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    # --- what comes -------------------------------------------------------------------------------

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._pipe.feed(data)

    def eof_received(self) -> bool:
        self._pipe.feed_eof()
        return True  # our half stays open

    def pause_writing(self) -> None:
        self._pipe.pause()

    def resume_writing(self) -> None:
        self._pipe.resume()

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._controls.resize(*shell.bounded(width, height))

    def signal_received(self, signal: str) -> None:
        self._controls.signal(signal)

    def break_received(self, msec: int) -> bool:
        return False

    # --- the work ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        channel = self._channel
        assert channel is not None
        try:
            outcome = await self._serve()
        except RoostError as failure:
            failure = discreet(failure)
            self._visit.note(f"ssh_{self._kind}", failure.code)
            with contextlib.suppress(BrokenPipeError):
                said = f"roost: {failure.message} [{failure.code}]\r\n"
                await self._pipe.write(said.encode(), stderr=True)
            outcome = Outcome(FAILED)
        except BrokenPipeError:
            return  # the channel went first
        except Exception as failure:
            log.error("ssh.session", exc_info=failure, machine_id=self._visit.machine_id)
            outcome = Outcome(FAILED)
        if not self._pipe.lost:
            outcome.tell(channel)

    @property
    def _kind(self) -> str:
        return "sftp" if self._sftp else "shell" if self._command is None else "exec"

    async def _serve(self) -> Outcome:
        visit, pipe = self._visit, self._pipe
        assert self._channel is not None
        if self._sftp:  # what is run wakes it, once the list of tools was asked
            await visit.inside.machines.awake(visit.tenant, visit.machine_id)
        visit.note(f"ssh_{self._kind}")
        if self._sftp:
            client = str(self._channel.get_extra_info("client_version", ""))
            await SftpServer(visit, pipe, client).run()
            return Outcome(0)
        env = {n.decode(): v.decode() for n, v in self._channel._env.items()}
        if self._pty is not None:
            return await shell.run(visit, pipe, self._controls, self._pty, self._command, env)
        return await command.run(visit, pipe, self._controls, self._command, env)
