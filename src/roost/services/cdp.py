"""The Chrome DevTools Protocol, as much of it as looking at a page takes. Sans-I/O framing by ``websockets``.

    Session.open -> call(method, params) -> result     events between calls and answers go to ``heard``

https://chromedevtools.github.io/devtools-protocol/ (the ``tot`` protocol; what is used here is in 1.3, too, but for
``captureBeyondViewport``). A message is at most ``MESSAGE`` bytes; the page and its browser are hostile.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from roost.errors import MachineError, RoostError
from roost.services import inner
from roost.services.doors import Stream

MESSAGE = 32 * 2**20  # a picture of a long page, in base64
Heard = Callable[[str, Mapping[str, Any]], None]


class Failed(Exception):
    """The browser refused a call."""


class Session:
    """One connection to one target; one call at a time. ``heard``: is told each event (method, params)."""

    def __init__(self, stream: Stream, port: int, path: str) -> None:
        self._stream = stream
        uri = parse_uri(f"ws://localhost:{port}{path}")
        self._protocol = ClientProtocol(uri, max_size=MESSAGE)
        self._parts: list[bytes] = []  # of a message that is not whole
        self._whole: list[dict[str, Any]] = []
        self._last = 0
        self._dialogs = 0
        self.heard: Heard | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, stream: Stream, port: int, path: str) -> AsyncIterator[Session]:
        """Over a connection, which is closed at the end. Raises PORT_BAD_ANSWER."""
        with contextlib.closing(stream):
            session = cls(stream, port, path)
            protocol = session._protocol
            protocol.send_request(protocol.connect())
            await session._flush()
            while not session._take():
                await session._receive()
            if protocol.handshake_exc is not None:
                raise inner.bad("It refused the WebSocket.") from protocol.handshake_exc
            yield session

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Its result. Raises Failed, PORT_BAD_ANSWER, AGENT_LOST where the page went away."""
        number = await self._send(method, params)
        while True:
            message = await self._message()
            if message.get("id") == number:
                if "error" in message:
                    said = message["error"]
                    text = said.get("message") if isinstance(said, dict) else said
                    raise Failed(str(text)[:500])
                result = message.get("result")
                return result if isinstance(result, dict) else {}
            await self._event(message)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Reads events until one of them made it true."""
        while not happened():
            await self._event(await self._message())

    async def _event(self, message: Mapping[str, Any]) -> None:
        method, params = message.get("method"), message.get("params")
        if not isinstance(method, str) or not isinstance(params, dict):
            return
        if method == "Page.javascriptDialogOpening":  # nobody else answers it, and the page waits
            self._dialogs += 1
            if self._dialogs <= 100:
                await self._send("Page.handleJavaScriptDialog", {"accept": True})
        elif method in ("Inspector.targetCrashed", "Inspector.detached"):
            raise gone()
        if self.heard is not None:
            self.heard(method, params)

    async def _send(self, method: str, params: Mapping[str, Any] | None) -> int:
        self._last += 1
        said = {"id": self._last, "method": method, "params": params or {}}
        try:
            self._protocol.send_text(json.dumps(said, ensure_ascii=False).encode())
        except WebSocketException as failure:
            raise gone() from failure
        await self._flush()
        return self._last

    async def _flush(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data:
            await self._stream.write(data)

    async def _receive(self) -> None:
        try:
            data = await self._stream.read()
        except RoostError as failure:
            raise gone() from failure
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        await self._flush()
        if not data or self._protocol.parser_exc is not None:
            if isinstance(self._protocol.handshake_exc, InvalidHandshake):
                raise inner.bad("It refused the WebSocket.")
            raise gone()

    async def _message(self) -> dict[str, Any]:
        while not self._whole:
            await self._receive()
            self._take()
        return self._whole.pop(0)

    def _take(self) -> bool:
        """What was received; whether the answer to the handshake is in it."""
        shaken = False
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
            else:
                shaken = shaken or isinstance(event, Response)
        return shaken

    def _frame(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.CONT):
            return
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        whole, self._parts = b"".join(self._parts), []
        message = inner.parse(whole)
        if not isinstance(message, dict):
            raise inner.bad("What it says is no JSON object.")
        self._whole.append(message)


def gone() -> RoostError:
    return MachineError("The page crashed or was closed meanwhile: open it again with goto.")
