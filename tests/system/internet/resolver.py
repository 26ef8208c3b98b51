"""DNS over datagrams, TCP and TLS: answers for ``.test``, hands the rest to the host's own resolver, and notes each
question.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from roost.egress import upstream
from tests.system.internet.names import Zone
from tests.system.internet.record import Record

_DATAGRAM = 1232
_PATIENCE_S = 5.0


class Upstream(asyncio.DatagramProtocol):
    """The host's own resolver, by a socket of the host's namespace; without one, nothing but ``.test`` has an
    answer."""

    @staticmethod
    def dial() -> socket.socket | None:
        """To be called on the host's side."""
        for address, _ in upstream.of_host():
            with contextlib.suppress(OSError):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                sock.connect((address, 53))
                return sock
        return None

    def __init__(self) -> None:
        self._transport: Any = None
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._ids = itertools.count(1)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: object) -> None:
        waiting = self._waiting.pop(int.from_bytes(data[:2]), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(data)

    async def ask(self, query: bytes) -> bytes | None:
        if self._transport is None:
            return None
        number = next(self._ids) & 0xFFFF
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self._transport.sendto(struct.pack("!H", number) + query[2:])
            async with asyncio.timeout(_PATIENCE_S):
                return query[:2] + (await waiting)[2:]
        except (TimeoutError, OSError):
            return None
        finally:
            self._waiting.pop(number, None)


class Resolver:
    def __init__(self, record: Record, upstream: Upstream) -> None:
        self._record = record
        self._upstream = upstream
        self._zone = Zone()

    async def answer(self, wire: bytes, to: tuple[str, int], over: str) -> bytes | None:
        """None for what is no question."""
        try:
            query = dns.message.from_wire(wire)
            if query.flags & dns.flags.QR or len(query.question) != 1:
                return None
        except (dns.exception.DNSException, struct.error):
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self._record.add("dns", to[0], to[1], name, type=kind, over=over)
        if name.endswith(".test"):
            answer = self._zone.answer(query)
            most = _DATAGRAM if over == "udp" else 65535
            try:
                return answer.to_wire(max_size=most)
            except dns.exception.TooBig:
                cut = dns.message.make_response(query)
                cut.flags |= dns.flags.TC
                return cut.to_wire()
        forwarded = await self._upstream.ask(wire)
        if forwarded is None:
            failed = dns.message.make_response(query)
            failed.set_rcode(dns.rcode.SERVFAIL)
            return failed.to_wire()
        return forwarded

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question after another; who says nothing is greeted."""
        to = writer.get_extra_info("sockname")[:2]
        over = "tls" if writer.get_extra_info("ssl_object") else "tcp"
        try:
            while True:
                try:
                    async with asyncio.timeout(0.5 if over == "tcp" else _PATIENCE_S):
                        size = struct.unpack("!H", await reader.readexactly(2))[0]
                        wire = await reader.readexactly(size)
                except TimeoutError:
                    if over == "tcp":
                        peer = writer.get_extra_info("peername")[0]
                        writer.write(f"greeting to {peer}\n".encode())
                    return
                answer = await self.answer(wire, to, over)
                if answer is None:
                    return
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """What is no question is told who asked."""

    def __init__(self, resolver: Resolver, to: tuple[str, int]) -> None:
        self._resolver = resolver
        self._to = to
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        task = asyncio.create_task(self._reply(data, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, data: bytes, peer: tuple[str, int]) -> None:
        answer = await self._resolver.answer(data, self._to, "udp")
        self._transport.sendto(answer or f"answer to {peer[0]}".encode(), peer)
