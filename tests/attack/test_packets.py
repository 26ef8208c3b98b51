"""33, 37, 40: what goes by itself, without a name: addresses, odd ports, datagrams, ICMP, other protocols, IPv6,
forged senders, neighbours.
"""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import time

import pytest

from roost import Machine
from roost.network.addresses import Plan
from tests.system.conftest import NETWORK, Daemon
from tests.system.internet import LAN
from tests.system.internet.names import ALLOWED, OTHER

from .record import case
from .rung import Attempt, Outcome, Rung, until

pytestmark = pytest.mark.own_network

TCP_PORTS = (22, 25, 80, 443, 853, 4444, 31337)
UDP_PORTS = (53, 123, 443, 853, 9999)
FORGED_MAC = "020000000099"
ECHO_S = 10.0
IPV6 = b"\x86\xdd"  # as a frame says it


def all_ways(to: str, echo_s: float = 1.0) -> list[Attempt]:
    """``echo_s``: how long an ICMP echo is waited for, more where it comes."""
    return [
        *({"do": "tcp", "to": to, "port": port, "say": "canary"} for port in TCP_PORTS),
        *({"do": "udp", "to": to, "port": port} for port in UDP_PORTS),
        {"do": "icmp", "to": to, "wait": echo_s},
        {"do": "protocol", "to": to, "number": 47},
        {"do": "protocol", "to": to, "number": 132},
        {"do": "segment", "to": to, "port": 4445, "flags": 0x10},  # ACK, of no connection
        {"do": "segment", "to": to, "port": 4446, "flags": 0x02},
    ]


def answered(outcomes: list[Outcome]) -> bool:
    """Whether the ICMP echo came back."""
    return any(each.said == "echo reply" for each in outcomes)


def said_nothing(outcomes: list[Outcome]) -> None:
    for each in outcomes:
        assert "reached" not in each.said and "echo reply" not in each.said, str(each)


def test_open_reaches_it(rung: Rung) -> None:
    """That the attempts are true ones: each arrives where nothing forbids it."""
    rung.leash("open")
    to = rung.internet.attacker()
    outcomes = rung.attempt(*all_ways(to, ECHO_S))
    reached = rung.ports(to)
    for kind, ports in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
        for port in ports:
            assert (kind, port) in reached, (kind, port, [str(each) for each in outcomes])
    assert answered(outcomes), [str(each) for each in outcomes]


@case(33)
@pytest.mark.parametrize("leash", [("off",), ("allowlist",), ("allowlist", "allowed.test")])
def test_nothing_goes_by_itself(rung: Rung, leash: tuple[str, ...]) -> None:
    rung.leash(*leash)
    to = rung.internet.attacker()
    outcomes = rung.attempt(*all_ways(to))
    assert rung.reached(to) == [], [str(each) for each in outcomes]
    said_nothing(outcomes)
    refused = [each for each in rung.machine.egress().refused if each.host == to]
    listed = {(each.protocol, each.port) for each in refused}
    for kind, ports in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
        assert {(kind, port) for port in ports} <= listed, listed
    assert any(kind == "icmp" for kind, _ in listed), listed


@case(33)
def test_a_listed_name_is_no_listed_address(rung: Rung) -> None:
    """The address of a name is reached by proving the name: not by QUIC, which shows none, nor on other ports."""
    rung.leash("allowlist", "allowed.test", "other.test:8443")
    since = rung.internet.now()
    outcomes = rung.attempt(
        *(
            {"do": "udp", "to": to, "port": port}
            for to in (ALLOWED, OTHER)
            for port in (443, 80, 53)
        ),
        *({"do": "tcp", "to": to, "port": port} for to in (ALLOWED, OTHER) for port in (22, 8080)),
        {"do": "icmp", "to": ALLOWED},
        {"do": "segment", "to": ALLOWED, "port": 443, "flags": 0x10},
        {"do": "tls", "to": OTHER, "name": "other.test", "say": "canary"},
    )
    time.sleep(0.1)
    seen = [*rung.internet.seen("packet", to=ALLOWED, since=since)]
    seen += rung.internet.seen("packet", to=OTHER, since=since)
    assert seen == [], [str(each) for each in outcomes]


@case(33)
def test_an_address_is_allowed_by_its_ports_and_no_more(rung: Rung) -> None:
    to, other = rung.internet.attacker(), rung.internet.attacker()
    rung.leash("allowlist", f"{to}:4444/tcp", f"{to}:9999/udp")
    rung.attempt(*all_ways(to), *all_ways(other))
    assert rung.ports(to) == {("tcp", 4444), ("udp", 9999)}
    assert rung.reached(other) == []
    rung.leash("allowlist", to)
    assert answered(rung.attempt(*all_ways(to, ECHO_S), *all_ways(other)))
    assert {("icmp", 0), ("tcp", 80), ("tcp", 443), ("udp", 53)} <= rung.ports(to)
    assert rung.reached(other) == []


def leaving(
    rung: Rung, daemon: Daemon, attempts: list[Attempt]
) -> tuple[list[bytes], list[Outcome]]:
    """Frames with a canary, and all of IPv6, that came out of the slot on the host's side."""
    index = slot_of(daemon, rung.machine)
    name = Plan(NETWORK, daemon.run_dir).slot(index).host_interface
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind((name, 0))
        outcomes = rung.attempt(*attempts)
        tap.settimeout(0.3)
        found = []
        try:
            while True:
                frame, (_, _, kind, *_) = tap.recvfrom(2048)
                tells = frame.endswith(b"canary") and frame[23] != socket.IPPROTO_ICMP
                if kind != socket.PACKET_OUTGOING and (tells or frame[12:14] == IPV6):
                    found.append(frame)
        except TimeoutError:
            return found, outcomes


def slot_of(daemon: Daemon, machine: Machine) -> int:
    with sqlite3.connect(daemon.data_dir / "roost.db") as database:
        row = database.execute(
            "select slot_index from machines where id = ?", (machine.id,)
        ).fetchone()
    return int(row[0])


@case(40)
@pytest.mark.parametrize("mode", ["open", "off"])
def test_a_forged_sender_does_not_leave(rung: Rung, led: Daemon, mode: str) -> None:
    rung.leash(mode)
    to = rung.internet.attacker()
    attempts: list[Attempt] = [
        {"do": "frame", "to": to, "source": "10.0.0.3"},
        {"do": "frame", "to": to, "source": "198.51.100.9"},
        {"do": "frame", "to": to, "source": "127.0.0.1"},
        {"do": "frame", "to": to, "source": "10.0.0.1"},
        {"do": "frame", "to": to, "mac": FORGED_MAC},
        {"do": "raw", "to": to, "source": "10.0.0.9"},
        {"do": "raw", "to": to, "source": LAN},
        {"do": "frame6"},
    ]
    frames, outcomes = leaving(rung, led, attempts)
    assert frames == [], [str(each) for each in outcomes]
    assert rung.reached(to) == []
    # That a true sender leaves, by whatever the rung has of such sockets: a container has no packet sockets.
    for do in (
        {"qemu": ("frame", "raw"), "runc": ("raw",)}.get(rung.name, ()) if mode == "open" else ()
    ):
        true = rung.internet.attacker()
        frames, outcomes = leaving(rung, led, [{"do": do, "to": true, "source": "10.0.0.2"}])
        assert len(frames) == 3, [str(each) for each in outcomes]
        assert rung.ports(true) == {("udp", 9)}


@case(40)
def test_a_forged_neighbour_changes_nobodys_table(rung: Rung, led: Daemon) -> None:
    """Claims by ARP to be the gateway, its peer on the host or another machine."""
    rung.leash("open")
    plan = Plan(NETWORK, led.run_dir)
    slot = plan.slot(slot_of(led, rung.machine))
    claims = ("10.0.0.1", "10.0.0.9", slot.host_side, slot.gateway_side)
    outcomes = rung.attempt(*({"do": "arp", "claim": each} for each in claims))
    assert len(outcomes) == len(claims)
    told = subprocess.run(
        ["ip", "-n", slot.gateway_netns, "neigh"], capture_output=True, text=True, check=True
    ).stdout
    for each in claims:
        lines = [line for line in told.splitlines() if line.startswith(f"{each} ")]
        assert not any("02:72:73:74:00:02" in line for line in lines), told
    to = rung.internet.attacker()
    rung.attempt({"do": "tcp", "to": to, "port": 4444, "say": "still here"})
    assert rung.reached(to), "its own way out still goes"


@case(40)
def test_no_neighbour_is_reached(rung: Rung, led: Daemon) -> None:
    """By any of the addresses that it, its gateway and its gateway's peer have."""
    rung.leash("open")
    plan = Plan(NETWORK, led.run_dir)
    rung.neighbour.exec(
        "nohup python3 -m http.server 8000 --bind 0.0.0.0 > ~/served 2>&1 &", timeout=30
    )
    # It would answer: from inside.
    get = {"do": "tcp", "to": "127.0.0.1", "port": 8000, "say": "GET / HTTP/1.0\r\n\r\n"}
    until(lambda: "200 OK" in rung.attempt(get, machine=rung.neighbour)[0].said)
    asked = rung.neighbour.exec("cat ~/served").stdout.count("GET")
    slot = plan.slot(slot_of(led, rung.neighbour))
    addresses = (slot.gateway_side, slot.host_side)
    outcomes = rung.attempt(
        *(
            {"do": "tcp", "to": to, "port": port, "say": "GET / HTTP/1.0\r\n\r\n"}
            for to in addresses
            for port in (8000, 7111, 7110, 53, 22)
        ),
        *({"do": "udp", "to": to, "port": 53} for to in addresses),
        *({"do": "icmp", "to": to} for to in addresses),
    )
    assert not any(each.ok and each.said for each in outcomes), [str(each) for each in outcomes]
    assert rung.neighbour.exec("cat ~/served").stdout.count("GET") == asked
    rung.neighbour.exec("pkill -f [h]ttp.server")


@case(37)
def test_ipv6_is_no_way_around(rung: Rung, led: Daemon) -> None:
    """No address, no route, nothing that leaves; an IPv4 address in an IPv6 socket is held as what it is."""
    for mode in ("open", "off"):
        rung.leash(mode)
        mapped = rung.internet.attacker()
        since = rung.internet.now()
        frames, outcomes = leaving(
            rung,
            led,
            [
                {"do": "tcp6", "to": "2001:db8::20", "port": 80, "say": "canary"},
                {"do": "tcp6", "to": "fe80::1", "port": 80, "say": "canary"},
                {"do": "tcp6", "to": "::ffff:169.254.169.254", "port": 80, "say": "canary"},
                {"do": "tcp6", "to": "64:ff9b::a9fe:a9fe", "port": 80, "say": "canary"},
                {"do": "tcp6", "to": f"::ffff:{mapped}", "port": 4444, "say": "canary"},
            ],
        )
        assert not any(frame[12:14] == IPV6 for frame in frames), [str(o) for o in outcomes]
        assert rung.internet.seen("packet", to="169.254.169.254", since=since) == []
        assert bool(rung.reached(mapped)) is (mode == "open"), [str(each) for each in outcomes]
