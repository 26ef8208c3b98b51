"""What the rule sets say; that they hold is shown in tests/system/host/test_network.py."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from roost.egress.policy import REFUSED, Policy, Reach, private_ranges
from roost.network import plumbing, ranges, rules
from roost.network.addresses import Plan

PLAN = Plan("10.201.0.0/16", Path("/run/roost"))
SLOT = PLAN.slot(5)
NOTHING_OPEN = ranges.refused((), PLAN)


def _chains(text: str) -> dict[str, str]:
    return dict(re.findall(r"chain (\w+) \{\n(.*?)\n  \}", text, re.S))


def _policy(value: object, led: tuple[int, ...] = ()) -> dict[str, list[str]]:
    """Chain -> rules."""
    found: dict[str, list[str]] = {}
    for line in rules.policy(Policy.read(value), led).splitlines():
        words = line.split(maxsplit=5)
        if words[0] == "flush":
            found[words[4]] = []
        else:
            found[words[4]].append(words[5])
    return found


def test_the_gateway_drops_what_no_rule_lets_through() -> None:
    chains = _chains(rules.gateway(SLOT, NOTHING_OPEN))
    for name in ("genuine", "input", "output", "forward"):
        assert "policy drop" in chains[name]


def test_nothing_passes_for_being_established() -> None:
    text = rules.gateway(SLOT, NOTHING_OPEN) + rules.policy(Policy())
    assert "established" not in text


def test_what_is_refused_comes_before_every_policy() -> None:
    chains = _chains(rules.gateway(SLOT, NOTHING_OPEN))
    for name, jump in (("led", "jump named"), ("forward", "goto outbound")):
        lines = chains[name].splitlines()
        refused = next(i for i, line in enumerate(lines) if "169.254.0.0/16" in line)
        assert refused < next(i for i, line in enumerate(lines) if jump in line)


def test_only_the_hosts_end_reaches_the_agent() -> None:
    led = _chains(rules.gateway(SLOT, NOTHING_OPEN))["led"]
    assert f"ip saddr {SLOT.host_side} tcp dport 7111" in led


def test_replacing_is_one_transaction() -> None:
    for text in (rules.gateway(SLOT, NOTHING_OPEN), rules.host(PLAN, Reach())):
        first, second = text.splitlines()[:2]
        assert first.startswith("table ")
        assert second == f"delete {first}"


def test_a_frame_is_renewed_only_where_the_same_form_stands() -> None:
    text = rules.renewed(SLOT, NOTHING_OPEN)
    form = re.match(r"delete chain inet roost (form_\w+)\n", text)
    assert form
    assert f"chain {form[1]} {{ }}" in rules.gateway(SLOT, NOTHING_OPEN)
    opened = ranges.refused([IPv4Network("192.168.0.0/16")], PLAN)
    assert form[1] in rules.renewed(SLOT, opened), "what the operator opens is no other form"
    assert form[1] not in rules.renewed(PLAN.slot(6), NOTHING_OPEN)


def test_open_leads_nothing_to_the_proxy_unless_it_must() -> None:
    assert _policy("open")["named"] == []
    observed = _policy({"mode": "open", "observe": True})
    assert observed["named"] == ["tcp dport { 80, 443 } redirect to :7110"]
    assert observed["outbound"][-2:] == ["accept", "goto refuse"]
    led = _policy("open", (8443,))
    assert led["named"] == ["tcp dport 8443 redirect to :7110"]
    assert led["outbound"][0] == "meta l4proto udp ct original proto-dst 8443 goto refuse"


def test_off_is_nothing_and_no_names() -> None:
    off = _policy("off")
    assert off["named"] == [] and off["outbound"] == ["goto refuse"]
    assert len(off["local"]) == 2 and "ct original proto-dst 53 accept" in off["local"][0]


def test_an_allowlist_of_names_lets_nothing_straight_out() -> None:
    chains = _policy({"allow": ["python.example", "git.example:22,9418"]})
    assert chains["named"] == ["tcp dport { 22, 80, 443, 9418 } redirect to :7110"]
    assert chains["outbound"] == ["goto refuse"]
    assert len(chains["local"]) == 3


def test_addresses_go_straight_out_and_by_their_ports_only() -> None:
    chains = _policy({"allow": ["192.0.2.0/25:443/tcp", "192.0.2.128/25:443/tcp", "203.0.113.9"]})
    assert chains["outbound"] == [
        "meta l4proto tcp ct original ip daddr 192.0.2.0/24 ct original proto-dst 443 accept",
        "ct state related meta l4proto icmp ct original ip daddr 192.0.2.0/24 accept",
        "meta l4proto { tcp, udp, icmp } ct original ip daddr 203.0.113.9 accept",
        "goto refuse",
    ]
    assert chains["named"] == [
        "ip daddr 192.0.2.0/24 tcp dport 443 accept",
        "ip daddr 203.0.113.9 accept",
        "tcp dport { 80, 443 } redirect to :7110",
    ]


def test_many_ports_are_ranges() -> None:
    entry = "192.0.2.1:" + ",".join(map(str, range(8000, 8100)))
    assert "ct original proto-dst 8000-8099 accept" in _policy({"allow": [entry]})["outbound"][0]


def test_the_hosts_own_networks_are_refused() -> None:
    reach = ranges.reach((), PLAN, ["203.0.113.7", "203.0.113.0/24"])
    assert "203.0.113.0/24" in _chains(rules.host(PLAN, reach))["from_slot"]


def test_the_host_answers_only_on_an_address_opened_by_itself() -> None:
    here = ["192.168.1.7", "192.168.1.8", "192.168.1.0/24"]
    wide = ranges.reach([IPv4Network("192.168.0.0/16")], PLAN, here)
    text = rules.host(PLAN, wide)
    assert "accept" not in _chains(text)["to_host"].splitlines()[1]
    assert "192.168.1.7" in _chains(text)["from_slot"]
    exact = ranges.reach([IPv4Network("192.168.1.7/32")], PLAN, here)
    assert "ip daddr { 192.168.1.7 } accept" in _chains(rules.host(PLAN, exact))["to_host"]
    assert "192.168.1.8" not in _chains(rules.host(PLAN, exact))["to_host"]


def test_the_clouds_metadata_is_nobodys_to_open() -> None:
    for address in ("169.254.169.254", "168.63.129.16"):
        assert not Reach((IPv4Network("0.0.0.0/0"),)).permits(address)
        with pytest.raises(ValueError, match="metadata"):
            private_ranges(f"{address}/32")
    text = _chains(rules.host(PLAN, Reach()))
    assert "ip daddr { 169.254.0.0/16, 168.63.129.16 }" in text["output"]
    assert "168.63.129.16" in text["from_slot"]
    assert IPv4Network("168.63.129.16/32") in NOTHING_OPEN


def test_there_is_one_list() -> None:
    for network in ("169.254.0.0/16", "10.0.0.0/8", "127.0.0.0/8", "100.64.0.0/10", "240.0.0.0/4"):
        assert network in REFUSED
        assert any(IPv4Network(network).subnet_of(each) for each in NOTHING_OPEN)


def test_a_frame_never_goes_where_an_earlier_session_leads() -> None:
    did: list[str] = []

    class Sessions:
        def forget(self, name: str) -> None:
            did.append("forget")

        def load(self, *_: object) -> None:
            did.append("load")

    tables = plumbing.Tables(PLAN, ())
    tables._sessions = Sessions()  # type: ignore[assignment]
    tables.frame(SLOT)
    assert did == ["forget", "load"]
