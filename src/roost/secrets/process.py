"""The boundary's process, from the daemon's side.

It is started when a machine first has a secret and ends with the daemon; when it dies before, it is started again and
told everything anew. Its listening socket is the daemon's, so its address stays: while nobody answers there, hosts with
secrets cannot be reached, and nothing goes around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from roost.egress.interface import BOUNDARY_UID
from roost.errors import UnavailableError, UnsupportedError
from roost.host import processes

log = structlog.get_logger(__name__)

PROGRAM = Path(__file__).parent / "boundary"
# Beside the daemon's own environment, as scripts/up makes it.
INSTALLED = Path(__file__).resolve().parents[3] / ".venv-mitm/bin/python"
READY_S = 60.0
ANSWER_S = 15.0
MAX_ANSWER = 65536
PAUSES_S = (0.1, 0.5, 2.0, 10.0)  # before it is started again; the last from then on
STEADY_S = 60.0  # a life as long as this makes it begin at the first pause again
HOST_CA = Path("/etc/ssl/certs/ca-certificates.crt")

State = Mapping[str, Any]  # of a machine, as boundary/rules.py reads it


class Process:
    """``everything`` gives the state of all machines that have one, for a process that knows nothing."""

    def __init__(
        self,
        python: Path,
        ca: Path,
        everything: Callable[[], Awaitable[dict[str, State]]],
        uid: int | None = BOUNDARY_UID,
    ) -> None:
        self.password = secrets.token_hex(32)
        self._python = python
        self._ca = ca
        self._uid = uid
        self._everything = everything
        self._listener: socket.socket | None = None
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._running: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._turn = asyncio.Lock()
        self._numbers = itertools.count(1)
        self.pid: int | None = None

    @property
    def endpoint(self) -> str:
        """Where the egress process connects to; before ``start`` too."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        host, port = self._listener.getsockname()
        return f"tcp:{host}:{port}"

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def check(self) -> None:
        """Raises UNSUPPORTED where it is not installed."""
        if not self._python.exists():
            raise UnsupportedError(
                f"Secrets need mitmproxy, whose environment is not at {self._python}: run scripts/up, which makes it,"
                " or name its Python in ROOST_SECRETS_PYTHON.",
            )

    def start(self) -> None:
        """From now on there is one; does not wait for it. Idempotent."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def tell(self, machines: Mapping[str, State | None]) -> None:
        """On return it holds for every request from now on. Raises DEPENDENCY_UNAVAILABLE."""
        self.check()
        self.start()
        try:
            async with asyncio.timeout(READY_S):
                await self._up.wait()
            async with self._turn, asyncio.timeout(ANSWER_S):
                await self._ask(machines)
        except (TimeoutError, OSError, ValueError) as failure:
            raise UnavailableError(
                "The process that keeps secrets out of machines does not answer; it is being started again. Ask"
                " again: until then hosts with secrets cannot be reached.",
            ) from failure

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # --- its lives ------------------------------------------------------------------------------

    async def _run(self) -> None:
        lives = 0
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await self._live()
            except (OSError, ValueError, TimeoutError) as failure:
                log.warning("secrets.process", error=f"{type(failure).__name__}: {failure}")
            lives = 0 if clock() - began > STEADY_S else lives + 1
            log.warning("secrets.process_ended", lives=lives)
            await asyncio.sleep(PAUSES_S[min(lives, len(PAUSES_S)) - 1])

    async def _live(self) -> None:
        """From its start to its end."""
        ours, theirs = socket.socketpair()
        _ = self.endpoint
        assert self._listener is not None
        with ours, theirs:
            process = _spawn(self._python, theirs, self._listener)
            theirs.close()
            end = os.pidfd_open(process.pid)
            self.pid = process.pid
            try:
                self._line = await asyncio.open_connection(sock=ours.dup(), limit=MAX_ANSWER)
                ended = asyncio.ensure_future(processes.ended(end))
                ready = asyncio.ensure_future(self._begin())
                await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
                if not ready.done() or isinstance(ready.exception(), ConnectionError):
                    ready.cancel()
                    process.kill()
                    said = await asyncio.to_thread(_last_words, process)
                    raise OSError(f"it ended at its start: {said}")
                ready.result()
                self._up.set()
                await ended
            finally:
                self._up.clear()
                self.pid = None
                if self._line is not None:
                    self._line[1].close()
                    self._line = None
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.to_thread(process.wait)
                os.close(end)
                if process.stderr is not None:
                    process.stderr.close()

    async def _begin(self) -> None:
        async with asyncio.timeout(READY_S):
            await self._send({"password": self.password, "ca": str(self._ca), "uid": self._uid})
            if not (await self._answer()).get("ready"):
                raise ValueError("it did not say that it is ready")
            async with self._turn:
                await self._ask(await self._everything())

    async def _ask(self, machines: Mapping[str, State | None]) -> None:
        number = next(self._numbers)
        await self._send({"id": number, "machines": dict(machines)})
        while (await self._answer()).get("id") != number:  # an earlier one, given up on
            pass

    async def _send(self, message: Mapping[str, Any]) -> None:
        if self._line is None:
            raise ConnectionResetError("it is not running")
        writer = self._line[1]
        writer.write(json.dumps(message).encode() + b"\n")
        await writer.drain()

    async def _answer(self) -> dict[str, Any]:
        if self._line is None:
            raise ConnectionResetError("it is not running")
        line = await self._line[0].readline()
        if not line:
            raise ConnectionResetError("it hung up")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("it answered nonsense")
        return found


def _spawn(python: Path, line: socket.socket, listener: socket.socket) -> subprocess.Popen[bytes]:
    """Nothing that is secret is in its arguments or its environment."""
    return subprocess.Popen(
        [str(python), "-EsB", str(PROGRAM), str(listener.fileno())],
        stdin=line.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(listener.fileno(),),
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        cwd="/",
        start_new_session=True,
    )


def _last_words(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    lines = process.stderr.read(65536).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {process.wait()}"
