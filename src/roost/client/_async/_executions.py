"""Commands in a machine: one by one (``Execution``) and as a list (``Executions``)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from roost.client._async._http import AsyncHTTP
from roost.client._async._io import sleep
from roost.client._async._stream import AsyncExecStream
from roost.client._types import ExecExit, ExecResult, parse_time
from roost.client._wire import Command, execution_body, given, segment
from roost.errors import error

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
# What the connection may take on top of the command's own time.
GRACE_S = 30.0


class AsyncExecution:
    """A command that was started; the properties are as of the last answer, ``refresh`` asks again."""

    def __init__(self, http: AsyncHTTP, data: Mapping[str, Any]) -> None:
        self._http = http
        self._data = dict(data)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"

    @property
    def id(self) -> str:
        return str(self._data["execution_id"])

    @property
    def machine_id(self) -> str:
        return str(self._data["machine_id"])

    @property
    def command(self) -> str | list[str]:
        command: str | list[str] = self._data["command"]
        return command

    @property
    def name(self) -> str | None:
        """``start``: what the machine's template starts."""
        return self._data.get("name")

    @property
    def status(self) -> str:
        """approval_required (nothing was started; ``Client.approve``), queued, running, succeeded, failed, cancelled,
        expired."""
        return str(self._data["status"])

    @property
    def running(self) -> bool:
        return self.status not in ENDED

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + n where signal n ended it."""
        return None if self.running else self.exit.exit_code

    @property
    def exit(self) -> ExecExit:
        """How it ended. Meaningful once it is not ``running``."""
        return ExecExit.from_json(self._data)

    @property
    def created_at(self) -> datetime | None:
        return parse_time(self._data.get("created_at"))

    def to_json(self) -> dict[str, Any]:
        """The daemon's own record."""
        return dict(self._data)

    @property
    def _path(self) -> str:
        return f"/v1/machines/{self.machine_id}/executions/{self.id}"

    async def refresh(self) -> AsyncExecution:
        self._data = await self._http.call("GET", self._path)
        return self

    async def wait(self, timeout: float | None = None) -> ExecResult:
        """Returns when it has ended, however it ended, with its output.

        Raises TimeoutExpired after ``timeout`` seconds; the command goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.02
        while (await self.refresh()).running:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise error(
                        "TIMEOUT", f"Execution {self.id} still runs after {timeout:g} s of waiting."
                    )
                pause = min(pause, left)
            await sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return await self.output()

    async def output(self) -> ExecResult:
        """What it has written so far, at most 1 MiB a stream, with its present state."""
        data = await self._http.call("GET", f"{self._path}/output")
        return ExecResult.from_json({**self._data, **data})

    def stream(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> AsyncExecStream:
        """Its output from these offsets (bytes), and then as it comes."""
        return AsyncExecStream(
            self._http, self.machine_id, execution=self, offsets=(stdout_offset, stderr_offset)
        )

    async def write_stdin(
        self, data: str | bytes | AsyncIterator[bytes], *, eof: bool = False
    ) -> int:
        """Bytes written. The execution must have been started with ``stdin_stream=True``.

        An iterator is sent in one request, as fast as the command reads; once that breaks off, nobody
        can say how much arrived.
        """
        if isinstance(data, str):
            data = data.encode()
        elif isinstance(data, (bytearray, memoryview)):
            data = bytes(data)
        answer = await self._http.call(
            "POST",
            f"{self._path}/stdin",
            content=data,
            params={"eof": "true"} if eof else {},
            timeout=self._http.timeout if isinstance(data, bytes) else None,
        )
        return int(answer["written"])

    async def close_stdin(self) -> None:
        await self.write_stdin(b"", eof=True)

    async def signal(self, signal: int | str) -> AsyncExecution:
        """Sends a signal (15, "SIGTERM") to everything the execution started."""
        self._data = await self._http.call("POST", f"{self._path}/signal", json={"signal": signal})
        return self

    async def kill(self) -> AsyncExecution:
        """Kills everything it started; an ended one stays as it is."""
        self._data = await self._http.call("DELETE", self._path)
        return self


class AsyncExecutions:
    """``machine.executions``."""

    def __init__(self, http: AsyncHTTP, machine_id: str) -> None:
        self._http = http
        self._machine_id = machine_id
        self._path = f"/v1/machines/{machine_id}/executions"

    async def list(
        self, *, status: str | None = None, limit: int | None = 100
    ) -> list[AsyncExecution]:
        """Newest first."""
        pages = self._http.pages(self._path, given(status=status), limit)
        return [AsyncExecution(self._http, item) async for item in pages]

    async def get(self, execution_id: str) -> AsyncExecution:
        """Raises NotFoundError."""
        data = await self._http.call("GET", f"{self._path}/{segment(execution_id)}")
        return AsyncExecution(self._http, data)

    async def by_pid(self) -> dict[int, AsyncExecution]:
        """What runs, by the number its command has in the machine. In a fork, also what came along with its parent's
        memory."""
        path = f"/v1/machines/{self._machine_id}/processes"
        found = (await self._http.call("GET", path))["items"]
        return {int(item["pid"]): AsyncExecution(self._http, item) for item in found}

    async def start(
        self,
        command: Command,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: str | bytes | None = None,
        timeout: float | None = None,
        stdin_stream: bool = False,
        keep_awake: bool = True,
    ) -> AsyncExecution:
        """Starts it and returns at once. With ``keep_awake=False`` its machine may fall asleep under it, and it
        goes on when that wakes. Raises InvalidRequestError (COMMAND_NOT_FOUND, ...)."""
        body = execution_body(
            command,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            timeout=timeout,
            stdin_stream=stdin_stream,
            keep_awake=keep_awake,
        )
        data = await self._http.call("POST", self._path, json=body, params={"wait": "false"})
        return AsyncExecution(self._http, data)

    async def run(self, body: Mapping[str, Any]) -> ExecResult:
        """One request that answers when the command has ended; where it waits for approval, a second one that goes on."""
        limit = body.get("timeout_ms")
        data = await self._http.call(
            "POST",
            self._path,
            json=body,
            params={"wait": "true", "approval": "return"},
            timeout=None if limit is None else limit / 1000 + GRACE_S,
        )
        if data["status"] == "approval_required":
            execution = AsyncExecution(self._http, data)
            async for _ in execution.stream():
                pass
            return await (await execution.refresh()).output()
        return ExecResult.from_json(data)
