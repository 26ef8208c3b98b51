"""39: the gateway, the host, its services, its private networks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from roost.network.addresses import Plan
from tests.system.conftest import NETWORK, Daemon
from tests.system.internet import LAN
from tests.system.internet.names import ALLOWED

from .record import case
from .rung import Attempt, Rung, request
from .test_packets import slot_of

pytestmark = [case(39), pytest.mark.own_network]


@dataclass
class Service:
    """One of the host's, on all its addresses, TCP and UDP; ``heard``: who spoke to it, but for the host itself."""

    port: int
    heard: list[str] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    stop = threading.Event()
    with (
        socket.create_server(("0.0.0.0", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(("0.0.0.0", port))
        service = Service(port)

        def serve() -> None:
            server.settimeout(0.1)
            datagrams.settimeout(0.1)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, peer = server.accept()
                    with connection:
                        service.heard.append(f"tcp {peer[0]}")
                        connection.sendall(b"host service\n")
                with contextlib.suppress(TimeoutError):
                    _, peer = datagrams.recvfrom(64)
                    service.heard.append(f"udp {peer[0]}")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield service
        stop.set()
        thread.join(2)


def own_addresses() -> set[str]:
    said = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    return {each for each in said.split() if "." in each}


def ways(addresses: list[str], ports: list[int]) -> list[Attempt]:
    attempts: list[Attempt] = []
    for to in addresses:
        name = f"{to.replace('.', '-')}.at.test"
        for port in ports:
            attempts.append({"do": "tcp", "to": to, "port": port, "say": request(to), "wait": 1.0})
        attempts.append({"do": "udp", "to": to, "port": ports[0], "wait": 0.5})
        attempts.append({"do": "url", "url": f"http://{name}:{ports[0]}/", "wait": 2.0})
        for host in (to, name, f"{to}:{ports[0]}"):
            attempts.append({"do": "tcp", "to": ALLOWED, "port": 80, "say": request(host)})
    return attempts


@pytest.mark.parametrize(
    "leash",
    [("open",), ("allowlist", "*.at.test:80,443", "0.0.0.0/0", "10.0.0.0/8"), ("off",)],
    ids=["open", "allowlist", "off"],
)
def test_no_service_of_the_host_is_reached(
    rung: Rung, led: Daemon, service: Service, leash: tuple[str, ...]
) -> None:
    rung.leash(*leash)
    slot = Plan(NETWORK, led.run_dir).slot(slot_of(led, rung.machine))
    addresses = [*sorted(own_addresses())[:3], slot.host_side, slot.gateway_side, "10.0.0.1"]
    since = rung.internet.now()
    daemon = int(led.url.rpartition(":")[2])
    outcomes = rung.attempt(
        *ways(addresses, [service.port, daemon]),
        *({"do": "tcp", "to": "172.30.255.1", "port": p, "wait": 1.0} for p in (service.port, 22)),
        {"do": "tcp", "to": LAN, "port": 80, "say": request("lan"), "wait": 1.0},
        {"do": "udp", "to": LAN, "port": 53, "wait": 0.5},
        {"do": "icmp", "to": LAN, "wait": 0.5},
        {"do": "tcp", "to": "0.0.0.0", "port": service.port, "wait": 1.0},
        {"do": "tcp", "to": "127.0.0.1", "port": daemon, "say": request("x"), "wait": 1.0},
        {"do": "tcp", "to": "10.0.0.1", "port": 7111, "wait": 1.0},
        {"do": "tcp", "to": "10.0.0.1", "port": 22, "wait": 1.0},
    )
    assert service.heard == [], [str(each) for each in outcomes]
    assert rung.internet.seen(to=LAN, since=since) == [], [str(each) for each in outcomes]
    for each in outcomes:
        assert "host service" not in each.said and "Roost" not in each.said, str(each)


def test_the_proxy_is_no_door(rung: Rung) -> None:
    """Spoken to directly, rather than led to it: it neither goes round in circles nor serves anybody."""
    to = rung.internet.attacker()
    name = f"{to.replace('.', '-')}.at.test"
    for leash in (("open",), ("allowlist", "allowed.test"), ("off",)):
        rung.leash(*leash)
        since = rung.internet.now()
        says = [
            request("10.0.0.1:7110"),
            request(name),
            request("other.test"),
            request(f"{name}:443", f"{name}:443", "CONNECT"),
            f"\x05\x01\x00\x05\x01\x00\x01{socket.inet_aton(to).decode('latin-1')}\x01\xbb",
        ]
        outcomes = rung.attempt(
            *({"do": "tcp", "to": "10.0.0.1", "port": 7110, "say": say} for say in says),
            {"do": "tls", "to": "10.0.0.1", "port": 7110, "name": "other.test", "verify": False},
        )
        assert rung.reached(to) == [], [str(each) for each in outcomes]
        assert rung.internet.seen("http", said="other.test", since=since) == []


def test_the_agents_port_is_not_the_machines_to_open(rung: Rung) -> None:
    """What is inside may speak to its own agent as to any server of its own, and has no token for it."""
    (outcome,) = rung.attempt({"do": "tcp", "to": "127.0.0.1", "port": 7111, "say": request("x")})
    assert "200" not in outcome.said[:20], str(outcome)
    assert os.geteuid() == 0
