"""An egress process that is none: threads that say which slot they were asked by, and for what."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence

from roost.egress.interface import Decision, Intercept, Listeners
from roost.egress.policy import Policy, Reach

_SO_ORIGINAL_DST = 80


class Answering:
    """``roost.egress.interface.Egress``. DNS gets ``names of SLOT``, a connection ``proxy of SLOT to ADDRESS:PORT`` and
    then its own bytes again."""

    def __init__(self) -> None:
        self.listeners: dict[int, Listeners] = {}
        self.applied: dict[int, tuple[str, Policy, tuple[Intercept, ...]]] = {}
        self.told: list[Reach] = []
        self.again: Callable[[], Awaitable[None]] | None = None

    async def open(self) -> None:
        pass

    def on_restart(self, again: Callable[[], Awaitable[None]]) -> None:
        self.again = again

    async def die(self) -> None:
        """And another takes its place."""
        for slot in list(self.listeners):
            self._close(slot)
        self.applied.clear()
        assert self.again is not None
        await self.again()

    async def reach(self, reach: Reach) -> None:
        self.told.append(reach)

    async def slots(self) -> set[int]:
        return set(self.listeners)

    async def attach(self, slot: int, listeners: Listeners) -> None:
        kept = Listeners(listeners.dns_udp.dup(), listeners.dns_tcp.dup(), listeners.proxy.dup())
        self.listeners[slot] = kept
        for target, sock in ((self._names, kept.dns_udp), (self._proxy, kept.proxy)):
            sock.settimeout(0.1)
            threading.Thread(target=target, args=(slot, sock), daemon=True).start()

    async def detach(self, slot: int) -> None:
        self.applied.pop(slot, None)
        if slot in self.listeners:
            self._close(slot)

    async def apply(
        self, slot: int, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        self.applied[slot] = (machine_id, policy, tuple(intercept))

    async def decisions(self, slot: int) -> list[Decision]:
        return [Decision("named.example", 443, "tcp", "tls", True, "", 1, 1.0, 1.0)]

    async def close(self) -> None:
        pass

    async def purge(self) -> None:
        for slot in list(self.listeners):
            self._close(slot)

    def _close(self, slot: int) -> None:
        listeners = self.listeners.pop(slot)
        for sock in (listeners.dns_udp, listeners.dns_tcp, listeners.proxy):
            # What a thread waits in stays open otherwise.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _names(self, slot: int, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.fileno() >= 0:
                with contextlib.suppress(TimeoutError):
                    _, peer = sock.recvfrom(512)
                    sock.sendto(f"names of {slot}".encode(), peer)

    def _proxy(self, slot: int, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.fileno() >= 0:
                with contextlib.suppress(TimeoutError):
                    connection, _ = sock.accept()
                    threading.Thread(
                        target=self._echo, args=(slot, connection), daemon=True
                    ).start()

    def _echo(self, slot: int, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            there = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            port, address = struct.unpack_from("!H4s", there, 2)
            connection.sendall(f"proxy of {slot} to {socket.inet_ntoa(address)}:{port}\n".encode())
            while data := connection.recv(65536):
                connection.sendall(data)
