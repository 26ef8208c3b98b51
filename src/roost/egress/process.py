"""The egress process: slots' listeners, and the socket by which the daemon says what holds for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import structlog

from roost.egress import control
from roost.egress.asking import Asking
from roost.egress.control import ProtocolError, StrangeSlotError
from roost.egress.dialling import Dialler, UpstreamProxy
from roost.egress.interface import Listeners
from roost.egress.policy import Policy, Reach
from roost.egress.proxy import Connection, asked
from roost.egress.slot import MAX_CONNECTIONS, Slot
from roost.egress.splice import readable
from roost.egress.upstream import Upstream
from roost.errors import RoostError

log = structlog.get_logger(__name__)

IDLE_S = 3600.0  # without a byte either way; the sockets' own keepalive finds the dead
_LOOK_S = 60.0
_WEIGH_S = 2.0
# What connections hold that nobody takes, of one slot and of all: the process may have 1 GiB (supervisor.py).
_SLOT_BYTES, _ALL_BYTES = 128 * 2**20, 512 * 2**20
_STALLED_BYTES, _STALLED_S = 64 * 1024, 120.0
_AT_ONCE = 64
_PAUSE_S = 0.1  # where descriptors ran out
_CUT_S = 1.0
_OF_EACH = 6  # descriptors of a connection that is busy both ways
_READ_BYTES = 64 * 1024
_RESET = struct.pack("ii", 1, 0)

Weights = list[tuple[int, Connection]]  # bytes held


class Process:
    """``run`` ends when the daemon says ``stop``."""

    def __init__(self, listener: socket.socket, version: str) -> None:
        self._listener = listener
        self._version = version
        self._owner = os.getuid()
        self._slots: dict[int, _Served] = {}
        self._reach = Reach()
        self.dialler = Dialler(Upstream(), lambda: self._reach)
        self._stop = asyncio.Event()
        self._open = 0
        self._most = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _OF_EACH)
        self._talks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        loop.add_reader(self._listener.fileno(), self._called)
        looking = [asyncio.ensure_future(each) for each in (self._look(), self._weigh())]
        await self._stop.wait()
        for task in looking:
            task.cancel()
        loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for served in self._slots.values():
            served.close()
        if self._talks:  # the answer to ``stop`` is on its way
            await asyncio.wait(self._talks, timeout=_CUT_S)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for served in self._slots.values():
                served.end_idle()

    async def _weigh(self) -> None:
        while True:
            await asyncio.sleep(_WEIGH_S)
            weights = []
            for served in list(self._slots.values()):
                weights.append(served.weigh())
                await asyncio.sleep(0)  # others have their turn
            for connection in too_heavy(weights):
                log.warning("egress.too_heavy", slot=connection.slot.index)
                connection.cut()

    # --- the daemon -----------------------------------------------------------------------------

    def _called(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", credentials)[1] not in (0, self._owner):
                sock.close()
                return
            task = asyncio.ensure_future(self._talk(sock))
            self._talks.add(task)
            task.add_done_callback(self._talks.discard)

    async def _talk(self, sock: socket.socket) -> None:
        frames = control.Frames()
        beside: list[int] = []
        try:
            while not self._stop.is_set():
                await readable(sock)
                data, fds, _, _ = socket.recv_fds(
                    sock, _READ_BYTES, control.LISTENERS, socket.MSG_CMSG_CLOEXEC
                )
                beside += fds
                if not data:
                    return
                for message in frames.feed(data):
                    answer = await self._answer(message, beside)
                    await asyncio.get_running_loop().sock_sendall(sock, control.frame(answer))
        except (OSError, ProtocolError) as exc:
            log.warning("egress.control", error=str(exc))
        finally:
            for fd in beside:
                os.close(fd)
            sock.close()

    async def _answer(self, message: dict[str, Any], beside: list[int]) -> dict[str, Any]:
        call = message.get("call")
        try:
            handler = _CALLS.get(call) if isinstance(call, str) else None
            if handler is None:
                raise ProtocolError("a call that is none")
            result = await handler(self, message, beside)
        except StrangeSlotError as exc:
            return {"id": message.get("id"), "error": str(exc), "strange": True}
        except (ProtocolError, RoostError, OSError) as exc:
            return {"id": message.get("id"), "error": str(exc)}
        return {"id": message.get("id"), "result": result}

    async def _hello(self, message: dict[str, Any], beside: list[int]) -> object:
        return {"version": self._version, "pid": os.getpid(), "connections": self._open}

    async def _list(self, message: dict[str, Any], beside: list[int]) -> object:
        return sorted(self._slots)

    async def _attach(self, message: dict[str, Any], beside: list[int]) -> object:
        index = control.read_slot(message.get("slot"))
        fds = beside[: control.LISTENERS]
        del beside[: len(fds)]
        try:
            if len(fds) != control.LISTENERS:
                raise ProtocolError("listeners are missing")
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise
        sockets = [socket.socket(fileno=fd) for fd in fds]
        for sock in sockets:
            sock.setblocking(False)
        earlier = self._slots.pop(index, None)
        slot = earlier.slot if earlier is not None else Slot(index)
        if earlier is not None:
            earlier.close(connections=False)
        self._slots[index] = _Served(self, slot, Listeners(*sockets))
        return None

    async def _detach(self, message: dict[str, Any], beside: list[int]) -> object:
        served = self._slots.pop(control.read_slot(message.get("slot")), None)
        if served is not None:
            await _gone(served.close())
        return None

    async def _apply(self, message: dict[str, Any], beside: list[int]) -> object:
        served = self._served(message)
        policy = Policy.read(message.get("policy"))
        intercept = control.read_intercepts(message.get("intercept"))
        machine_id = control.read_text(message.get("machine_id"))
        await _gone(served.slot.apply(machine_id, policy, intercept, self._reach))
        return None

    async def _decisions(self, message: dict[str, Any], beside: list[int]) -> object:
        return control.decisions_to_json(self._served(message).slot.ledger.rows())

    async def _set_reach(self, message: dict[str, Any], beside: list[int]) -> object:
        self._reach = control.read_reach(message.get("reach"))
        for served in self._slots.values():
            served.slot.cut(self._reach)
        return None

    async def _set_upstream(self, message: dict[str, Any], beside: list[int]) -> object:
        servers = control.read_servers(message.get("servers"))
        proxy = control.read_text(message.get("proxy"))
        self.dialler.proxy = UpstreamProxy.parse(proxy) if proxy else None
        self.dialler.upstream = Upstream(servers)
        return None

    async def _end(self, message: dict[str, Any], beside: list[int]) -> object:
        self._stop.set()
        return None

    def _served(self, message: dict[str, Any]) -> _Served:
        served = self._slots.get(control.read_slot(message.get("slot")))
        if served is None:
            raise StrangeSlotError("no such slot")
        return served

    # --- the slots ------------------------------------------------------------------------------

    def reach(self) -> Reach:
        return self._reach

    @property
    def full(self) -> bool:
        return self._open >= self._most

    def opened(self, count: int) -> None:
        self._open += count


_CALLS = {
    "hello": Process._hello,
    "slots": Process._list,
    "attach": Process._attach,
    "detach": Process._detach,
    "apply": Process._apply,
    "decisions": Process._decisions,
    "reach": Process._set_reach,
    "upstream": Process._set_upstream,
    "stop": Process._end,
}


class _Served:
    """A slot with its listeners."""

    def __init__(self, process: Process, slot: Slot, listeners: Listeners) -> None:
        self.slot = slot
        self._process = process
        self._listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._asking = Asking(
            slot, listeners.dns_udp, listeners.dns_tcp, process.dialler, process.reach
        )
        self._moved: dict[Connection, tuple[int, float]] = {}
        self._stalled: dict[Connection, tuple[int, float]] = {}
        self._closed = False
        self._loop.add_reader(listeners.proxy.fileno(), self._accept)

    def close(self, *, connections: bool = True) -> list[Connection]:
        """Those it cut."""
        self._closed = True
        self._asking.close()
        self._loop.remove_reader(self._listeners.proxy.fileno())
        for sock in (self._listeners.dns_udp, self._listeners.dns_tcp, self._listeners.proxy):
            sock.close()
        return self.slot.cut_all() if connections else []

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if not self.slot.accepting.take():
                return self._pause()
            try:
                sock, _ = self._listeners.proxy.accept()
            except BlockingIOError:
                self.slot.accepting.give()
                return None
            except OSError as exc:  # descriptors ran out
                self.slot.accepting.give()
                log.warning("egress.accept", slot=self.slot.index, error=str(exc))
                return self._pause()
            sock.setblocking(False)
            if len(self.slot.connections) >= MAX_CONNECTIONS or self._process.full:
                with contextlib.suppress(OSError):
                    self.slot.ledger.note(*asked(sock), "packet", "too_many")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
                continue
            connection = Connection(self.slot, sock, self._process.dialler)
            self.slot.connections.add(connection)
            self._process.opened(1)
            connection.start(self._done)
        return None

    def _pause(self) -> None:
        """Those that wait, wait."""
        self._loop.remove_reader(self._listeners.proxy.fileno())
        self._loop.call_later(_PAUSE_S, self._listen_again)

    def _listen_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listeners.proxy.fileno(), self._accept)

    def _done(self, connection: Connection) -> None:
        self.slot.connections.discard(connection)
        self._moved.pop(connection, None)
        self._stalled.pop(connection, None)
        self._process.opened(-1)

    def end_idle(self) -> None:
        now = time.monotonic()
        for connection in list(self.slot.connections):
            moved, since = self._moved.get(connection, (-1, now))
            if connection.moved != moved:
                self._moved[connection] = (connection.moved, now)
            elif now - since > IDLE_S:
                connection.cut()

    def weigh(self) -> Weights:
        """What each connection holds; those are ended that hold much and move nothing."""
        now, found = time.monotonic(), []
        for connection in list(self.slot.connections):
            held = connection.held
            if held < _STALLED_BYTES:
                self._stalled.pop(connection, None)
                continue
            found.append((held, connection))
            moved, since = self._stalled.get(connection, (-1, now))
            if connection.moved != moved:
                self._stalled[connection] = (connection.moved, now)
            elif now - since > _STALLED_S:
                connection.cut()
        return found


def too_heavy(weights: Sequence[Weights]) -> list[Connection]:
    """Those to end, so that no slot, nor all together, holds too much: the heaviest of the slot that holds most."""
    left = [sorted(each, key=lambda one: one[0]) for each in weights]
    sums = [sum(held for held, _ in each) for each in left]
    found: list[Connection] = []
    while sums and (max(sums) > _SLOT_BYTES or sum(sums) > _ALL_BYTES):
        at = sums.index(max(sums))
        held, connection = left[at].pop()
        sums[at] -= held
        found.append(connection)
    return found


async def _gone(cut: Sequence[Connection]) -> None:
    """Until those that were cut have reset both sides."""
    if cut:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CUT_S):
                await asyncio.gather(*(connection.gone() for connection in cut))
