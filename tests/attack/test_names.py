"""34, 35, 36: names, which are what an allowlist is made of: asked of the resolver, said in TLS and in HTTP."""

from __future__ import annotations

import json
import time

import pytest

from roost import Machine
from tests.system.internet import RESOLVER
from tests.system.internet.names import ALLOWED, CDN, OTHER, PUBLIC_RESOLVER, WILD

from .record import case
from .rung import Attempt, Outcome, Rung, request

pytestmark = pytest.mark.own_network

A, NULL, TXT, AAAA, SRV, SVCB, HTTPS, ANY = 1, 10, 16, 28, 33, 64, 65, 255


def served(rung: Rung, host: str, since: float) -> int:
    """Requests that a web server of the internet had for that host."""
    return len(rung.internet.seen("http", said=host, since=since))


def answers(outcome: Outcome) -> list[list[object]]:
    assert outcome.ok, str(outcome)
    found: list[list[object]] = json.loads(outcome.said)["answers"]
    return found


# --- the resolver ---------------------------------------------------------------------------------


@case(34)
def test_what_is_not_listed_is_not_asked(rung: Rung) -> None:
    """34: no label of the machine's leaves, whatever the question's type and spelling."""
    rung.leash("allowlist", "allowed.test", "*.wild.test", "198.51.100.0/24:443")
    since = rung.internet.now()
    secret = f"secret{int(since * 1000)}"
    names = (
        f"{secret}.tunnel.test",
        f"{secret}.allowed.test",  # below a name that is listed
        f"{secret}allowed.test",
        f"allowed.test.{secret}.test",
        f"{secret}.WILD.test.tunnel.test",
        f"{secret}.org",
        f"{secret}",
    )
    outcomes = rung.attempt(
        *(
            {"do": "dns", "name": name, "kind": kind}
            for name in names
            for kind in (A, TXT, NULL, SRV, ANY)
        ),
        *({"do": "dns", "name": name, "kind": TXT, "over": "tcp"} for name in names),
        *({"do": "dns", "name": name, "kind": HTTPS} for name in names),
        *({"do": "names", "name": name} for name in names),
    )
    asked = rung.asked(since)
    assert not [name for name in asked if secret in name], [str(each) for each in outcomes]
    for each in outcomes:
        assert not each.ok or not json.loads(each.said).get("answers"), str(each)
    # What is listed has answers all the same, and below a wildcard whatever is asked.
    listed = rung.attempt(
        {"do": "dns", "name": "allowed.test", "wait": 20.0},
        {"do": "dns", "name": "ALLOWED.Test.", "wait": 20.0},
        {"do": "dns", "name": "any.wild.test", "wait": 20.0},
        {"do": "dns", "name": "wild.test", "wait": 20.0},
        {"do": "names", "name": "allowed.test"},
    )
    assert answers(listed[0]) == answers(listed[1]) == [[A, ALLOWED]]
    assert answers(listed[2]) == [[A, WILD]] and answers(listed[3]) == []
    assert json.loads(listed[4].said) == [ALLOWED]


@case(34)
def test_a_listed_name_tells_addresses_and_nothing_else(rung: Rung) -> None:
    """Of a name under an allowlist addresses alone: no text to carry data in, no hint at another way."""
    rung.leash("allowlist", "svcb.test", "v6.test", "alias.test", "*.tunnel.test")
    outcomes = rung.attempt(
        *({"do": "dns", "name": "svcb.test", "kind": kind} for kind in (HTTPS, SVCB)),
        {"do": "dns", "name": "v6.test", "kind": AAAA},
        {"do": "dns", "name": "v6.test", "kind": A},
    )
    for each in outcomes:
        assert answers(each) == [], str(each)
    alias, svcb = rung.attempt(
        {"do": "dns", "name": "alias.test", "wait": 20.0},
        {"do": "dns", "name": "svcb.test", "wait": 20.0},
    )
    assert [A, OTHER] in answers(alias) and answers(svcb) == [[A, ALLOWED]]


@case(34)
def test_off_knows_no_names(rung: Rung) -> None:
    rung.leash("off")
    since = rung.internet.now()
    outcomes = rung.attempt(
        *({"do": "dns", "name": "allowed.test", "over": over} for over in ("udp", "tcp")),
        {"do": "names", "name": "allowed.test"},
    )
    assert rung.asked(since) == set()
    assert not any(ALLOWED in each.said for each in outcomes), [str(each) for each in outcomes]
    tried = {(d.host, d.via, d.reason) for d in rung.machine.egress().refused}
    assert ("allowed.test", "dns", "off") in tried


@case(35)
@pytest.mark.parametrize("mode", ["allowlist", "off"])
def test_no_resolver_but_ours(rung: Rung, mode: str) -> None:
    """35: another by UDP, TCP, TLS or HTTPS; ours by its true address."""
    rung.leash(*((mode, "allowed.test") if mode == "allowlist" else (mode,)))
    since = rung.internet.now()
    to = rung.internet.attacker()
    doh = "/dns-query?dns=AAABAAABAAAAAAAAB2FsbG93ZWQEdGVzdAAAAQAB"
    outcomes = rung.attempt(
        *(
            {"do": "dns", "name": "allowed.test", "server": server, "over": over}
            for server in (PUBLIC_RESOLVER, RESOLVER, to)
            for over in ("udp", "tcp")
        ),
        *(
            {"do": "tls", "to": server, "port": 853, "name": "dot.test"}
            for server in (PUBLIC_RESOLVER, to)
        ),
        *(
            {
                "do": "tls",
                "to": PUBLIC_RESOLVER,
                "name": name,
                "say": request(host, doh),
                "verify": False,
            }
            for name, host in (
                ("doh.test", "doh.test"),
                (None, "doh.test"),
                ("doh.test", "allowed.test"),
            )
        ),
        {"do": "url", "url": f"https://doh.test{doh}"},
        {"do": "url", "url": f"http://doh.test{doh}"},
        {"do": "tcp", "to": PUBLIC_RESOLVER, "port": 80, "say": request("doh.test", doh)},
    )
    assert rung.reached(to) == []
    assert rung.internet.seen(to=PUBLIC_RESOLVER, since=since) == [], [str(o) for o in outcomes]
    # Ours may have been asked for what is listed; nobody asked it from inside.
    assert all(each.more["over"] == "udp" for each in rung.internet.seen("dns", since=since))
    assert not any(each.ok and ALLOWED in each.said for each in outcomes)


# --- what is said on a connection -------------------------------------------------------------------


def test_what_is_listed_is_served(rung: Rung) -> None:
    rung.leash("allowlist", "allowed.test", "*.wild.test", "other.test:443")
    outcomes = rung.attempt(
        {"do": "url", "url": "http://allowed.test/x", "wait": 20.0},
        {"do": "url", "url": "https://allowed.test/x", "wait": 20.0},
        {"do": "url", "url": "https://any.wild.test/x", "wait": 20.0},
        {"do": "url", "url": "https://other.test/x", "wait": 20.0},
        {"do": "url", "url": "http://other.test/x"},
    )
    hosts = [json.loads(each.said)["host"] if each.ok else None for each in outcomes]
    expected = ["allowed.test", "allowed.test", "any.wild.test", "other.test", None]
    assert hosts == expected, [str(each) for each in outcomes]


@case(36)
def test_the_name_said_is_the_name_dialled(rung: Rung) -> None:
    """36: whatever address a connection was for, it ends at the name that it named."""
    rung.leash("allowlist", "allowed.test")
    to = rung.internet.attacker()
    since = rung.internet.now()
    outcomes = rung.attempt(
        {
            "do": "tls",
            "to": to,
            "name": "allowed.test",
            "say": request("allowed.test"),
            "wait": 20.0,
        },
        {"do": "tls", "to": OTHER, "name": "allowed.test", "say": request("allowed.test")},
        {"do": "tcp", "to": to, "port": 80, "say": request("allowed.test")},
        {"do": "tcp", "to": OTHER, "port": 80, "say": request("ALLOWED.test:80")},
    )
    assert rung.reached(to) == []
    assert not rung.internet.seen(to=OTHER, since=since), [str(each) for each in outcomes]
    for each in outcomes:  # at the true one, or nowhere
        assert f'"server": "{ALLOWED}"' in each.said or not each.said, str(each)
    assert f'"server": "{ALLOWED}"' in outcomes[0].said, str(outcomes[0])


@case(36)
def test_tls_that_names_another_or_nobody(rung: Rung) -> None:
    rung.leash("allowlist", "allowed.test", "one.cdn.test")
    to = rung.internet.attacker()
    since = rung.internet.now()
    name = f"{to.replace('.', '-')}.at.test"
    bare = "160301"
    attempts: list[Attempt] = [
        *(
            {"do": "tls", "to": at, "name": sni, "say": request("allowed.test"), "verify": False}
            for at in (to, ALLOWED, CDN)
            for sni in (
                "other.test",
                name,
                "two.cdn.test",
                "xallowed.test",
                "allowed.test.evil.test",
                None,
            )
        ),
        # No handshake; half of one; one that says it is longer than it may be.
        {"do": "hello", "to": to, "port": 443, "first": [b"canary\r\n".hex()]},
        {"do": "hello", "to": to, "port": 443, "first": [bare, "0040", "0100003c"], "gap": 0.1},
        {"do": "hello", "to": to, "port": 443, "first": [bare + "ffff" + "01" * 64]},
        {"do": "tcp", "to": to, "port": 443, "say": request("allowed.test")},
        {"do": "tcp", "to": to, "port": 443, "say": "SSH-2.0-canary\r\n"},
    ]
    outcomes = rung.attempt(*attempts)
    assert rung.reached(to) == [], [str(each) for each in outcomes]
    assert rung.internet.seen("http", since=since) == []
    named = {each.said for each in rung.internet.seen("tls", since=since)}
    assert named <= {"allowed.test", "one.cdn.test"}, named


@case(36)
def test_every_request_names_what_it_is_for(rung: Rung) -> None:
    """A connection that was let through for one name says another: in its next request, in its first line, in a
    second Host, in what looks like a body."""
    rung.leash("allowlist", "allowed.test")
    to = rung.internet.attacker()
    name = f"{to.replace('.', '-')}.at.test"
    since = rung.internet.now()
    first = request("allowed.test")
    bad = [
        request("other.test"),
        request(OTHER),
        request(name),
        request("allowed.test", "http://other.test/"),
        request("other.test", "http://allowed.test/"),
        request("allowed.test", "/", "GET", "Host: other.test"),
        request("other.test", "/", "GET", "Host: allowed.test"),
        "GET / HTTP/1.1\r\nHost: allowed.test\r\n Host: other.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : other.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: allowed.test, other.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: allowed.test@other.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: other.test#allowed.test\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET /\r\n",
        request("other.test:443", "other.test:443", "CONNECT"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\r\n" * 100,
        "canary " * 20_000,
        f"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: {'y' * 200_000}\r\n\r\n",
    ]
    hidden = request("other.test")
    smuggled = [
        # Two lengths; a length and chunks; chunks by another name; an upgrade that is none.
        f"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 0\r\nContent-Length: {len(hidden)}\r\n\r\n{hidden}",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"0\r\n\r\n{hidden}",
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: xchunked\r\n\r\n" + hidden,
        "POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + hidden,
        f"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{hidden}",
        f"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n{hidden}",
    ]
    outcomes = rung.attempt(
        *({"do": "tcp", "to": at, "port": 80, "say": say} for say in bad for at in (ALLOWED,)),
        *(
            {"do": "conversation", "to": ALLOWED, "port": 80, "says": [first, say]}
            for say in bad[:8]
        ),
        *({"do": "tcp", "to": ALLOWED, "port": 80, "say": say} for say in smuggled),
        {"do": "conversation", "to": ALLOWED, "port": 80, "says": [first, first], "wait": 20.0},
    )
    assert rung.reached(to) == []
    assert rung.internet.seen(to=OTHER, since=since) == [], [str(each) for each in outcomes]
    # Not even told to the right server: it could be one that serves both.
    assert {each.said for each in rung.internet.seen("http", since=since)} <= {
        "allowed.test",
        "allowed.test:80",
    }
    says = json.loads(outcomes[-1].said)
    assert len(says) == 2 and all('"host": "allowed.test"' in each for each in says), says


@case(36)
def test_two_names_behind_one_address(rung: Rung) -> None:
    """The name is what counts, not the address they share. What is said inside TLS nobody sees: a known limit."""
    rung.leash("allowlist", "one.cdn.test")
    since = rung.internet.now()
    outcomes = rung.attempt(
        {"do": "url", "url": "https://one.cdn.test/x", "wait": 20.0},
        {"do": "url", "url": "https://two.cdn.test/x"},
        {"do": "tls", "to": CDN, "name": "two.cdn.test", "say": request("two.cdn.test")},
        {"do": "tcp", "to": CDN, "port": 80, "say": request("two.cdn.test")},
    )
    assert outcomes[0].ok, str(outcomes[0])
    assert served(rung, "one.cdn.test", since) == 1
    assert served(rung, "two.cdn.test", since) == 0
    assert "two.cdn.test" not in {each.said for each in rung.internet.seen("tls", since=since)}


@case(36)
def test_an_alias_is_the_name_that_was_asked_for(rung: Rung) -> None:
    """A listed name may point where it likes, but not at what is always refused."""
    rung.leash("allowlist", "alias.test", "*.alias.test")
    since = rung.internet.now()
    good, bad = rung.attempt(
        {"do": "url", "url": "https://alias.test/x", "wait": 20.0},
        {"do": "url", "url": "http://192-168-77-7.alias.test/x"},
    )
    assert good.ok and json.loads(good.said)["server"] == OTHER, str(good)
    assert not bad.ok, str(bad)
    assert rung.internet.seen(to="192.168.77.7", since=since) == []


def test_what_was_refused_is_listed_and_what_would_allow_it_offered(rung: Rung) -> None:
    rung.leash("allowlist", "allowed.test")
    child = rung.machine.fork()  # which has tried nothing yet
    assert isinstance(child, Machine)
    with child:
        rung.attempt(
            {"do": "url", "url": "https://other.test/x"},
            {"do": "tcp", "to": ALLOWED, "port": 80, "say": request("any.wild.test")},
            {"do": "url", "url": "https://allowed.test/x"},
            machine=child,
        )
        deadline = time.monotonic() + 30
        while True:
            egress = child.egress()
            refused = {each.host for each in egress.refused}
            if {"other.test", "any.wild.test"} <= refused:
                break
            assert time.monotonic() < deadline, egress
        assert "allowed.test" not in refused
        assert {"other.test", "any.wild.test"} <= set(egress.suggested)
        child.set_egress("allowlist", allow=["allowed.test", *egress.suggested])
        (now,) = rung.attempt(
            {"do": "url", "url": "https://other.test/x", "wait": 20.0}, machine=child
        )
        assert now.ok, str(now)
