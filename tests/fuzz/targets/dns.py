"""What a machine sends to its resolver: read or not, every answer to it can be sent, and no name passes that is not
allowed."""

from __future__ import annotations

import dns.message
import dns.rdatatype

from roost.egress import resolver
from roost.egress.policy import Policy, Reach, clean_name
from roost.egress.upstream import Answer

OPEN = Policy.read("open")
LISTED = Policy.read({"mode": "allowlist", "allow": ["a.example", "*.b.example"]})
REACH = Reach()


def _asked(name: str, kind: str = "A", **more: object) -> bytes:
    return dns.message.make_query(name, kind, id=7, **more).to_wire()  # type: ignore[arg-type]


COVERS = (
    "roost.egress.resolver",
    "roost.egress.policy",
    "dns.message",
    "dns.wire",
    "dns.name",
    "dns.edns",
)
SEEDS = (
    _asked("a.example."),
    _asked("A.b.EXAMPLE.", "AAAA", use_edns=0, payload=1232),
    _asked("xn--bcher-kva.b.example.", "HTTPS", use_edns=0, want_dnssec=True),
    _asked("1.2.0.192.in-addr.arpa.", "PTR"),
    _asked("."),
)
LONGEST = resolver.MAX_QUESTION + 8


def one(data: bytes) -> None:
    query = resolver.read(data)
    if query is None:
        return
    name, kind = resolver.asked(query)
    verdict = resolver.judge(LISTED, name, kind)
    if name is None:
        assert verdict == "malformed"
    else:
        assert clean_name(name) == name, name
        if name != "a.example" and not name.endswith(".b.example"):
            assert verdict in ("not_allowed", "malformed"), name
    resolver.judge(OPEN, name, kind)
    replies = [
        *(resolver.refused(query, why) for why in ("off", "not_allowed", "type", "malformed")),
        resolver.nothing(query, "x"),
        resolver.failed(query),
        resolver.placeholder(query, "192.0.2.1"),
        resolver.answered(query, Answer(0, (), None), REACH)[0],
    ]
    for reply in replies:
        for udp in (True, False):
            wire = resolver.wire(query, reply, udp=udp)
            assert len(wire) <= 65535
            assert wire[:2] == data[:2]
