"""Small HTTP servers on a machine's own loopback: Chromium's, and Roost's helpers for displays and kernels.

One request is one connection (``Doors.loopback``), closed at its end. What answers is in the machine, so it may say
anything: heads, bodies, lines and times are bounded, JSON is read with its depth bounded by the parser's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from roost.errors import MachineError, RoostError, TimeoutExpired, error
from roost.services.doors import Doors, Stream

HEAD_BYTES = 16 * 1024
VALUES = 2_000_000  # in one JSON, of which a fifth are objects and lists
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    kind: str  # the content type, without parameters
    body: bytes

    def json(self) -> Any:
        """Raises PORT_BAD_ANSWER."""
        return parse(self.body)


class Inner:
    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def connect(self, tenant: str, machine_id: str, port: int) -> Stream:
        """To 127.0.0.1:``port`` of the machine, which is woken. Raises as ``Doors.loopback``."""
        return await self._doors.loopback(tenant, machine_id, port, "127.0.0.1")

    async def call(
        self,
        tenant: str,
        machine_id: str,
        port: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        limit: int,
        timeout_s: float,
    ) -> Answer:
        """A whole answer of ``limit`` bytes at most. Raises PORT_CLOSED, PORT_BAD_ANSWER, TIMEOUT, and what wakes
        a machine raises."""
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self.connect(tenant, machine_id, port)
                with contextlib.closing(stream):
                    await stream.write(_request(port, method, path, body))
                    reader = _Reader(stream)
                    status, kind, length = await reader.head()
                    return Answer(status, kind, await reader.body(length, limit))
        except TimeoutError as failure:
            raise TimeoutExpired(
                f"What listens on port {port} of this machine did not answer within {timeout_s:g} s.",
                details={"port": port},
            ) from failure

    async def lines(
        self,
        tenant: str,
        machine_id: str,
        port: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        limit: int,
        idle_s: float,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """An answer of JSON objects, a line each, of ``limit`` bytes at most each, as they come; empty lines are
        keep-alives. Silence of ``idle_s`` is TIMEOUT; a connection that ends before the answer does is AGENT_LOST.
        An answer with another status than 200 is one object ``{"type": "refused", "status", ...}``."""
        try:
            async with asyncio.timeout(idle_s):
                stream = await self.connect(tenant, machine_id, port)
            with contextlib.closing(stream):
                reader = _Reader(stream)
                async with asyncio.timeout(idle_s):
                    await stream.write(_request(port, method, path, body))
                    status, _, length = await reader.head()
                    if status != 200:
                        said = parse(await reader.body(length, HEAD_BYTES))
                        yield {**_object(said), "type": "refused", "status": status}
                        return
                while True:
                    async with asyncio.timeout(idle_s):
                        line = await reader.line(limit)
                    if line:
                        yield _object(parse(line))
        except TimeoutError as failure:
            raise TimeoutExpired(
                f"What listens on port {port} of this machine was silent for {idle_s:g} s.",
                details={"port": port},
            ) from failure


class _Reader:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = bytearray()

    async def head(self) -> tuple[int, str, int | None]:
        """(status, content type, length where it is told)."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            if len(self._rest) > HEAD_BYTES:
                raise bad("Its answer's head is too long.")
            await self._more("It closed the connection without an answer.")
        first, *fields = bytes(self._rest[:end]).split(b"\r\n")
        del self._rest[: end + 4]
        status = _STATUS.fullmatch(first)
        if status is None:
            raise bad("It speaks no HTTP.")
        kind, length = "", None
        for field in fields:
            name, _, value = field.partition(b":")
            name, value = name.strip().lower(), value.strip()
            if name == b"content-length":
                if not value.isdigit() or len(value) > 12:
                    raise bad("Its Content-Length is no number.")
                length = int(value)
            elif name == b"content-type":
                kind = value.partition(b";")[0].decode("latin-1").strip().lower()
            elif name == b"transfer-encoding":
                raise bad("It answers in chunks, which are not read here.")
        return int(status[1]), kind, length

    async def body(self, length: int | None, limit: int) -> bytes:
        if length is not None and length > limit:
            raise too_large(limit)
        while length is None or len(self._rest) < length:
            if len(self._rest) > limit:
                raise too_large(limit)
            if not await self._some():
                if length is not None:
                    raise bad("It broke off in the middle of an answer.")
                break
        return bytes(self._rest if length is None else self._rest[:length])

    async def line(self, limit: int) -> bytes:
        """Without its end. Raises AGENT_LOST where the connection ended."""
        at = 0
        while (end := self._rest.find(b"\n", at)) < 0:
            at = len(self._rest)
            if at > limit:
                raise too_large(limit)
            if not await self._some():
                raise MachineError("The connection into the machine ended before the answer did.")
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    async def _some(self) -> bool:
        data = await self._stream.read()
        self._rest += data
        return bool(data)

    async def _more(self, otherwise: str) -> None:
        if not await self._some():
            raise bad(otherwise)


def _request(port: int, method: str, path: str, body: Any) -> bytes:
    """Chromium answers to nobody but localhost."""
    data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode("ascii") + b"\r\n" + data


def parse(data: bytes) -> Any:
    """JSON of a machine's. Raises PORT_BAD_ANSWER."""
    # What is read takes many times the memory of its text: "{}," is 3 bytes and 72.
    if data.count(b"{") + data.count(b"[") > VALUES // 5 or data.count(b",") > VALUES:
        raise bad("What it says has too many parts.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise bad("What it says is not JSON.") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad("What it says is no JSON object.")
    return value


def bad(why: str) -> RoostError:
    return error("PORT_BAD_ANSWER", f"What listens in this machine gave no answer of use. {why}")


def too_large(limit: int) -> RoostError:
    return bad(f"It is above {limit} bytes.")
