"""The machines' DNS: what is not allowed never leaves, what leads inside never comes back."""

from __future__ import annotations

import asyncio
import os
import time

import dns.flags
import dns.message
import dns.rcode
import pytest

from .conftest import Egress
from .world import WEB, World

pytestmark = pytest.mark.system


def addresses(reply: dns.message.Message) -> list[str]:
    return [str(each) for found in reply.answer for each in found if found.rdtype == 1]


async def test_only_allowed_names_are_asked_for(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test", "*.wild.test", "alias.test")
    look = asyncio.to_thread
    assert addresses(await look(world.look_up, "allowed.test")) == [WEB]
    assert addresses(await look(world.look_up, "ALLOWED.Test")) == [WEB]
    assert addresses(await look(world.look_up, "alias.test")) == [WEB]
    assert (await look(world.look_up, "x.wild.test")).rcode() == dns.rcode.NXDOMAIN
    asked = set(world.names.asked)
    for name in ("other.test", "secret-data.other.test", "wild.test", "x.allowed.test"):
        reply = await look(world.look_up, name)
        assert reply.rcode() == dns.rcode.NXDOMAIN
        assert reply.options[0].to_text().startswith("EDE 15"), "blocked, for those who can read"
        assert not reply.authority, "nothing that would make it be remembered"
    assert (await look(world.look_up, "other.test", "TXT")).rcode() == dns.rcode.NXDOMAIN
    assert set(world.names.asked) == asked
    assert (await egress.tried())["other.test", 53, "dns"] == "not_allowed"


async def test_types(world: World, egress: Egress) -> None:
    world.names.texts["allowed.test"] = ["v=1"]
    await egress.allow("allowed.test")
    for kind in ("AAAA", "HTTPS", "SVCB"):
        reply = await asyncio.to_thread(world.look_up, "allowed.test", kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    for kind in ("ANY", "AXFR", "NULL", "TYPE65400"):
        reply = await asyncio.to_thread(world.look_up, "allowed.test", kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.REFUSED, [])
    assert world.names.asked == []
    reply = await asyncio.to_thread(world.look_up, "allowed.test", "TXT")
    assert '"v=1"' in reply.answer[0].to_text()


async def test_addresses_that_are_refused_are_dropped(world: World, egress: Egress) -> None:
    world.names.addresses |= {
        "mixed.test": ["10.1.2.3", WEB, "169.254.169.254"],
        "inside.test": ["127.0.0.1", "192.168.1.1"],
    }
    await egress.apply("open")
    assert addresses(await asyncio.to_thread(world.look_up, "mixed.test")) == [WEB]
    reply = await asyncio.to_thread(world.look_up, "inside.test")
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert (await egress.tried())["inside.test", 53, "dns"] == "private"


async def test_long_answers_come_by_tcp_on_both_sides(world: World, egress: Egress) -> None:
    world.names.texts["long.test"] = [f"{n} " + "x" * 200 for n in range(30)]
    await egress.allow("long.test")
    short = await asyncio.to_thread(world.look_up, "long.test", "TXT")
    assert short.flags & dns.flags.TC
    whole = await asyncio.to_thread(world.look_up, "long.test", "TXT", tcp=True)
    assert len(whole.answer[0]) == 30


async def test_off_has_no_names_and_no_policy_has_no_answer(world: World, egress: Egress) -> None:
    assert (await asyncio.to_thread(world.look_up, "allowed.test")).rcode() == dns.rcode.SERVFAIL
    await egress.apply("off")
    assert (await asyncio.to_thread(world.look_up, "allowed.test")).rcode() == dns.rcode.NXDOMAIN
    assert world.names.asked == []


async def test_rubbish_is_dropped_and_floods_are_bounded(world: World, egress: Egress) -> None:
    await egress.allow("allowed.test")

    def flood() -> int:
        query = dns.message.make_query("other.test", "A").to_wire()
        with world.inside("mach"):
            import socket

            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.connect(("10.0.0.1", 53))
            for count in range(2000):
                sock.send(os.urandom(count % 600) if count % 2 else query[: count % len(query)])
            for _ in range(3000):
                sock.send(query)
            sock.settimeout(1)
            answers = 0
            try:
                while sock.recv(4096):
                    answers += 1
            except TimeoutError:
                return answers

    assert await asyncio.to_thread(flood) <= 700
    await asyncio.sleep(1)
    assert addresses(await asyncio.to_thread(world.look_up, "allowed.test")) == [WEB]


async def test_a_resolver_that_is_silent_fails_in_time(world: World, egress: Egress) -> None:
    await egress.allow("silent.test")
    world.names.silent = True
    begun = time.monotonic()
    reply = await asyncio.to_thread(world.look_up, "silent.test", timeout_s=60)
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert time.monotonic() - begun < 40
