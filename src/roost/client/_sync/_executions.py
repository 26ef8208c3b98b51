"""Commands in a machine: one by one (``Execution``) and as a list (``Executions``)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from roost.client._sync._http import HTTP
from roost.client._sync._io import sleep
from roost.client._sync._stream import ExecStream
from roost.client._types import ExecExit, ExecResult, parse_time
from roost.client._wire import Command, execution_body, given, segment
from roost.errors import error

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
# What the connection may take on top of the command's own time.
GRACE_S = 30.0


class Execution:
    """A command that was started; the properties are as of the last answer, ``refresh`` asks again."""

    def __init__(self, http: HTTP, data: Mapping[str, Any]) -> None:
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

    def refresh(self) -> Execution:
        self._data = self._http.call("GET", self._path)
        return self

    def wait(self, timeout: float | None = None) -> ExecResult:
        """Returns when it has ended, however it ended, with its output.

        Raises TimeoutExpired after ``timeout`` seconds; the command goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.02
        while (self.refresh()).running:
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise error(
                        "TIMEOUT", f"Execution {self.id} still runs after {timeout:g} s of waiting."
                    )
                pause = min(pause, left)
            sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return self.output()

    def output(self) -> ExecResult:
        """What it has written so far, at most 1 MiB a stream, with its present state."""
        data = self._http.call("GET", f"{self._path}/output")
        return ExecResult.from_json({**self._data, **data})

    def stream(self, *, stdout_offset: int = 0, stderr_offset: int = 0) -> ExecStream:
        """Its output from these offsets (bytes), and then as it comes."""
        return ExecStream(
            self._http, self.machine_id, execution=self, offsets=(stdout_offset, stderr_offset)
        )

    def write_stdin(self, data: str | bytes | Iterator[bytes], *, eof: bool = False) -> int:
        """Bytes written. The execution must have been started with ``stdin_stream=True``.

        An iterator is sent in one request, as fast as the command reads; once that breaks off, nobody
        can say how much arrived.
        """
        if isinstance(data, str):
            data = data.encode()
        elif isinstance(data, (bytearray, memoryview)):
            data = bytes(data)
        answer = self._http.call(
            "POST",
            f"{self._path}/stdin",
            content=data,
            params={"eof": "true"} if eof else {},
            timeout=self._http.timeout if isinstance(data, bytes) else None,
        )
        return int(answer["written"])

    def close_stdin(self) -> None:
        self.write_stdin(b"", eof=True)

    def signal(self, signal: int | str) -> Execution:
        """Sends a signal (15, "SIGTERM") to everything the execution started."""
        self._data = self._http.call("POST", f"{self._path}/signal", json={"signal": signal})
        return self

    def kill(self) -> Execution:
        """Kills everything it started; an ended one stays as it is."""
        self._data = self._http.call("DELETE", self._path)
        return self


class Executions:
    """``machine.executions``."""

    def __init__(self, http: HTTP, machine_id: str) -> None:
        self._http = http
        self._machine_id = machine_id
        self._path = f"/v1/machines/{machine_id}/executions"

    def list(self, *, status: str | None = None, limit: int | None = 100) -> list[Execution]:
        """Newest first."""
        pages = self._http.pages(self._path, given(status=status), limit)
        return [Execution(self._http, item) for item in pages]

    def get(self, execution_id: str) -> Execution:
        """Raises NotFoundError."""
        data = self._http.call("GET", f"{self._path}/{segment(execution_id)}")
        return Execution(self._http, data)

    def by_pid(self) -> dict[int, Execution]:
        """What runs, by the number its command has in the machine. In a fork, also what came along with its parent's
        memory."""
        path = f"/v1/machines/{self._machine_id}/processes"
        found = (self._http.call("GET", path))["items"]
        return {int(item["pid"]): Execution(self._http, item) for item in found}

    def start(
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
    ) -> Execution:
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
        data = self._http.call("POST", self._path, json=body, params={"wait": "false"})
        return Execution(self._http, data)

    def run(self, body: Mapping[str, Any]) -> ExecResult:
        """One request that answers when the command has ended; where it waits for approval, a second one that goes on."""
        limit = body.get("timeout_ms")
        data = self._http.call(
            "POST",
            self._path,
            json=body,
            params={"wait": "true", "approval": "return"},
            timeout=None if limit is None else limit / 1000 + GRACE_S,
        )
        if data["status"] == "approval_required":
            execution = Execution(self._http, data)
            for _ in execution.stream():
                pass
            return (execution.refresh()).output()
        return ExecResult.from_json(data)
