"""TCP connections into machines, for whoever carries bytes there: previews, port forwards, SSH.

```
open --> awake (it is woken) --> straight to the machine's address --> Door
                                      | refused: nothing listens on that address
                                      '--> the agent's Dial, to the machine's own loopback --> Door
```

A server bound to all addresses, or to the machine's, is reached without the agent: no byte of it passes gRPC. One bound
to 127.0.0.1 or ::1 only the agent can reach. While a door is open its machine is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from roost.agent.streams import DialStream
from roost.engine.machine import Machine
from roost.engine.tools import Call
from roost.errors import (
    InvalidRequestError,
    MachineError,
    NotFoundError,
    RoostError,
    UnsupportedError,
)
from roost.network.addresses import AGENT_PORT, MACHINE_ADDRESS
from roost.services import launching
from roost.services.machines import Machines
from roost.services.models import Live

CHUNK = 256 * 1024
DIRECT_S = 5.0  # a machine that drops what it does not serve is asked through its agent after that
AGENT_S = 10.0
REMEMBER_S = 30.0
REMEMBER = 10_000
# A machine that went without a word (its memory lost, its rules changed) is noticed within half a minute.
_KEEP_ALIVE = (
    (socket.TCP_NODELAY, 1),
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
)
Direct = Callable[[str], Awaitable[socket.socket]]  # ``Network.connection``


class Stream(Protocol):
    """Bytes both ways, each way closed on its own. One task may write while another reads."""

    async def read(self) -> bytes:
        """Some; empty at the end. Raises RoostError (PORT_CLOSED, AGENT_LOST) where it broke."""

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. What the other side no longer reads is dropped."""

    async def write_eof(self) -> None: ...

    def close(self) -> None:
        """At once, both ways. Idempotent."""


class Doors:
    """``direct`` gives a socket that reaches a machine's address; None: everything goes through the agent. Which way
    worked is remembered for a while, for each port of each start. ``programs``: what answers on ports by which anything
    can be run: a machine with a list of tools has them open only where that program is on it."""

    def __init__(
        self,
        machines: Machines,
        direct: Direct | None,
        address: str = MACHINE_ADDRESS,
        programs: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self._programs = programs
        self._machines = machines
        self._direct = direct
        self._address = address
        self._by_agent: dict[tuple[str, int, int], float] = {}  # until when

    async def open(self, tenant: str, machine_id: str, port: int) -> Stream:
        """Connected. Wakes the machine; it is in use until the stream is closed. Raises VALIDATION_FAILED,
        PORT_CLOSED and what ``Machines.awake`` raises."""
        check_port(port)
        live = await self._awake(tenant, machine_id, port)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._machines.using(machine_id))
            found = await self.reach(live, port)
            stream: Stream = found if isinstance(found, DialStream) else await _Socket.over(found)
            return _InUse(stream, stack.pop_all())

    async def loopback(self, tenant: str, machine_id: str, port: int, host: str) -> Stream:
        """As ``open``, to the machine's own 127.0.0.1, ::1 or localhost and to no other address of it."""
        check_port(port)
        live = await self._awake(tenant, machine_id, port)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._machines.using(machine_id))
            self._check_program(live.machine, port)
            return _InUse(await _through_agent(live, port, host), stack.pop_all())

    async def reach(self, live: Live, port: int) -> socket.socket | DialStream:
        """A connected socket (not blocking), or the agent's stream where only that reaches the port. Raises
        PORT_CLOSED (for the agent's own port, too) and what the agent raises. The caller says that the machine is in
        use."""
        require_own_network(live.machine)
        if port == AGENT_PORT:
            raise closed(port)
        self._check_program(live.machine, port)
        key = (live.machine.id, live.machine.generation, port)
        by_agent = self._direct is None or self._by_agent.get(key, 0.0) > time.monotonic()
        if by_agent:
            try:
                return await _through_agent(live, port)
            except RoostError as failure:
                self._by_agent.pop(key, None)
                if failure.code != "PORT_CLOSED" or self._direct is None:
                    raise
        try:
            return await self._straight(live.machine.id, port)
        except (OSError, NotFoundError) as failure:
            if by_agent:
                raise closed(port) from failure
        found = await _through_agent(live, port)
        if len(self._by_agent) >= REMEMBER:
            self._by_agent.clear()
        self._by_agent[key] = time.monotonic() + REMEMBER_S
        return found

    async def _awake(self, tenant: str, machine_id: str, port: int) -> Live:
        if not self._machines.runs(machine_id):  # for what is refused none is woken
            self._check_program(await self._machines.get(tenant, machine_id), port)
        live = await self._machines.awake(tenant, machine_id)
        require_own_network(live.machine)
        return live

    def _check_program(self, machine: Machine, port: int) -> None:
        """Raises TOOL_DENIED."""
        program = self._programs.get(port)
        tools = machine.tools
        if program is not None and not tools.allows(Call([program])):
            raise launching.denied(tools, program, f"port {port} leads around it")

    async def _straight(self, machine_id: str, port: int) -> socket.socket:
        assert self._direct is not None
        sock = await self._direct(machine_id)
        try:
            for option, value in _KEEP_ALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(DIRECT_S):
                await asyncio.get_running_loop().sock_connect(sock, (self._address, port))
        except BaseException:
            sock.close()
            raise
        return sock


async def _through_agent(live: Live, port: int, host: str = "") -> DialStream:
    stream = live.agent.dial(port, host)
    try:
        async with asyncio.timeout(AGENT_S):
            await stream.open()
            await stream.connected()
    except RoostError as failure:
        stream.close()
        raise closed(port) if failure.code == "PORT_CLOSED" else failure from failure
    except TimeoutError as failure:
        stream.close()
        raise closed(port) from failure
    except BaseException:
        stream.close()
        raise
    return stream


class _Socket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, sock: socket.socket) -> _Socket:
        reader, writer = await asyncio.open_connection(sock=sock, limit=CHUNK)
        writer.transport.set_write_buffer_limits(high=CHUNK)
        return cls(reader, writer)

    async def read(self) -> bytes:
        try:
            return await self._reader.read(CHUNK)
        except OSError as failure:
            raise MachineError(
                f"The connection into the machine broke: {failure.strerror or failure}.",
                code="PORT_CLOSED",
            ) from failure

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the reading side tells
            self._writer.write(data)
            await self._writer.drain()

    async def write_eof(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.transport.abort()


class _InUse:
    """The stream; closing it lets the machine go idle."""

    def __init__(self, stream: Stream, held: contextlib.ExitStack) -> None:
        self._stream = stream
        self._held = held

    async def read(self) -> bytes:
        return await self._stream.read()

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def write_eof(self) -> None:
        await self._stream.write_eof()

    def close(self) -> None:
        self._stream.close()
        self._held.close()


def check_port(port: int) -> None:
    """Raises VALIDATION_FAILED."""
    if not 1 <= port <= 65535:
        raise InvalidRequestError("port: from 1 to 65535.", details={"field": "port"})


def require_own_network(machine: Machine) -> None:
    """Raises UNSUPPORTED."""
    if not machine.capabilities.own_network:
        raise UnsupportedError(
            f"Machines of the {machine.driver} driver have the host's network: what listens there may be anybody's, "
            "so no port of theirs is led to. Ask for another isolation.",
            details={"driver": machine.driver},
        )


def closed(port: int) -> MachineError:
    return MachineError(
        f"Nothing listens on port {port} of this machine: start a server on it (0.0.0.0:{port} or 127.0.0.1:{port}), "
        "then try again.",
        code="PORT_CLOSED",
        details={"port": port},
    )
