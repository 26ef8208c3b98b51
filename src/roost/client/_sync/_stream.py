"""The output of an execution as it comes, whole even when connections break.

start -> read -> exit event -> ended
          ^  |
          |  v connection lost
       reconnect at the offsets seen (bounded; each try is logged)
"""

from __future__ import annotations

import base64
import codecs
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from roost.client._sync._events import events
from roost.client._sync._http import HTTP, log
from roost.client._sync._io import sleep
from roost.client._types import Chunk, ExecExit, ExecTimeout
from roost.client._wire import Event
from roost.errors import RoostError, error

if TYPE_CHECKING:
    from roost.client._sync._executions import Execution

RECONNECT_S = 30.0
# After what a stream is asked for again.
BROKEN = frozenset({"DAEMON_UNREACHABLE", "TIMEOUT", "SHUTTING_DOWN"})
# How it ends without an end of the command's own; all else is a stream that failed.
TOLD = frozenset(
    {"INVALID_STATE", "APPROVAL_DENIED", "APPROVAL_EXPIRED", "COMMAND_NOT_FOUND", "USER_NOT_FOUND"}
)


class ExecStream:
    """Iterate for ``Chunk``s; afterwards ``exit`` says how it ended. Also a context manager.

    Leaving the loop early lets the command run on (``kill`` ends it). Raises ExecTimeout at the end
    where the execution was started by ``exec_stream`` and its time ran out.
    """

    def __init__(
        self,
        http: HTTP,
        machine_id: str,
        *,
        body: Mapping[str, Any] | None = None,
        execution: Execution | None = None,
        offsets: tuple[int, int] = (0, 0),
    ) -> None:
        self._http = http
        self._path = f"/v1/machines/{machine_id}/executions"
        self._body = body
        self.execution = execution
        self.exit: ExecExit | None = None
        self._seen = {"stdout": offsets[0], "stderr": offsets[1]}
        self._lost = {"stdout": 0, "stderr": 0}
        self._text = {s: codecs.getincrementaldecoder("utf-8")("replace") for s in self._seen}
        self._source: Iterator[Event] | None = None
        self._chunks = self._run()

    @property
    def exit_code(self) -> int | None:
        """None until the stream has ended."""
        return None if self.exit is None else self.exit.exit_code

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> Execution:
        """Starts the command unless it runs already; iterating does it too.

        One request starts it and carries its output from the first byte: nothing can fall out of what
        is kept before somebody listens.
        """
        from roost.client._sync._executions import Execution

        if self.execution is None:
            source = events(
                self._http,
                "POST",
                f"{self._path}/stream",
                json=self._body,
                once=True,
                timeout=self._http.timeout,  # a sleeping machine is woken first
            )
            for event in source:
                if event.name in ("started", "approval_required"):
                    self.execution = Execution(self._http, event.data)
                    self._source = source
                    return self.execution
                self._take(event)
            raise error("DAEMON_UNREACHABLE", "The stream ended before the command began.")
        return self.execution

    def close(self) -> None:
        """Stops listening; the command runs on."""
        self._chunks.close()  # type: ignore[attr-defined]
        if self._source is not None:
            self._source.close()  # type: ignore[attr-defined]

    def _attach(self, execution: Execution) -> Iterator[Event]:
        out, err = self._seen["stdout"], self._seen["stderr"]
        return events(
            self._http,
            "GET",
            f"{self._path}/{execution.id}/stream",
            params={"stdout_offset": out, "stderr_offset": err},
            headers={"Last-Event-ID": f"{out}:{err}"},
        )

    def _run(self) -> Iterator[Chunk]:
        execution = self.start()
        broken_since: float | None = None
        pause = 0.2
        while self.exit is None:
            source, self._source = self._source or self._attach(execution), None
            try:
                for event in source:
                    broken_since, pause = None, 0.2
                    chunk = self._take(event)
                    if chunk is not None:
                        yield chunk
                    if self.exit is not None:
                        break
                else:
                    raise error("DAEMON_UNREACHABLE", "The stream ended before the command did.")
            except RoostError as exc:
                if exc.code not in BROKEN:
                    raise
                now = time.monotonic()
                broken_since = now if broken_since is None else broken_since
                if now - broken_since > RECONNECT_S:
                    raise
                log.warning("stream of %s broke (%s); reconnecting", execution.id, exc.code)
                sleep(pause)
                pause = min(pause * 2, 2.0)
            finally:
                source.close()  # type: ignore[attr-defined]
        for stream, decoder in self._text.items():
            if rest := decoder.decode(b"", final=True):
                yield Chunk(stream, b"", rest, self._seen[stream])
        if self.exit.status == "expired" and self._body is not None:
            raise ExecTimeout("The command's time ran out; all it started was killed.", self.exit)

    def _take(self, event: Event) -> Chunk | None:
        if event.name == "exit":
            self.exit = ExecExit.from_json(event.data)
        elif event.name == "dropped":
            self._lost[event.data["stream"]] += int(event.data["bytes"])
        elif event.name in self._seen:
            return self._chunk(event.name, int(event.data["offset"]), event.data["data_b64"])
        elif event.name == "error":
            code = event.data.get("error_code")
            raise error(
                code if code in TOLD else "AGENT_LOST",
                str(event.data.get("message") or "The stream failed in the daemon."),
            )
        return None

    def _chunk(self, stream: str, offset: int, encoded: str) -> Chunk | None:
        data = base64.b64decode(encoded)
        overlap = self._seen[stream] - offset
        if overlap > 0:  # a reconnect may replay what was seen
            data, offset = data[overlap:], offset + overlap
            if not data:
                return None
        lost, self._lost[stream] = max(self._lost[stream], -overlap), 0
        self._seen[stream] = offset + len(data)
        return Chunk(stream, data, self._text[stream].decode(data), offset, lost)
