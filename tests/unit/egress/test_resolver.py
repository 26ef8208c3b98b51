from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.egress import resolver
from roost.egress.policy import Policy, Reach
from roost.egress.upstream import Answer


def query(name: str = "a.example", kind: str = "A", **how: object) -> dns.message.QueryMessage:
    made = resolver.read(dns.message.make_query(name, kind, **how).to_wire())  # type: ignore[arg-type]
    assert made is not None
    return made


@given(st.binary(max_size=600))
def test_rubbish(wire: bytes) -> None:
    for each in (wire, b"\0\1\1\0\0\1\0\0\0\0\0\0" + wire):
        made = resolver.read(each)
        if made is not None:
            resolver.asked(made)
            for reply in (resolver.refused(made, "not_allowed"), resolver.nothing(made)):
                assert len(resolver.wire(made, reply, udp=True)) <= 1232


@given(st.data())
def test_a_damaged_question(data: st.DataObject) -> None:
    whole = bytearray(dns.message.make_query("a.example", "A", use_edns=0).to_wire())
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    resolver.read(bytes(whole))


def test_what_is_no_question() -> None:
    good = dns.message.make_query("a.example", "A")
    answer = dns.message.make_response(good)
    two = dns.message.make_query("a.example", "A")
    two.question.append(dns.message.make_query("b.example", "A").question[0])
    update = bytearray(good.to_wire())
    update[2] |= 5 << 3
    for wire in (answer.to_wire(), two.to_wire(), bytes(update), b"", good.to_wire() + b"x"):
        assert resolver.read(wire) is None


@pytest.mark.parametrize(
    ("policy", "name", "kind", "reason"),
    [
        ("open", "a.example", "A", ""),
        ("open", "a.example", "ANY", "malformed"),
        ("open", "a.example", "LOC", ""),
        ("off", "a.example", "A", "off"),
        ({"allow": ["a.example:8443"]}, "a.example", "A", ""),
        ({"allow": ["a.example"]}, "a.example", "LOC", "type"),
        ({"allow": ["a.example"]}, "b.example", "A", "not_allowed"),
        ({"allow": ["a.example"]}, "1.2.0.192.in-addr.arpa", "PTR", "not_allowed"),
        ({"allow": ["a.example"]}, "192.0.2.1", "A", "malformed"),
    ],
)
def test_judge(policy: object, name: str, kind: str, reason: str) -> None:
    found, number = resolver.asked(query(name, kind))
    assert resolver.judge(Policy.read(policy), found, number) == reason


def test_an_answer_keeps_its_aliases_and_loses_what_is_refused() -> None:
    chain = dns.rrset.from_text("a.example.", 60, "IN", "CNAME", "b.example.")
    found = dns.rrset.from_text("b.example.", 60, "IN", "A", "192.0.2.9", "10.0.0.9")
    asked = query("A.Example")
    reply, reason = resolver.answered(asked, Answer(dns.rcode.NOERROR, (chain,), found), Reach())
    assert reason == ""
    assert [str(each) for each in reply.answer] == [
        "A.Example. 60 IN CNAME b.example.",
        "b.example. 60 IN A 192.0.2.9",
    ]
    inside = dns.rrset.from_text("a.example.", 60, "IN", "A", "127.0.0.1")
    reply, reason = resolver.answered(asked, Answer(dns.rcode.NOERROR, (), inside), Reach())
    assert (reply.answer, reason) == ([], "private")


def test_size_is_what_the_asker_takes() -> None:
    found = dns.rrset.from_text(
        "a.example.", 60, "IN", "TXT", *(f'"{n}{"x" * 99}"' for n in range(9))
    )
    for how, cut in (({}, True), ({"use_edns": 0, "payload": 1232}, False)):
        asked = query("a.example", "TXT", **how)
        reply, _ = resolver.answered(asked, Answer(dns.rcode.NOERROR, (), found), Reach())
        wire = resolver.wire(asked, reply, udp=True)
        assert bool(dns.message.from_wire(wire).flags & dns.flags.TC) is cut
        assert len(resolver.wire(asked, reply, udp=False)) > 512 or cut


def test_why_is_said_to_those_who_can_read_it() -> None:
    assert not resolver.refused(query(), "not_allowed").options
    said = resolver.refused(query(use_edns=0), "not_allowed")
    assert "roost egress: not_allowed" in said.options[0].to_text()
    assert said.rcode() == dns.rcode.NXDOMAIN
