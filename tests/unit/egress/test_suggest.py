"""What was tried, as the list that would have let it through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.egress.interface import Decision
from roost.egress.policy import MAX_ENTRIES, Policy, Reach
from roost.egress.suggest import Suggestion, registrable, suggest

LIST = Policy.read({"allow": ["python.example"]})
WATCHED = Policy.read({"mode": "open", "observe": True})


def tried(
    host: str,
    port: int = 443,
    via: str = "tls",
    protocol: str = "tcp",
    allowed: bool = False,
    count: int = 1,
) -> Decision:
    return Decision(
        host, port, protocol, via, allowed, "" if allowed else "not_allowed", count, 1.0, 2.0
    )


def of(policy: Policy, *decisions: Decision) -> Suggestion:
    return suggest(policy, decisions, Reach())


def test_the_refused_and_nothing_else() -> None:
    made = of(
        LIST,
        tried("python.example", allowed=True),
        tried("example.org", 53, "dns", "udp"),
        tried("example.org", 443),
        tried("api.example.net", 80, "http"),
        tried("odd.example.com", 8443),
        tried("both.example.com", 8443),
        tried("both.example.com", 443),
        tried("192.0.2.1", 22, "packet"),
        tried("192.0.2.1", 21, "packet"),
        tried("192.0.2.1", 123, "packet", "udp"),
        tried("192.0.2.9", 443, "tls"),
    )
    assert made.allow == (
        "both.example.com:443,8443",
        "odd.example.com:8443",
        "api.example.net",
        "example.org",
        "192.0.2.1:123/udp",
        "192.0.2.1:21,22/tcp",
        "192.0.2.9:443/tcp",
    )
    assert made.wildcards == ()


@pytest.mark.parametrize(
    "decision",
    [
        tried("169.254.169.254", 80, "packet"),
        tried("10.1.2.3", 443, "packet"),
        tried("127.0.0.1", 80, "http"),
        tried("192.0.2.1", 0, "packet", "icmp"),
        tried("python.example", 443),  # refused though it is listed: its address was
        tried("1.2.0.192.in-addr.arpa", 53, "dns", "udp"),
        tried("localhost", 53, "dns", "udp"),
        tried("_http._tcp.deb.mirror.example", 53, "dns", "udp"),
        tried("", 0, "packet", ""),  # the rest, beyond what is listed
        tried("not a name", 443),
        tried("UPPER.org", 443),
        tried("", 443),
        tried("0x7f.1", 80, "http"),
    ],
)
def test_what_no_entry_helps(decision: Decision) -> None:
    assert of(LIST, decision) == Suggestion()


def test_what_the_operator_opened_can_be_asked_for() -> None:
    import ipaddress

    reach = Reach(private=(ipaddress.IPv4Network("10.1.0.0/16"),))
    made = suggest(LIST, [tried("10.1.2.3", 5432, "packet")], reach)
    assert made.allow == ("10.1.2.3:5432/tcp",)


def test_of_one_that_is_observed_all_of_it() -> None:
    decisions = [tried("example.org", allowed=True), tried("192.0.2.1", 22, "packet", allowed=True)]
    assert of(WATCHED, *decisions).allow == ("example.org", "192.0.2.1:22/tcp")
    assert of(Policy(), *decisions) == Suggestion()
    assert of(Policy.read("off"), tried("a.org", 53, "dns", "udp")).allow == ("a.org",)


def test_a_wildcard_is_offered_beside_the_names() -> None:
    names = ["a.cdn.example.org", "b.cdn.example.org", "c.cdn.example.org"]
    made = of(LIST, *(tried(n) for n in [*names, "example.org", "other.net"]))
    assert set(names) < set(made.allow)
    assert [(w.entry, w.instead_of) for w in made.wildcards] == [
        ("*.cdn.example.org", tuple(names))
    ]
    wider = of(LIST, *(tried(n) for n in ["a.example.org", *names[:2]]))
    assert [w.entry for w in wider.wildcards] == ["*.example.org"]
    assert of(LIST, *(tried(n) for n in names[:2])).wildcards == ()
    shared = of(LIST, *(tried(f"{n}.s3.amazonaws.com") for n in "abcd"))
    assert len(shared.allow) == 4 and shared.wildcards == ()
    country = of(LIST, *(tried(f"{n}.co.uk") for n in "abcd"))
    assert country.wildcards == ()
    ports = of(LIST, *(tried(f"{n}.example.org", 8443) for n in "abc"))
    assert [w.entry for w in ports.wildcards] == ["*.example.org:8443"]


def test_there_is_an_end_to_it() -> None:
    made = of(LIST, *(tried(f"n{i}.org", count=i) for i in range(1, 400)))
    assert len(made.allow) == MAX_ENTRIES - 1
    assert made.left_out == 399 - len(made.allow)
    assert "n399.org" in made.allow and "n1.org" not in made.allow


def test_what_somebody_registered() -> None:
    found = [registrable(n) for n in ("a.b.org", "a.b.co.uk", "co.uk", "b.org", "org", "x.gnu.de")]
    assert found == ["b.org", "b.co.uk", None, "b.org", None, "gnu.de"]


HOSTS = st.sampled_from(
    ["a.org", "b.a.org", "c.a.org", "d.a.org", "192.0.2.1", "198.51.100.7", "10.0.0.9", "x..y"]
)
DECISIONS = st.builds(
    tried,
    HOSTS,
    st.integers(1, 65535),
    st.sampled_from(["tls", "http", "packet"]),
    st.sampled_from(["tcp"]),
)


@given(st.lists(DECISIONS, max_size=20))
def test_with_it_all_that_may_be_goes_through(decisions: list[Decision]) -> None:
    made = of(LIST, *decisions)
    after = Policy.read({"allow": [*map(str, LIST.allow), *made.allow]})
    for each in decisions:
        if each.host in ("10.0.0.9", "x..y"):
            continue
        if each.host[0].isdigit():
            assert after.allows_address(each.host, each.port)
        else:
            assert after.allows_name(each.host, each.port)
    assert of(after, *decisions) == Suggestion()
