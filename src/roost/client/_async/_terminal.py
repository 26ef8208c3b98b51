"""Terminals: a shell on a pseudo-terminal in the machine, over a WebSocket."""

from __future__ import annotations

import base64
import builtins
import codecs
import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from roost.client._async._http import AsyncHTTP
from roost.client._wire import given, segment
from roost.errors import error

if TYPE_CHECKING:
    from roost.client._async._socket import AsyncSocket


class AsyncTerminal:
    """Lives in the machine until it is closed or its shell ends, also while nobody is attached."""

    def __init__(self, http: AsyncHTTP, data: Mapping[str, Any]) -> None:
        self._http = http
        self._data = dict(data)
        self._socket: AsyncSocket | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.exit_code: int | None = data.get("exit_code")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {'closed' if self.closed else 'ready'}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def id(self) -> str:
        return str(self._data["terminal_id"])

    @property
    def machine_id(self) -> str:
        return str(self._data["machine_id"])

    @property
    def closed(self) -> bool:
        return bool(self._data["status"] == "closed")

    def to_json(self) -> dict[str, Any]:
        return dict(self._data)

    @property
    def _path(self) -> str:
        return f"/v1/machines/{self.machine_id}/terminals/{self.id}"

    async def attach(self) -> Self:
        """Connects; what was on the screen before comes first. ``create`` has done it."""
        from roost.client._async._socket import AsyncSocket  # websockets, only where it is used

        if self._socket is None:
            config = self._http.config
            self._socket = await AsyncSocket.connect(
                config.url.replace("http", "ws", 1) + f"{self._path}/stream",
                {"Authorization": f"Bearer {config.api_key}"},
            )
        return self

    async def detach(self) -> None:
        """Disconnects; the terminal lives on."""
        if self._socket is not None:
            await self._socket.aclose()
            self._socket = None

    async def aclose(self) -> None:
        """Ends the terminal and what runs on it."""
        await self.detach()
        await self._http.call("DELETE", self._path)
        self._data["status"] = "closed"

    async def link(self, ttl: float | timedelta = 600) -> dict[str, Any]:
        """{url, expires_at}: a WebSocket (bytes both ways) that opens the terminal for whoever has it, as long as this
        key counts. ``ttl``: seconds, at most a day."""
        seconds = int(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)
        made: dict[str, Any] = await self._http.call(
            "POST", f"{self._path}/links", json={"ttl_seconds": seconds}
        )
        return made

    async def send(self, data: str | bytes) -> None:
        """Types it."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        await self._tell({"type": "input", "data": base64.b64encode(raw).decode()})

    async def resize(self, cols: int, rows: int) -> None:
        await self._tell({"type": "resize", "width": cols, "height": rows})

    async def read_bytes(self, timeout: float | None = None) -> bytes:
        """What came next; empty when nothing came within ``timeout`` s or the terminal is ``closed``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.closed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            message = await (await self._connected()).receive(left)
            if message is None:
                return b""
            if data := self._hear(message):
                return data
        return b""

    async def read(self, timeout: float | None = None) -> str:
        """As ``read_bytes``, as text; never splits a character."""
        return self._decoder.decode(await self.read_bytes(timeout))

    async def read_until(self, text: str, timeout: float = 30.0) -> str:
        """All that came up to and with ``text``, and whatever came with it.

        Raises TimeoutExpired, with what came in ``details["output"]``; MachineError if the terminal
        closed first.
        """
        deadline = time.monotonic() + timeout
        seen = ""
        while text not in seen:
            left = deadline - time.monotonic()
            details = {"output": seen[-4096:]}
            if self.closed:
                raise error("PORT_CLOSED", f"The terminal closed before {text!r}.", details=details)
            if left <= 0:
                raise error("TIMEOUT", f"{text!r} did not come in {timeout:g} s.", details=details)
            seen += await self.read(left)
        return seen

    async def _connected(self) -> AsyncSocket:
        if self._socket is None:
            await self.attach()
        assert self._socket is not None
        return self._socket

    async def _tell(self, message: Mapping[str, Any]) -> None:
        await (await self._connected()).send(json.dumps(message))

    def _hear(self, message: str) -> bytes:
        heard = json.loads(message)
        kind = heard.get("type")
        if kind == "output":
            return base64.b64decode(heard["data"])
        if kind == "closed":
            self.exit_code = heard.get("exit_code")
            self._data["status"] = "closed"
        elif kind == "error":
            raise error("AGENT_LOST", str(heard.get("error_message") or "The terminal failed."))
        return b""


class AsyncTerminals:
    """``machine.terminals``."""

    def __init__(self, http: AsyncHTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{segment(machine_id)}/terminals"

    async def create(
        self,
        cols: int = 80,
        rows: int = 24,
        *,
        command: Sequence[str] | None = None,
        shell: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        term: str | None = None,
        attach: bool = True,
    ) -> AsyncTerminal:
        """A login shell, or ``command``, on a new terminal; attached unless told otherwise."""
        body = given(
            width=cols,
            height=rows,
            command=list(command) if command else None,
            shell=shell,
            cwd=cwd,
            env=dict(env) if env else None,
            user=user,
            term=term,
        )
        terminal = AsyncTerminal(self._http, await self._http.call("POST", self._path, json=body))
        return await terminal.attach() if attach else terminal

    async def list(self) -> builtins.list[AsyncTerminal]:
        return [
            AsyncTerminal(self._http, item) async for item in self._http.pages(self._path, {}, None)
        ]

    async def get(self, terminal_id: str) -> AsyncTerminal:
        """Not attached yet: reading or sending attaches. Raises NotFoundError."""
        path = f"{self._path}/{segment(terminal_id)}"
        return AsyncTerminal(self._http, await self._http.call("GET", path))
