"""The namespace of the tests' internet, the thread that serves in it, and the fixture."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import itertools
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn

from roost.host import netns, syscalls
from tests.system.internet import packets
from tests.system.internet.certificates import Authority
from tests.system.internet.names import (
    ATTACKERS,
    INTERNET,
    LAN,
    METADATA,
    NETWORK,
    PUBLIC_RESOLVER,
    RESOLVER,
    WEB,
)
from tests.system.internet.record import Record, Seen
from tests.system.internet.resolver import Datagrams, Resolver, Upstream
from tests.system.internet.web import Web

HERE, THERE = "172.30.255.1", "172.30.255.2"  # the link's ends; all that comes is seen as HERE
_LOCK = "/run/lock/roost-test-internet"
_SO_ORIGINAL_DST = 80  # <linux/netfilter_ipv4.h>
_SINK = 9
# Whatever port of an attacker's is asked for, somebody is there; and where QUIC would be.
_RULES = f"""
table ip internet {{
  chain led {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {ATTACKERS} meta l4proto {{ tcp, udp }} redirect to :{_SINK}
    ip daddr {NETWORK} udp dport 443 redirect to :{_SINK}
  }}
}}
"""


class Internet:
    """As a context manager: there while the block runs. ``name``: of its namespace; ``ca``: the authority's
    certificate, which signs for every HTTPS server here."""

    def __init__(self) -> None:
        self.name = f"rtest-{os.getpid()}"
        self._host, self._far = f"rt{os.getpid()}", f"rf{os.getpid()}"
        self._record = Record()
        self._authority = Authority()
        self._attackers = itertools.cycle(list(ipaddress.IPv4Network(ATTACKERS).hosts())[:-1])
        self._undo = contextlib.ExitStack()
        self._started: threading.Event = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def ca(self) -> Path:
        return self._authority.path

    # --- what it saw ----------------------------------------------------------------------------

    def attacker(self) -> str:
        """An address that answers everything, and that nobody was given for a long while."""
        return str(next(self._attackers))

    def now(self) -> float:
        return time.monotonic()

    def seen(
        self,
        kind: str | None = None,
        *,
        to: str | None = None,
        port: int | None = None,
        said: str | Callable[[str], bool] | None = None,
        since: float = 0.0,
    ) -> list[Seen]:
        """Oldest first; of that kind, sent to that address and port, saying that."""

        def fits(each: Seen) -> bool:
            return (
                (kind is None or each.kind == kind)
                and (to is None or each.to == to)
                and (port is None or each.port == port)
                and (said is None or (said(each.said) if callable(said) else each.said == said))
                and each.at >= since
            )

        return [each for each in self._record.all() if fits(each)]

    # --- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._authority.close)
            turn = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, turn)
            fcntl.flock(turn, fcntl.LOCK_EX)  # a host has one of each address: other sessions wait
            netns.prepare()
            _sweep()
            fd = netns.create(self.name)
            undo.callback(netns.delete, self.name)
            undo.callback(os.close, fd)
            self._connect(undo)
            upstream = Upstream.dial()
            thread = threading.Thread(
                target=self._serve, args=(fd, upstream), name="internet", daemon=True
            )
            thread.start()
            undo.callback(self._end, thread)
            if not self._started.wait(20):
                raise RuntimeError("the tests' internet does not come up")
            if self._failure is not None:
                raise self._failure
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _connect(self, undo: contextlib.ExitStack) -> None:
        def ip(*words: str) -> None:
            subprocess.run(["ip", *words], check=True)

        name, far = self.name, self._far
        ip("link", "add", self._host, "type", "veth", "peer", "name", far, "netns", name)
        undo.callback(subprocess.run, ["ip", "link", "del", self._host], check=False)
        subprocess.run(
            ["ip", "netns", "exec", name, "nft", "-f", "-"], input=_RULES, text=True, check=True
        )
        ip("addr", "add", f"{HERE}/30", "dev", self._host)
        ip("link", "set", self._host, "up")
        ip("-n", name, "addr", "add", f"{THERE}/30", "dev", far)
        for address in (INTERNET, RESOLVER, LAN, METADATA):
            ip("-n", name, "addr", "add", f"{address}/32", "dev", "lo")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", far, "up")
        ip("-n", name, "route", "add", "local", NETWORK, "dev", "lo")  # all of it is here
        ip("-n", name, "route", "add", "default", "via", HERE)
        for network in (NETWORK, f"{LAN}/32", f"{METADATA}/32"):
            ip("route", "add", network, "via", THERE)

    def _end(self, thread: threading.Thread) -> None:
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(10)

    def _serve(self, fd: int, upstream: socket.socket | None) -> None:
        """The thread: it is in the namespace from its first step to its end."""
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            asyncio.run(self._run(upstream))
        except BaseException as exc:
            self._failure = exc
        finally:
            self._started.set()

    async def _run(self, upstream_socket: socket.socket | None) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        loop = self._loop
        wire = packets.listen(self._far)
        loop.add_reader(wire, packets.reader(wire, self._record))
        upstream = Upstream()
        if upstream_socket is not None:
            await loop.create_datagram_endpoint(lambda: upstream, sock=upstream_socket)
        resolver = Resolver(self._record, upstream)
        listening = []
        # On each address by itself, so that answers come from where the question went.
        for address in (RESOLVER, PUBLIC_RESOLVER, LAN):
            to = (address, 53)
            await loop.create_datagram_endpoint(
                lambda to=to: Datagrams(resolver, to),  # type: ignore[misc]
                local_addr=to,
            )
            listening.append(await asyncio.start_server(resolver.stream, address, 53))
        tls = self._tls()
        listening += [
            await asyncio.start_server(resolver.stream, PUBLIC_RESOLVER, 853, ssl=tls),
            await asyncio.start_server(_greet, INTERNET, 80),
            await asyncio.start_server(self._reached, "0.0.0.0", _SINK),
        ]
        await loop.create_datagram_endpoint(_Echo, local_addr=("0.0.0.0", _SINK))
        web = Web(self._record, resolver)
        servers = [_server(web, None), _server(web, tls)]
        serving = [
            asyncio.create_task(server.serve([_bound(address, port) for address in WEB]))
            for server, port in zip(servers, (80, 443), strict=True)
        ]
        while not all(server.started for server in servers):
            for task in serving:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)
        self._started.set()
        await self._stop.wait()
        for each in listening:
            each.close()
        for server in servers:
            server.should_exit = server.force_exit = True
        await asyncio.wait(serving, timeout=3)
        loop.remove_reader(wire)
        wire.close()

    def _tls(self) -> ssl.SSLContext:
        """Shows a certificate for whatever name it is called by, and notes the name."""
        context = self._authority.context("nameless.test")

        def called(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            self._record.add("tls", "", 0, name or "")
            if name:
                connection.context = self._authority.context(name)

        context.sni_callback = called
        return context

    async def _reached(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody connected to an attacker, who wins by being spoken to."""
        sock = writer.get_extra_info("socket")
        port, address = struct.unpack_from(
            "!2xH4s", sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        )
        try:
            writer.write(b"reached the attacker\n")
            while data := await reader.read(65536):
                self._record.add(
                    "tcp", socket.inet_ntoa(address), port, data[:256].decode("latin-1")
                )
        except (OSError, asyncio.CancelledError):
            return
        finally:
            writer.close()


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self._transport.sendto(b"reached: " + data[:256], peer)


async def _greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"greeting to {writer.get_extra_info('peername')[0]}\n".encode())
    writer.close()


def _bound(address: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    return sock


def _server(web: Web, tls: ssl.SSLContext | None) -> uvicorn.Server:
    config = uvicorn.Config(
        web, lifespan="off", log_config=None, access_log=False, timeout_keep_alive=60, loop="none"
    )
    config.load()
    config.ssl = tls
    return uvicorn.Server(config)


def _sweep() -> None:
    """What sessions left that were killed: their routes are in the way of ours."""
    for name in [path.name for path in Path("/run/netns").glob("rtest-*")]:
        pid = name.removeprefix("rtest-")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "link", "del", f"rt{pid}"], check=False)
            netns.delete(name)


@pytest.fixture(scope="session")
def internet() -> Iterator[Internet]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Internet() as there:
        yield there
