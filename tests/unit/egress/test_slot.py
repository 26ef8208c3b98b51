from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest

from roost.egress.interface import Intercept
from roost.egress.policy import Policy, Reach
from roost.egress.slot import CONNECTIONS, QUESTIONS, Bucket, Claim, Slot

REACH = Reach()
ALLOWED = Policy.read({"allow": ["a.example", "*.b.example:8443", "192.0.2.0/24:443"]})
WAY = Intercept(("a.example",), "unix:/x")


class Stub:
    def __init__(self, claim: Claim | None) -> None:
        self.claim = claim
        self.was_cut = False

    def cut(self) -> None:
        self.was_cut = True


def slot(policy: Policy = ALLOWED, *intercept: Intercept) -> Slot:
    made = Slot(1)
    made.apply("m-1", policy, intercept, REACH)
    return made


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        (Claim(443, "a.example", "192.0.2.9"), True),
        (Claim(8443, "a.example", "192.0.2.9"), False),
        (Claim(8443, "x.b.example"), True),
        (Claim(443, "c.example", "192.0.2.9"), False),
        (Claim(443, None, "192.0.2.9"), True),
        (Claim(443, None, "198.51.100.1"), False),
        (Claim(443, "a.example", "10.0.0.1"), False),
        (Claim(443, "a.example", "198.51.100.1", proven=False), False),  # said, not dialled
        (Claim(443, "a.example", "192.0.2.9", proven=False), True),
        (Claim(443, "a.example", intercept=WAY), False),
    ],
)
def test_what_stays_under_an_allowlist(claim: Claim, holds: bool) -> None:
    assert slot().holds(claim, REACH) is holds


def test_ways() -> None:
    made = slot(ALLOWED, WAY)
    assert made.way("a.example", 443) is WAY
    assert made.way("a.example", 8080) is None
    assert made.way("b.example", 443) is None
    assert made.intercepts(80)
    assert not made.holds(Claim(443, "a.example"), REACH)
    assert made.holds(Claim(443, "a.example", intercept=WAY), REACH)


def test_apply_cuts_what_it_does_not_allow() -> None:
    made = slot(Policy())
    stubs: list[Any] = [
        Stub(None),
        Stub(Claim(443, "a.example", "198.51.100.1", proven=False)),
        Stub(Claim(80, "a.example", "198.51.100.1")),
    ]
    made.connections.update(stubs)
    made.apply("m-1", Policy(), (), REACH)
    assert not any(each.was_cut for each in stubs)
    assert made.apply("m-1", ALLOWED, (), REACH) == [stubs[1]]
    made.apply("m-1", Policy(), (WAY,), REACH)
    assert stubs[2].was_cut, "it goes another way now"
    assert not stubs[0].was_cut, "nothing was said yet"
    made.apply("m-2", Policy(), (WAY,), REACH)
    assert stubs[0].was_cut, "another machine's"


def test_reach_cuts() -> None:
    made = slot()
    stub: Any = Stub(Claim(443, "a.example", "192.0.2.9"))
    made.connections.add(stub)
    assert made.cut(REACH) == []
    assert made.cut(Reach(here=(IPv4Network("192.0.2.0/24"),))) == [stub]


def test_without_a_policy_nothing_holds() -> None:
    assert Slot(1).judge("a.example", 443) == "off"
    assert not Slot(1).holds(Claim(443, "a.example"), REACH)


def test_questions_have_a_rate() -> None:
    now = [0.0]
    made = Slot(1, clock=lambda: now[0])
    assert sum(made.may_ask() for _ in range(2000)) == QUESTIONS[1]
    now[0] = 1.0
    assert sum(made.may_ask() for _ in range(2000)) == 100


def test_what_was_taken_for_nothing_is_given_back() -> None:
    bucket = Bucket(CONNECTIONS, lambda: 0.0)
    for _ in range(int(CONNECTIONS[1]) * 2):
        assert bucket.take()
        bucket.give()
