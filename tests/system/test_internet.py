"""The tests' own internet, from the host: what it answers, and that it writes down what reached it."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable

import dns.message
import dns.query
import dns.rdatatype
import httpx
import pytest
import websockets

from tests.system.internet import INTERNET, METADATA, RESOLVER, Internet
from tests.system.internet.names import ALLOWED, CDN, OTHER, PUBLIC_RESOLVER

pytestmark = pytest.mark.system


def ask(name: str, kind: str = "A", tcp: bool = False) -> list[str]:
    query = dns.message.make_query(name, kind)
    answer = (dns.query.tcp if tcp else dns.query.udp)(query, RESOLVER, timeout=20)
    return [str(item) for each in answer.answer for item in each]


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_names(internet: Internet) -> None:
    assert ask("allowed.test") == [ALLOWED]
    assert ask("one.cdn.test") == ask("two.cdn.test") == [CDN]
    assert ask("169-254-169-254.at.test") == [METADATA]
    assert sorted(ask("10-0-0-1.mixed.test")) == ["10.0.0.1", ALLOWED]
    name = f"n{time.monotonic_ns()}.10-0-0-1.rebind.test"
    assert [ask(name) for _ in range(3)] == [[ALLOWED], ["10.0.0.1"], ["10.0.0.1"]]
    assert ask("alias.test") == ["other.test.", OTHER]
    assert "ipv4hint" in ask("svcb.test", "HTTPS")[0]
    assert ask("mapped.test", "AAAA") == ["::ffff:169.254.169.254"] and not ask("mapped.test")
    assert ask("nobody.test") == []
    assert len(ask("x.tunnel.test", "TXT", tcp=True)) == 30
    short = dns.query.udp(dns.message.make_query("x.tunnel.test", "TXT"), RESOLVER, timeout=20)
    assert short.flags & dns.flags.TC
    assert [each.more["over"] for each in internet.seen("dns", said="x.tunnel.test")] == [
        "tcp",
        "udp",
    ]


def test_resolvers_of_others(internet: Internet) -> None:
    trust = ssl.create_default_context(cafile=internet.ca)
    query = dns.message.make_query("allowed.test", "A")
    over_tls = dns.query.tls(
        query, PUBLIC_RESOLVER, timeout=20, ssl_context=trust, server_hostname="dot.test"
    )
    assert over_tls.answer
    with httpx.Client(trust_env=False, verify=trust) as http:
        answer = http.request(
            "POST",
            f"https://{PUBLIC_RESOLVER}/dns-query",
            content=query.to_wire(),
            extensions={"sni_hostname": "doh.test"},
        )
    assert dns.message.from_wire(answer.content).answer


def test_web(internet: Internet) -> None:
    trust = ssl.create_default_context(cafile=internet.ca)
    since = internet.now()
    with httpx.Client(trust_env=False, verify=trust) as http:
        for scheme, port in (("http", 80), ("https", 443)):
            said = http.get(
                f"{scheme}://{ALLOWED}/any",
                headers={"host": "allowed.test"},
                extensions={"sni_hostname": "allowed.test"},
            ).json()
            assert (said["server"], said["port"], said["host"]) == (ALLOWED, port, "allowed.test")
        assert internet.seen("tls", said="allowed.test", since=since)
        assert len(internet.seen("http", to=ALLOWED, said="allowed.test", since=since)) == 2
        to = f"http://{METADATA}/latest"
        assert http.get(f"http://{ALLOWED}/redirect", params={"to": to}).headers["location"] == to
        assert (
            len(http.get(f"http://{ALLOWED}/zeros", params={"bytes": 3 << 20}).content) == 3 << 20
        )
        assert http.post(f"http://{ALLOWED}/upload", content=bytes(1 << 20)).text == str(1 << 20)
        assert http.get(f"http://{ALLOWED}/slow?seconds=0.2").text.count("still here") > 1
        assert json.loads(http.get(f"http://{METADATA}/latest").text)["server"] == METADATA
    assert internet.seen("packet", to=METADATA, port=80, since=since)
    assert internet.seen("upload", to=ALLOWED, since=since)[-1].more["bytes"] == 1 << 20

    async def talk() -> object:
        async with websockets.connect(f"ws://{ALLOWED}/ws", proxy=None) as socket_:
            await socket_.send("hello")
            return await socket_.recv()

    assert asyncio.run(talk()) == "hello"
    with socket.create_connection((INTERNET, 80), 3) as sock:
        assert sock.makefile().read() == "greeting to 172.30.255.1\n"


def test_an_attacker_hears_whatever_comes(internet: Internet) -> None:
    address, other = internet.attacker(), internet.attacker()
    with socket.create_connection((address, 31337), 3) as sock:
        assert sock.recv(64) == b"reached the attacker\n"
        sock.sendall(b"canary")
        until(lambda: internet.seen("tcp", to=address, port=31337, said="canary"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.sendto(b"hello", (address, 443))
        assert sock.recv(64) == b"reached: hello"
        sock.sendto(b"hello", (ALLOWED, 443))
        assert sock.recv(64) == b"reached: hello"
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(bytes.fromhex("0800f7ff00000000"), (address, 0))
    until(lambda: internet.seen("packet", to=address, said="icmp"))
    kinds = {(each.said, each.port) for each in internet.seen("packet", to=address)}
    assert kinds == {("tcp", 31337), ("udp", 443), ("icmp", 0)}
    assert internet.seen(to=other) == []
