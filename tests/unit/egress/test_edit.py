"""A policy from another: what stays, what goes, and what would be a surprise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.egress.edit import edited, overlap
from roost.egress.policy import Entry, Policy
from roost.errors import InvalidRequestError

LIST = Policy.read({"allow": ["python.example", "*.mirror.example", "192.0.2.0/24:5432/tcp"]})


def shown(policy: Policy) -> list[str]:
    return [str(each) for each in policy.allow]


def test_what_is_not_named_stays() -> None:
    assert edited(LIST) == LIST
    assert edited(LIST, observe=True) == Policy(LIST.mode, LIST.allow, True)
    assert shown(edited(LIST, add=["Example.ORG.", "python.example"])) == [
        *shown(LIST),
        "example.org",
    ]
    assert shown(edited(LIST, allow=["a.org"], add=["b.org"])) == ["a.org", "b.org"]
    assert shown(edited(LIST, remove=["python.example"])) == shown(LIST)[1:]
    assert shown(edited(LIST, remove=["python.example"], add=["a.org"])) == [
        *shown(LIST)[1:],
        "a.org",
    ]


@pytest.mark.parametrize("mode", ["open", "off"])
def test_another_mode_has_no_list(mode: str) -> None:
    made = edited(LIST, mode=mode)
    assert (made.mode, made.allow) == (mode, ())
    with pytest.raises(InvalidRequestError, match="set the mode allowlist"):
        edited(made, add=["python.example"])
    assert shown(edited(made, mode="allowlist", add=["python.example"])) == ["python.example"]


def test_what_is_removed_is_allowed_no_more() -> None:
    assert edited(LIST, remove=["elsewhere.org"]) == LIST  # it never was
    for entry in ("ftp.mirror.example", "192.0.2.7:5432", "192.0.0.0/16"):
        with pytest.raises(InvalidRequestError, match="would still be allowed by") as caught:
            edited(LIST, remove=[entry])
        assert caught.value.details["allowed_by"] in shown(LIST)
    assert edited(LIST, remove=["192.0.2.7:80", "mirror.example"]) == LIST
    with pytest.raises(InvalidRequestError, match="The mode is open"):
        edited(Policy(), remove=["python.example"])
    off = Policy.read("off")
    assert edited(off, remove=["python.example"]) == off


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "shut"},
        {"add": ["a b"]},
        {"remove": ["http://x"]},
        {"allow": ["1.2.3.4/40"]},
        {"add": [f"n{i}.org" for i in range(254)]},
    ],
)
def test_what_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        edited(LIST, **wrong)
    assert caught.value.code == "VALIDATION_FAILED"


NAMES = st.sampled_from(["a.b.org", "*.b.org", "b.org", "*.a.b.org", "c.a.b.org", "xb.org"])
PORTS = st.sampled_from(["", ":80", ":443", ":8443", ":80,8443"])
NETWORKS = st.sampled_from(["192.0.2.0/24", "192.0.2.7", "192.0.3.0/24", "192.0.0.0/16"])
ENTRIES = st.builds("{}{}".format, NAMES | NETWORKS, PORTS)


@given(st.lists(ENTRIES, max_size=5), ENTRIES)
def test_an_overlap_is_something_that_both_allow(listed: list[str], gone: str) -> None:
    policy, entry = Policy.read({"mode": "allowlist", "allow": listed}), Entry.parse(gone)
    other = Policy.read({"allow": [gone]})
    ports = (80, 443, 8443)
    names = ["a.b.org", "b.org", "z.b.org", "c.a.b.org", "xb.org", "q.xb.org", "d.c.a.b.org"]
    addresses = ["192.0.2.7", "192.0.2.8", "192.0.3.1", "192.0.9.9"]
    both = any(
        policy.allows_name(n, p) and other.allows_name(n, p) for n in names for p in ports
    ) or any(
        policy.allows_address(a, p) and other.allows_address(a, p) for a in addresses for p in ports
    )
    assert any(overlap(each, entry) for each in policy.allow) == both
