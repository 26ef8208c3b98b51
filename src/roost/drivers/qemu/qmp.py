"""QEMU's machine protocol, as a client: one JSON object a line, over a unix socket.

Protocol: QEMU ``docs/interop/qmp-spec.rst``. The monitor serves one client at a time and keeps no state of
ours between them, so a later daemon connects to a running VMM as the first one did.

What comes from the VMM is hostile: lines are bounded, replies that nobody waits for are dropped, anything that
is not the protocol ends the connection and fails all who wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.errors import MachineError

LINE_BYTES = 1 << 20
_FLOOD_S = 0.002  # of processor time for one chunk; an honest one takes a tenth of it
_CHUNK = 64 << 10
_EVENTS = 256  # kept for a listener that does not read
_TEXT = 300


class VmmError(MachineError):
    """The VMM refused a command, broke the protocol or is gone."""

    default_code = "MACHINE_FAILED"


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    data: Mapping[str, Any]


class Listener:
    """Events of the named kinds since it was made; the oldest are dropped past a bound."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self._kept: deque[Event] = deque(maxlen=_EVENTS)
        self._came = asyncio.Event()
        self._failure: VmmError | None = None

    def put(self, event: Event) -> None:
        self._kept.append(event)
        self._came.set()

    def fail(self, failure: VmmError) -> None:
        self._failure = failure
        self._came.set()

    async def next(self, timeout_s: float) -> Event:
        """The next one. Raises VmmError: TIMEOUT, or MACHINE_FAILED once the connection is gone."""
        while not self._kept:
            if self._failure is not None:
                raise self._failure
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), timeout_s)
            except TimeoutError:
                raise VmmError(
                    f"The VMM did not report {' or '.join(sorted(self.names))} within {timeout_s:.1f} s.",
                    code="TIMEOUT",
                    details={"timeout_s": timeout_s},
                ) from None
        return self._kept.popleft()


class Qmp:
    """One connection. Use ``connect``; end it with ``close``, which leaves the VMM running."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._greeting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._listeners: set[Listener] = set()
        self._sending = asyncio.Lock()
        self._failure: VmmError | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="qmp")
        self.version = ""

    @classmethod
    async def connect(cls, path: Path, timeout_s: float) -> Qmp:
        """Up to and with the capabilities handshake. The VMM may not have begun to answer: its socket was
        made by us, so connecting works before. Raises VmmError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except OSError as exc:
            sock.close()
            raise VmmError(f"The VMM's control socket does not answer: {exc.strerror}.") from exc
        return await cls.over(sock, timeout_s)

    @classmethod
    async def over(cls, sock: socket.socket, timeout_s: float) -> Qmp:
        """On a connected, non-blocking socket, which it then owns."""
        qmp = cls(sock)
        try:
            async with asyncio.timeout(timeout_s):
                qmp.version = _version(await asyncio.shield(qmp._greeting))
                await qmp.execute("qmp_capabilities", timeout_s=timeout_s)
        except TimeoutError:
            await qmp.close()
            raise VmmError(
                f"The VMM's control socket stayed silent for {timeout_s:.1f} s; destroy or restart the machine."
            ) from None
        except BaseException:
            await qmp.close()
            raise
        return qmp

    @property
    def alive(self) -> bool:
        return self._failure is None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 5.0,
        fd: int | None = None,
    ) -> Any:
        """The command's return value. ``fd`` goes along (SCM_RIGHTS), for ``add-fd`` and ``getfd``; it stays
        the caller's. Raises VmmError; a reply that comes after the deadline is dropped."""
        if self._failure is not None:
            raise self._failure
        number = next(self._ids)
        message: dict[str, Any] = {"execute": command, "id": number}
        if arguments is not None:
            message["arguments"] = arguments
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        try:
            async with asyncio.timeout(timeout_s):
                await self._send(json.dumps(message).encode() + b"\n", fd)
                answer = await reply
        except TimeoutError:
            raise VmmError(
                f"The VMM did not answer {command} within {timeout_s:.1f} s; destroy or restart the machine.",
                code="TIMEOUT",
                details={"command": command, "timeout_s": timeout_s},
            ) from None
        except OSError as exc:
            raise _gone(str(exc)) from exc
        finally:
            del self._waiting[number]
            if reply.done() and not reply.cancelled():
                reply.exception()
        if "error" in answer:
            raise _refused(command, answer["error"])
        found = answer["return"]
        if command.startswith("query-") and not isinstance(found, dict):
            raise VmmError(f"The VMM answers {command} with no object.")
        return found

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[Listener]:
        listener = Listener(frozenset(names))
        if self._failure is not None:
            listener.fail(self._failure)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def close(self) -> None:
        """Idempotent; those who wait get a VmmError."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._end(_gone("the connection was closed"))
        self._socket.close()

    # --- the wire ----------------------------------------------------------------------------------

    async def _send(self, data: bytes, fd: int | None) -> None:
        async with self._sending:
            if fd is not None:
                # The descriptor goes with the first byte; the rest of the line may follow later.
                while True:
                    try:
                        sent = socket.send_fds(self._socket, [data], [fd])
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
                data = data[sent:]
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        kept = bytearray()
        try:
            while data := await loop.sock_recv(self._socket, _CHUNK):
                begun = time.thread_time()
                kept += data
                *lines, rest = kept.split(b"\n")
                if max(map(len, (*lines, rest))) > LINE_BYTES:
                    raise ValueError("a line is too long")
                for line in lines:
                    if line.strip():
                        self._take(json.loads(line))
                kept = rest
                if (spent := time.thread_time() - begun) > _FLOOD_S:
                    await asyncio.sleep(
                        9 * spent
                    )  # one that floods gets a tenth of this thread at most
            self._end(_gone("it closed the connection"))
        except (OSError, ValueError, RecursionError) as exc:
            self._end(_gone(str(exc)[:_TEXT]))

    def _take(self, message: Any) -> None:
        match message:
            case {"QMP": dict()}:
                if not self._greeting.done():
                    self._greeting.set_result(message["QMP"])
            case {"event": str(name)}:
                data = message.get("data")
                event = Event(name, data if isinstance(data, dict) else {})
                for listener in self._listeners:
                    if name in listener.names:
                        listener.put(event)
            case {"id": int(number), "return": _} | {"id": int(number), "error": dict()}:
                reply = self._waiting.get(number)
                if reply is not None and not reply.done():
                    reply.set_result(message)
            case {"error": dict(error)}:
                raise ValueError(f"it did not understand us: {str(error.get('desc'))[:_TEXT]}")
            case _:
                raise ValueError("it sent what is no QMP message")

    def _end(self, failure: VmmError) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        for reply in (self._greeting, *self._waiting.values()):
            if not reply.done():
                reply.set_exception(failure)
        if not self._greeting.cancelled():
            self._greeting.exception()  # seen, should nobody ask
        for listener in self._listeners:
            listener.fail(failure)


def _version(greeting: Mapping[str, Any]) -> str:
    match greeting:
        case {"version": {"qemu": {"major": int(major), "minor": int(minor), "micro": int(micro)}}}:
            return f"{major}.{minor}.{micro}"
    raise VmmError("The VMM's greeting names no version.")


def _refused(command: str, error: Mapping[str, Any]) -> VmmError:
    text = str(error.get("desc", ""))[:_TEXT]
    return VmmError(
        f"The VMM refused {command}: {text}",
        details={"command": command, "class": str(error.get("class", ""))[:_TEXT]},
    )


def _gone(why: str) -> VmmError:
    return VmmError(f"The VMM's control connection is gone ({why}); the machine may have ended.")
