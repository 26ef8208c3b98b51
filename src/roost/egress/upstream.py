"""Asks the host's resolvers, and remembers what they said. Every question is written anew: nothing of a machine's own
message goes on but the name and the type."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

MAX_ANSWERS = 4096
MAX_OUTSTANDING = 8192
MAX_OF_ONE = 64  # of one slot: it must not take all of them
MAX_ADDRESSES = 32
_TRY_S = 2.0
_TRIES = 3
_LEAST_S, _MOST_S, _NONE_S = 1.0, 3600.0, 5.0
_UDP_BYTES = 1232
_LOOK_AGAIN_S = 5.0
_HOSTS_FILE = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Answer:
    """``chain``: the aliases from the name asked for; ``found``: what they lead to, None where nothing is of that
    type. ``rcode``: NOERROR, NXDOMAIN, or SERVFAIL where nobody answered."""

    rcode: int
    chain: tuple[dns.rrset.RRset, ...] = ()
    found: dns.rrset.RRset | None = None

    @property
    def addresses(self) -> list[str]:
        """Of type A."""
        if self.found is None or self.found.rdtype != dns.rdatatype.A:
            return []
        return [str(each.address) for each in self.found][:MAX_ADDRESSES]


FAILED = Answer(dns.rcode.SERVFAIL)
Server = tuple[str, int]


class Upstream:
    """``servers`` () is: those of the host's resolv.conf, looked at again when it changes."""

    def __init__(
        self,
        servers: Sequence[Server] = (),
        *,
        file: Path = _HOSTS_FILE,
        clock: Callable[[], float] = time.monotonic,
        try_s: float = _TRY_S,
    ) -> None:
        self._given = tuple(servers)
        self._file = file
        self._clock = clock
        self._try_s = try_s
        self._looked_at = float("-inf")
        self._stamp = 0
        self._host: tuple[Server, ...] = ()
        self._kept: OrderedDict[tuple[str, int], tuple[float, Answer]] = OrderedDict()
        self._asking: dict[tuple[str, int], asyncio.Task[Answer]] = {}
        self._begun: Counter[object] = Counter()

    async def ask(self, name: str, kind: int, whose: object) -> Answer:
        """``name`` as ``policy.clean_name`` gives it; ``whose`` share of what is under way it counts for. Raises
        nothing: SERVFAIL is an answer."""
        key = (name, kind)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > self._clock():
            self._kept.move_to_end(key)
            return kept[1]
        task = self._asking.get(key)
        if task is None:
            if self._begun[whose] >= MAX_OF_ONE or len(self._asking) >= MAX_OUTSTANDING:
                return FAILED
            task = asyncio.ensure_future(self._ask(name, kind))
            self._asking[key] = task
            self._begun[whose] += 1
            task.add_done_callback(lambda _: self._ended(key, whose))
        return await asyncio.shield(task)

    def _ended(self, key: tuple[str, int], whose: object) -> None:
        del self._asking[key]
        self._begun[whose] -= 1
        if not self._begun[whose]:
            del self._begun[whose]

    async def _ask(self, name: str, kind: int) -> Answer:
        servers = self._servers()
        for attempt in range(max(_TRIES, len(servers)) if servers else 0):
            server = servers[attempt % len(servers)]
            with contextlib.suppress(OSError, TimeoutError, dns.exception.DNSException, ValueError):
                async with asyncio.timeout(self._try_s):
                    reply = await exchange(server, name, kind)
                if reply.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    answer, ttl = _read(reply)
                    self._keep((name, kind), answer, ttl)
                    return answer
        return FAILED

    def _keep(self, key: tuple[str, int], answer: Answer, ttl: float) -> None:
        self._kept[key] = (self._clock() + ttl, answer)
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_ANSWERS:
            self._kept.popitem(last=False)

    def _servers(self) -> tuple[Server, ...]:
        if self._given:
            return self._given
        if self._clock() - self._looked_at > _LOOK_AGAIN_S:
            self._looked_at = self._clock()
            with contextlib.suppress(OSError):
                stamp = self._file.stat().st_mtime_ns
                if stamp != self._stamp:
                    self._host = of_host(self._file)
                    self._stamp = stamp
        return self._host


def of_host(file: Path = _HOSTS_FILE) -> tuple[Server, ...]:
    """Those that it names, as many as a C library asks. Raises OSError."""
    words = [line.split() for line in file.read_text(errors="replace").splitlines()]
    return tuple((w[1], 53) for w in words if len(w) >= 2 and w[0] == "nameserver")[:3]


async def exchange(server: Server, name: str, kind: int) -> dns.message.Message:
    """One question to one resolver: by UDP from a port and with an id that cannot be guessed, by TCP where the
    answer was cut short. Raises OSError, DNSException."""
    question = dns.message.make_query(
        dns.name.from_text(name),
        dns.rdatatype.RdataType(kind),
        use_edns=0,
        payload=_UDP_BYTES,
        id=secrets.randbits(16),
    )
    wire = question.to_wire()
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(
        family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ) as sock:
        sock.connect(server)  # only from there is anything taken
        await loop.sock_sendall(sock, wire)
        while True:
            reply = _fitting(question, await loop.sock_recv(sock, 65535))
            if reply is not None:
                break
    if not reply.flags & dns.flags.TC:
        return reply
    with socket.socket(
        family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ) as sock:
        await loop.sock_connect(sock, server)
        await loop.sock_sendall(sock, len(wire).to_bytes(2) + wire)
        length = int.from_bytes(await _exactly(sock, 2))
        whole = _fitting(question, await _exactly(sock, length))
    if whole is None:
        raise OSError("an answer to another question")
    return whole


async def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not piece:
            raise ConnectionResetError("the resolver closed the connection")
        data += piece
    return data


def _fitting(question: dns.message.Message, wire: bytes) -> dns.message.Message | None:
    if len(wire) < 12 or int.from_bytes(wire[:2]) != question.id:
        return None
    reply = dns.message.from_wire(wire, ignore_trailing=True)
    return reply if question.is_response(reply) else None


def _read(reply: dns.message.Message) -> tuple[Answer, float]:
    assert isinstance(reply, dns.message.QueryMessage)
    found = reply.resolve_chaining()
    rcode = reply.rcode()
    if found.answer is None and rcode == dns.rcode.NXDOMAIN:
        return Answer(rcode), _NONE_S
    answer = Answer(dns.rcode.NOERROR, tuple(found.cnames), found.answer)
    if found.answer is None:
        return answer, _NONE_S
    return answer, min(_MOST_S, max(_LEAST_S, float(found.minimum_ttl)))
