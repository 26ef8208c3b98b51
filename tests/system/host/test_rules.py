"""Rules of slots, tried from the machine's namespace with no machine in it: what each policy lets through, what it cuts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pyroute2 import IPRoute

from roost.drivers.interface import NetworkSlot
from roost.egress.interface import BOUNDARY_UID, EGRESS_UID, Intercept
from roost.egress.policy import Policy
from roost.errors import NotFoundError
from roost.host import netns
from roost.network import SlotNetwork, plumbing
from roost.network.rules import TRIED
from roost.settings import Settings
from tests.system.internet import INTERNET, RESOLVER, Internet
from tests.system.internet.names import PUBLIC_RESOLVER

from .egress import Answering

pytestmark = pytest.mark.system
T = TypeVar("T")
PRIVATE, METADATA, UPLINK = "192.168.77.7", "169.254.169.254", "172.30.255.1"
SOON_S = 5.0  # after the new rules stand; what is not cut goes on for good


def _settings(tmp_path: Path, **more: Any) -> Settings:
    values: dict[str, Any] = {"network_cidr": "10.232.0.0/20", "network_pool": 1, **more}
    return Settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run", **values)


@pytest.fixture
def egress() -> Answering:
    return Answering()


@contextlib.asynccontextmanager
async def _opened(settings: Settings, egress: Answering) -> AsyncIterator[SlotNetwork]:
    network = SlotNetwork(settings, egress)
    await network.open({})
    try:
        yield network
    finally:
        await network.purge()
        await network.close()


@pytest.fixture
async def network(
    internet: Internet, tmp_path: Path, egress: Answering
) -> AsyncIterator[SlotNetwork]:
    async with _opened(_settings(tmp_path), egress) as network:
        yield network


def _policy(*allow: str, observe: bool = False) -> Policy:
    return Policy.read({"mode": "allowlist", "allow": list(allow), "observe": observe})


OPEN, OFF = Policy.read("open"), Policy.read("off")


class Inside:
    """Speaks as the machine would."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        def body() -> T:
            fd = netns.open_fd(self._name)
            try:
                with netns.entered(fd):
                    return function(*args)
            finally:
                os.close(fd)

        return await asyncio.to_thread(body)

    async def tcp(self, address: str, port: int) -> str:
        """What the peer says first; raises OSError."""

        def ask() -> str:
            with socket.create_connection((address, port), 10) as sock:
                return sock.recv(200).decode().strip()

        return await self.run(ask)

    async def udp(self, address: str, port: int) -> str:
        def ask() -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1)
                sock.connect((address, port))
                sock.send(b"?")
                return sock.recv(200).decode()

        return await self.run(ask)

    async def ping(self, address: str) -> bool:
        def ask() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
                sock.settimeout(1)
                sock.sendto(struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"12345678", (address, 0))
                try:
                    return sock.recv(100)[0] == 0
                except OSError:
                    return False

        return await self.run(ask)

    async def refused(self, address: str, port: int) -> None:
        """At once, and by a reset: nobody waits for a time limit."""
        with pytest.raises(ConnectionRefusedError):
            await self.tcp(address, port)

    async def udp_refused(self, address: str, port: int) -> None:
        with pytest.raises(OSError) as caught:
            await self.udp(address, port)
        assert not isinstance(caught.value, TimeoutError), "an answer came that says so"


def _inside(slot: NetworkSlot) -> Inside:
    return Inside(slot.netns.name)


class Far:
    """A server of the internet's, or of another namespace's: takes what comes, or sends without end."""

    def __init__(self, namespace: str, port: int, kind: int = socket.SOCK_STREAM) -> None:
        fd = netns.open_fd(namespace)
        try:
            with netns.entered(fd):
                self.sock = socket.socket(socket.AF_INET, kind)
        finally:
            os.close(fd)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # UDP on one address, so that answers come from where the question went.
        self.sock.bind((INTERNET if kind == socket.SOCK_DGRAM else "0.0.0.0", port))
        self.sock.settimeout(0.1)
        self.got = 0
        self.last = 0.0
        self.sends = False
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        if kind == socket.SOCK_STREAM:
            self.sock.listen(64)
        self._threads[0].start()

    def _serve(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                if self.sock.type == socket.SOCK_DGRAM:
                    data, peer = self.sock.recvfrom(2048)
                    self._took(len(data))
                    self.sock.sendto(b"far", peer)
                    continue
                connection, _ = self.sock.accept()
                thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _took(self, count: int) -> None:
        self.got += count
        self.last = time.monotonic()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(0.2)
            connection.sendall(b"far\n")
            while not self._end.is_set():
                with contextlib.suppress(TimeoutError):
                    if self.sends:
                        connection.sendall(b"x" * 16384)
                        time.sleep(0.005)
                    else:
                        data = connection.recv(65536)
                        if not data:
                            return
                        self._took(len(data))

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(2)
        self.sock.close()


@pytest.fixture
def far(internet: Internet) -> Iterator[Callable[..., Far]]:
    made: list[Far] = []

    def make(port: int, kind: int = socket.SOCK_STREAM, namespace: str = internet.name) -> Far:
        made.append(Far(namespace, port, kind))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def _link_free_when_ruled(settings: Settings) -> list[str]:
    network = SlotNetwork(settings)
    await network.open({})
    seen: list[str] = []
    frame = network._tables.frame

    def look(slot: Any) -> None:
        fd = netns.open_fd(slot.gateway_netns)
        with netns.entered(fd), IPRoute() as ip:
            seen.extend(link.get_attr("IFLA_IFNAME") for link in ip.get_links())
        os.close(fd)
        frame(slot)

    network._tables.frame = look  # type: ignore[method-assign]
    await network.take("a", OFF)
    await network.purge()
    await network.close()
    return seen


async def test_rules_stand_before_there_is_a_link(internet: Internet, tmp_path: Path) -> None:
    assert set(await _link_free_when_ruled(_settings(tmp_path, network_pool=0))) == {"lo"}


async def test_open(network: SlotNetwork, egress: Answering, far: Callable[..., Far]) -> None:
    slot = await network.take("a", OPEN)
    inside = _inside(slot)
    far(5000), far(5001, socket.SOCK_DGRAM)
    assert await inside.tcp(INTERNET, 80) == f"greeting to {UPLINK}"
    assert await inside.tcp(INTERNET, 5000) == "far"
    assert await inside.udp(INTERNET, 5001) == "far"
    assert await inside.ping(INTERNET)
    assert await inside.udp("10.0.0.1", 53) == f"names of {slot.index}"
    assert egress.applied[slot.index][:2] == ("a", OPEN)
    await inside.refused("10.0.0.1", 7110)
    await inside.refused("10.0.0.1", 7111)


@pytest.mark.parametrize("policy", [OPEN, _policy("*.example.org"), OFF], ids=lambda p: p.mode)
async def test_nothing_private_under_any_policy(network: SlotNetwork, policy: Policy) -> None:
    one, two = await network.take("a", policy), await network.take("b", OPEN)
    inside, plan = _inside(one), network.plan
    other, own = plan.slot(two.index), plan.slot(one.index)
    with socket.create_server(("0.0.0.0", 0)) as service:
        port = service.getsockname()[1]
        for address in (PRIVATE, METADATA, UPLINK, other.gateway_side, other.host_side):
            for each in (80, 443, 7111, port):
                await inside.refused(address, each)
            await inside.udp_refused(address, 53)
        for address in ("10.0.0.1", own.gateway_side, own.host_side):
            for each in (80, 443, 7110, 7111, port):
                await inside.refused(address, each)
    assert not await inside.ping(PRIVATE)
    assert not await inside.ping(METADATA)
    assert not await inside.ping(other.gateway_side)


async def test_metadata_in_no_spelling(network: SlotNetwork) -> None:
    inside = _inside(await network.take("a", OPEN))
    for spelled in ("0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.43518"):
        assert socket.inet_ntoa(socket.inet_aton(spelled)) == METADATA
        await inside.refused(spelled, 80)

    def mapped() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.settimeout(1)
            sock.connect((f"::ffff:{METADATA}", 80))

    with pytest.raises(OSError):
        await inside.run(mapped)


async def test_an_allowlist_of_names(network: SlotNetwork, far: Callable[..., Far]) -> None:
    slot = await network.take("a", _policy("python.example", "git.example:9418"))
    inside = _inside(slot)
    far(5000), far(443, socket.SOCK_DGRAM)
    for port in (80, 443, 9418):
        assert await inside.tcp(INTERNET, port) == f"proxy of {slot.index} to {INTERNET}:{port}"
    for address, port in ((INTERNET, 5000), (PUBLIC_RESOLVER, 853), (RESOLVER, 53)):
        await inside.refused(address, port)
    for port in (443, 53):
        await inside.udp_refused(INTERNET, port)
    await inside.udp_refused(RESOLVER, 53)
    assert not await inside.ping(INTERNET)
    assert await inside.udp("10.0.0.1", 53) == f"names of {slot.index}"
    await inside.refused("10.0.0.1", 7110)


async def test_an_allowlist_of_addresses(network: SlotNetwork, far: Callable[..., Far]) -> None:
    inside = _inside(await network.take("a", _policy("198.51.100.0/28:5000,5002/tcp")))
    for port in (5000, 5001, 5002):
        far(port), far(port, socket.SOCK_DGRAM)
    for port in (5000, 5002):
        assert await inside.tcp(INTERNET, port) == "far"
        await inside.udp_refused(INTERNET, port)
    await inside.refused(INTERNET, 5001)
    await inside.refused(RESOLVER, 5000)
    assert not await inside.ping(INTERNET)
    await network.apply("a", _policy(f"{INTERNET}:5000/udp", f"{INTERNET}:80", "198.51.100.52/31"))
    assert await inside.udp(INTERNET, 5000) == "far"
    await inside.refused(INTERNET, 5000)
    assert await inside.tcp(INTERNET, 80) == f"greeting to {UPLINK}", "straight, past the proxy"
    assert await inside.tcp(RESOLVER, 5001) == "far"
    assert await inside.udp(RESOLVER, 53) == f"answer to {UPLINK}"
    assert await inside.ping(RESOLVER)
    assert not await inside.ping(INTERNET)


async def test_off(network: SlotNetwork) -> None:
    inside = _inside(await network.take("a", OFF))
    for port in (80, 443, 53):
        await inside.refused(INTERNET, port)
    await inside.udp_refused(RESOLVER, 53)
    assert await inside.udp("10.0.0.1", 53), "our resolver, who knows what to say under this policy"
    assert not await inside.ping(INTERNET)


async def test_a_dead_proxy_lets_nothing_through(network: SlotNetwork, egress: Answering) -> None:
    slot = await network.take("a", _policy("python.example"))
    egress._close(slot.index)
    await asyncio.sleep(0.3)  # its threads leave
    await _inside(slot).refused(INTERNET, 80)
    await _inside(slot).udp_refused("10.0.0.1", 53)


async def test_open_leads_to_the_proxy_what_must_prove_a_name(network: SlotNetwork) -> None:
    slot = await network.take("a", Policy.read({"mode": "open", "observe": True}))
    inside, proxied = _inside(slot), f"proxy of {slot.index} to {INTERNET}:80"
    assert await inside.tcp(INTERNET, 80) == proxied
    await network.apply("a", OPEN)
    assert await inside.tcp(INTERNET, 80) == f"greeting to {UPLINK}"
    await network.apply("a", OPEN, (Intercept(("api.example",), "unix:/x"),))
    assert await inside.tcp(INTERNET, 80) == proxied
    await inside.udp_refused(INTERNET, 443)
    assert (await inside.tcp(RESOLVER, 53)).startswith("greeting")


async def _begin(inside: Inside, port: int) -> socket.socket:
    def connect() -> socket.socket:
        sock = socket.create_connection((INTERNET, port), 2)
        sock.recv(100)
        sock.settimeout(2)
        return sock

    return await inside.run(connect)


@pytest.mark.parametrize(
    "policy", [OFF, _policy("python.example", "203.0.113.0/24")], ids=lambda p: p.mode
)
@pytest.mark.parametrize("way", ["upload", "download", "idle"])
async def test_what_is_no_longer_allowed_is_cut(
    network: SlotNetwork, far: Callable[..., Far], way: str, policy: Policy
) -> None:
    """While it runs, whoever sends; the machine is told by a reset."""
    inside = _inside(await network.take("a", OPEN))
    server = far(5000)
    server.sends = way == "download"
    sock = await _begin(inside, 5000)
    last = [0.0]

    def talk() -> str:
        try:
            while True:
                if way == "download":
                    if not sock.recv(65536):
                        return "ended"
                elif way == "upload":
                    sock.sendall(b"y" * 4096)
                    time.sleep(0.002)
                else:
                    time.sleep(0.4)
                    sock.sendall(b"y")
                    time.sleep(0.05)
                last[0] = time.monotonic()
        except ConnectionResetError:
            return "reset"
        except OSError as exc:
            return repr(exc)

    with sock:
        talking = asyncio.create_task(asyncio.to_thread(talk))
        await asyncio.sleep(0.3)
        async with asyncio.timeout(20):
            while not (server.got or server.sends or way == "idle"):
                await asyncio.sleep(0.02)
        await network.apply("a", policy)
        stands = time.monotonic()
        assert await asyncio.wait_for(talking, 15) in (
            "reset",
            "BrokenPipeError(32, 'Broken pipe')",
        )
        assert way == "idle" or last[0] < stands + SOON_S
        assert server.last < stands + SOON_S


async def test_what_is_still_allowed_goes_on(network: SlotNetwork, far: Callable[..., Far]) -> None:
    inside = _inside(await network.take("a", OPEN))
    server = far(5000)
    with await _begin(inside, 5000) as sock:
        for policy in (_policy(f"{INTERNET}:5000"), OPEN, _policy("198.51.100.0/24")):
            before = server.got
            await network.apply("a", policy)
            sock.sendall(b"on")
            deadline = time.monotonic() + 20
            while server.got < before + 2 and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert server.got == before + 2
    await inside.run(lambda: None)


async def test_a_connection_at_the_proxy_is_cut_by_the_rules_too(network: SlotNetwork) -> None:
    """Whatever the proxy does: this one does nothing."""
    inside = _inside(await network.take("a", _policy("python.example", "git.example:9418")))
    kept, cut = await _begin(inside, 80), await _begin(inside, 9418)
    with kept, cut:
        await network.apply("a", _policy("python.example"))
        kept.sendall(b"echo")
        assert await asyncio.to_thread(kept.recv, 100) == b"echo"
        cut.sendall(b"echo")
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(cut.recv, 100)
        await network.apply("a", OFF)
        with pytest.raises(OSError):
            kept.sendall(b"echo")
            await asyncio.to_thread(kept.recv, 100)


async def test_the_operator_opens_a_part(
    internet: Internet, tmp_path: Path, egress: Answering, far: Callable[..., Far]
) -> None:
    settings = _settings(tmp_path, egress_private=f"192.168.77.0/24,10.0.0.0/8,{UPLINK}/32")
    far(7111)
    async with _opened(settings, egress) as network:
        one, two = await network.take("a", OPEN), await network.take("b", OPEN)
        inside, other = _inside(one), network.plan.slot(two.index)
        assert await inside.tcp(PRIVATE, 53) == f"greeting to {UPLINK}"
        await inside.refused(METADATA, 80)
        await inside.refused("172.30.255.2", 80)
        for address in (other.gateway_side, other.host_side, "10.0.0.1"):
            await inside.refused(address, 7111)
        with socket.create_server((UPLINK, 0)) as service:
            port = service.getsockname()[1]
            await inside.run(lambda: socket.create_connection((UPLINK, port), 2).close())
        await network.apply("a", _policy("python.example"))
        assert "proxy" in await inside.tcp(PRIVATE, 80)
        await inside.refused(PRIVATE, 53)
        reach = egress.told[-1]
        assert reach.permits(PRIVATE)
        assert not reach.permits(other.gateway_side)


def _arp(sender_mac: str, sender: str, target: str, frame_mac: str | None = None) -> bytes:
    """RFC 826, a request."""

    def mac(text: str) -> bytes:
        return bytes.fromhex(text.replace(":", ""))

    ethernet = b"\xff" * 6 + mac(frame_mac or sender_mac) + b"\x08\x06"
    fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return (
        ethernet
        + fixed
        + mac(sender_mac)
        + socket.inet_aton(sender)
        + b"\0" * 6
        + socket.inet_aton(target)
    )


async def test_arp_only_by_the_machines_own_address(network: SlotNetwork) -> None:
    slot = await network.take("a", OPEN)
    own = network.plan.slot(slot.index)

    def asked(request: bytes) -> bool:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as sock:
            sock.bind(("eth0", 0))
            sock.settimeout(0.3)
            sock.send(request)
            try:
                while True:
                    answer = sock.recv(100)
                    if answer[20:22] == b"\0\x02":
                        return True
            except TimeoutError:
                return False

    inside = _inside(slot)
    mac, other = slot.mac, "02:00:00:00:00:99"
    assert await inside.run(asked, _arp(mac, "10.0.0.2", "10.0.0.1"))
    for forged in (
        _arp(other, "10.0.0.2", "10.0.0.1"),
        _arp(mac, "10.0.0.3", "10.0.0.1"),
        _arp(mac, "10.0.0.1", "10.0.0.1"),
        _arp(mac, "10.0.0.2", own.gateway_side),
        _arp(mac, "10.0.0.2", own.host_side),
    ):
        assert not await inside.run(asked, forged)

    def neighbours() -> list[tuple[str, str]]:
        with IPRoute() as ip:
            index = ip.link_lookup(ifname="in")[0]
            found = ip.get_neighbours(ifindex=index, family=socket.AF_INET)
            return [(each.get_attr("NDA_DST"), each.get_attr("NDA_LLADDR")) for each in found]

    assert await Inside(own.gateway_netns).run(neighbours) == [("10.0.0.2", mac)]


async def test_ipv6_goes_nowhere(network: SlotNetwork) -> None:
    slot = await network.take("a", OPEN)
    own = network.plan.slot(slot.index)

    def addresses() -> list[str]:
        with IPRoute() as ip:
            return [each.get_attr("IFA_ADDRESS") for each in ip.get_addr(family=socket.AF_INET6)]

    for name in (own.machine_netns, own.gateway_netns):
        assert await Inside(name).run(addresses) == []


async def test_what_is_tried_is_listed(network: SlotNetwork) -> None:
    policy = _policy(f"{INTERNET}:80", observe=True)
    inside = _inside(await network.take("a", policy))
    began = time.time()
    for _ in range(3):
        await inside.refused(INTERNET, 5000)
    await inside.udp_refused(RESOLVER, 53)
    await inside.ping(PRIVATE)
    await inside.tcp(INTERNET, 80)
    found = {(d.host, d.port, d.protocol): d for d in await network.decisions("a")}
    refused = found[INTERNET, 5000, "tcp"]
    assert (refused.allowed, refused.reason, refused.via, refused.count) == (
        False,
        "address",
        "packet",
        3,
    )
    assert began - 2 < refused.first_at <= refused.last_at < time.time() + 1
    assert found[RESOLVER, 53, "udp"].count == 1
    assert not found[PRIVATE, 0, "icmp"].allowed
    assert found[INTERNET, 80, "tcp"].allowed
    assert found["named.example", 443, "tcp"].via == "tls", "and those of the egress process"
    assert await network.decisions("nobody") == []


async def test_a_scan_does_not_grow_without_bound(network: SlotNetwork) -> None:
    inside = _inside(await network.take("a", OFF))

    def scan() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for port in range(1, 1001):
                with contextlib.suppress(OSError):
                    sock.sendto(b"?", (INTERNET, port))

    await inside.run(scan)
    found = [d for d in await network.decisions("a") if d.via == "packet"]
    assert len(found) <= TRIED + 1
    assert sum(d.count for d in found) > 600
    assert found[-1].reason == "unlisted" or any(d.reason == "unlisted" for d in found)


async def test_what_goes_to_the_proxy_counts_and_names_do_not(network: SlotNetwork) -> None:
    inside = _inside(await network.take("a", _policy("python.example")))

    async def sent() -> int:
        return (await network.egress(["a"]))["a"]

    for _ in range(20):
        await inside.udp("10.0.0.1", 53)
    assert await sent() == 0
    with await _begin(inside, 80) as sock:
        sock.sendall(b"z" * 50_000)
        got = 0
        while got < 50_000:
            got += len(await asyncio.to_thread(sock.recv, 65536))
        sock.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(sock.recv, 1) == b""  # its last acknowledgement counts, too
    assert 50_000 < await sent() < 60_000
    before = await sent()
    await inside.refused(INTERNET, 5000)
    assert await sent() == before


@pytest.mark.parametrize("policy", [OPEN, _policy("python.example"), OFF], ids=lambda p: p.mode)
async def test_the_daemon_reaches_a_machines_ports(
    network: SlotNetwork, far: Callable[..., Far], policy: Policy
) -> None:
    slot = await network.take("a", policy)
    server = far(8080, namespace=slot.netns.name)
    far(7111, namespace=slot.netns.name)
    server.sends = True
    loop = asyncio.get_running_loop()
    sock = await network.connection("a")
    with sock:
        assert not sock.getblocking()
        await asyncio.wait_for(loop.sock_connect(sock, ("10.0.0.2", 8080)), 10)
        got = 0
        while got < 100_000:
            got += len(await asyncio.wait_for(loop.sock_recv(sock, 65536), 10))
    for address, port in (("10.0.0.2", 7111), (INTERNET, 80)):
        with await network.connection("a") as sock:
            with pytest.raises(OSError):
                await asyncio.wait_for(loop.sock_connect(sock, (address, port)), 0.5)
    with pytest.raises(NotFoundError):
        await network.connection("nobody")

    def agent() -> bytes:
        with socket.create_connection((slot.host_address, 7111), 10) as sock:
            return sock.recv(10)

    assert await asyncio.to_thread(agent) == b"far\n"


async def test_a_new_process_is_given_everything_again(
    network: SlotNetwork, egress: Answering
) -> None:
    slot = await network.take("a", _policy("python.example"))
    await egress.die()
    assert slot.index in egress.listeners
    assert egress.applied[slot.index][0] == "a"
    assert len(egress.listeners) >= 1
    assert await _inside(slot).udp("10.0.0.1", 53) == f"names of {slot.index}"
    assert "proxy" in await _inside(slot).tcp(INTERNET, 80)
    await network.release("a")
    assert slot.index not in egress.listeners


async def test_another_daemon_takes_over(
    network: SlotNetwork, egress: Answering, tmp_path: Path
) -> None:
    """Its process may be gone with the host's memory of it; what packets tried is not."""
    slot = await network.take("a", _policy("python.example"))
    inside = _inside(slot)
    await inside.refused(INTERNET, 5000)
    await network.close()
    anew = Answering()
    await egress.purge()
    later = SlotNetwork(_settings(tmp_path), anew)
    await later.open({"a": slot.index})
    try:
        assert slot.index in anew.listeners
        assert await later.reattach("a", slot.index, OFF) == slot
        assert anew.applied[slot.index][1] == OFF
        await inside.refused(INTERNET, 80)
        counted = [d for d in await later.decisions("a") if d.port == 5000]
        assert [d.count for d in counted] == [1]
    finally:
        await later.purge()
        await later.close()


async def test_a_frame_of_another_form_is_replaced(network: SlotNetwork) -> None:
    slot = await network.take("a", OPEN)
    own = network.plan.slot(slot.index)
    old = "chain old { type filter hook forward priority 0; policy drop; }"
    network._tables.apply(
        own, f"table inet roost\ndelete table inet roost\ntable inet roost {{\n{old}\n}}\n"
    )
    with pytest.raises(OSError):
        await _inside(slot).tcp(INTERNET, 80)
    network._fresh.clear()
    await network.reattach("a", slot.index, OPEN)
    assert await _inside(slot).tcp(INTERNET, 80) == f"greeting to {UPLINK}"
    assert plumbing.stands(own)


async def test_what_an_earlier_release_counted_stays_and_the_rest_is_added(
    network: SlotNetwork,
) -> None:
    slot = await network.take("a", OPEN)
    own = network.plan.slot(slot.index)
    old = (
        "table inet roost_count\ndelete table inet roost_count\ntable inet roost_count {\n"
        "counter egress { packets 3 bytes 1234567 }\n"
        "chain leaving { type filter hook forward priority filter + 10; policy accept;\n"
        'iifname "in" oifname "out" ct direction original counter name "egress"\n}\n}\n'
    )
    frame = "table inet roost\ndelete table inet roost\ntable inet roost {\nchain old { }\n}\n"
    network._tables.apply(own, old + frame)
    for _ in range(2):
        network._fresh.clear()
        await network.reattach("a", slot.index, OPEN)
    assert (await network.egress(["a"]))["a"] == 1234567
    within = functools.partial(plumbing._within, own)
    listed = network._tables._sessions.listed(own.gateway_netns, within, "table inet roost_count")
    rules_of = [each["rule"]["chain"] for each in listed if "rule" in each]
    assert sorted(rules_of) == ["leaving", "proving"]


async def test_what_dials_for_machines_reaches_no_metadata_either(network: SlotNetwork) -> None:
    def dial(uid: int) -> int:
        """What a process of that user hears of the metadata service; 0: it answered."""
        code = (
            f"import os, socket\nos.setuid({uid})\ns = socket.socket()\ns.settimeout(2)\n"
            f"raise SystemExit(s.connect_ex(({METADATA!r}, 80)))"
        )
        return subprocess.run([sys.executable, "-c", code], check=False).returncode

    assert await asyncio.to_thread(dial, 65534) == 0, "else this shows nothing"
    for uid in (EGRESS_UID, BOUNDARY_UID):
        assert await asyncio.to_thread(dial, uid) == errno.ECONNREFUSED
