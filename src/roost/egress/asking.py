"""A slot's two sockets for DNS: questions in, answers out. What is answered, ``resolver.py`` says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import structlog

from roost.egress import resolver
from roost.egress.dialling import Dialler
from roost.egress.interface import DNS_PORT
from roost.egress.policy import Mode, Reach
from roost.egress.slot import Slot

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 32
_AT_ONCE = 64
_QUESTIONS = 64  # on one connection
_IDLE_S = 10.0
_PAUSE_S = 0.1  # where descriptors ran out
_MAX_SAID = 253
# Nobody's (RFC 5737): what a name gets that only an upstream proxy can resolve, for a machine must connect to
# something. Rules lead it here whatever it is.
PLACEHOLDER = "203.0.113.254"


class Asking:
    """``udp`` and ``tcp`` are the slot's; ``close`` before they are."""

    def __init__(
        self,
        slot: Slot,
        udp: socket.socket,
        tcp: socket.socket,
        dialler: Dialler,
        reach: Callable[[], Reach],
    ) -> None:
        self._slot = slot
        self._udp, self._tcp = udp, tcp
        self._dialler = dialler
        self._reach = reach
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(udp.fileno(), self._packets)
        self._loop.add_reader(tcp.fileno(), self._accept)

    def close(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._udp.fileno())
        self._loop.remove_reader(self._tcp.fileno())
        for task in self._tasks:
            task.cancel()

    def _packets(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                wire, whose = self._udp.recvfrom(resolver.MAX_QUESTION + 1)
            except BlockingIOError:
                return
            except OSError:  # an ICMP that came back
                continue
            if self._slot.may_ask() and (query := resolver.read(wire)) is not None:
                self._start(self._by_udp(query, whose))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _by_udp(self, query: dns.message.QueryMessage, whose: tuple[str, int]) -> None:
        answer = await self._answer(query, udp=True)
        if answer is not None:
            with contextlib.suppress(OSError):
                self._udp.sendto(answer, whose)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._tcp.accept()
            except BlockingIOError:
                return
            except OSError as exc:  # descriptors ran out
                log.warning("egress.accept", slot=self._slot.index, error=str(exc))
                self._loop.remove_reader(self._tcp.fileno())
                self._loop.call_later(_PAUSE_S, self._listen_again)
                return
            sock.setblocking(False)
            if self._connections >= MAX_CONNECTIONS:
                sock.close()
            else:
                self._connections += 1
                self._start(self._by_tcp(sock))

    def _listen_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._tcp.fileno(), self._accept)

    async def _by_tcp(self, sock: socket.socket) -> None:
        """Questions one after the other (RFC 7766)."""
        try:
            for _ in range(_QUESTIONS):
                async with asyncio.timeout(_IDLE_S):
                    length = int.from_bytes(await self._exactly(sock, 2))
                    if length > resolver.MAX_QUESTION:
                        return
                    wire = await self._exactly(sock, length)
                query = resolver.read(wire) if self._slot.may_ask() else None
                answer = None if query is None else await self._answer(query, udp=False)
                if answer is None:
                    return
                async with asyncio.timeout(_IDLE_S):
                    await self._loop.sock_sendall(sock, len(answer).to_bytes(2) + answer)
        except (OSError, EOFError):
            pass
        finally:
            self._connections -= 1
            sock.close()

    async def _exactly(self, sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await self._loop.sock_recv(sock, count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    async def _answer(self, query: dns.message.QueryMessage, *, udp: bool) -> bytes | None:
        """None: nothing is said."""
        self._slot.unanswered += 1
        try:
            return resolver.wire(query, await self._decide(query, udp), udp=udp)
        except Exception:  # a stranger's question must not end the listener
            log.exception("egress.question", slot=self._slot.index)
            return None
        finally:
            self._slot.unanswered -= 1

    async def _decide(self, query: dns.message.QueryMessage, udp: bool) -> dns.message.Message:
        slot = self._slot
        if slot.policy is None:
            return resolver.failed(query)
        name, kind = resolver.asked(query)
        said = name or _inert(query)
        reason = resolver.judge(slot.policy, name, kind)
        if reason or name is None:
            self._note(said, reason, udp)
            return resolver.refused(query, reason)
        if resolver.empty(kind):
            self._note(name, "", udp)
            return resolver.nothing(query)
        upstream = self._dialler.upstream
        answer = await upstream.ask(name, kind, slot.index)
        if slot.policy is None or resolver.judge(slot.policy, name, kind):
            return resolver.failed(query)  # the policy changed meanwhile
        if (
            kind == dns.rdatatype.A
            and not answer.addresses
            and self._dialler.proxy is not None
            and slot.policy.mode is Mode.ALLOWLIST
        ):
            self._note(name, "", udp)
            return resolver.placeholder(query, PLACEHOLDER)
        if answer.rcode == dns.rcode.SERVFAIL:
            self._note(name, "", udp)
            return resolver.failed(query)
        reply, reason = resolver.answered(query, answer, self._reach())
        self._note(name, reason, udp)
        return reply

    def _note(self, host: str, reason: str, udp: bool) -> None:
        self._slot.ledger.note(host, DNS_PORT, "dns", reason, "udp" if udp else "tcp")


def _inert(query: dns.message.QueryMessage) -> str:
    """A name that is no host's, in the master files' spelling: printable."""
    try:
        return str(query.question[0].name.to_text(omit_final_dot=True))[:_MAX_SAID]
    except dns.exception.DNSException:
        return "?"
