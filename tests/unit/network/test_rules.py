"""What the rule sets say; that they hold is shown in tests/system/host/test_network.py."""

from __future__ import annotations

import re
from pathlib import Path

from roost.network import rules
from roost.network.addresses import Plan

PLAN = Plan("10.201.0.0/16", Path("/run/roost"))


def _chains(text: str) -> dict[str, str]:
    return dict(re.findall(r"chain (\w+) \{\n(.*?)\n  \}", text, re.S))


def test_the_gateway_drops_what_no_rule_lets_through() -> None:
    chains = _chains(rules.gateway(PLAN.slot(5), "9.9.9.9"))
    for name in ("genuine", "input", "output", "forward"):
        assert "policy drop" in chains[name]


def test_dns_is_let_through_only_after_it_was_led() -> None:
    outbound = _chains(rules.gateway(PLAN.slot(5), "10.255.255.53"))["outbound"].splitlines()
    dns = next(i for i, line in enumerate(outbound) if "th dport 53" in line)
    refused = next(i for i, line in enumerate(outbound) if "@refused" in line)
    assert "ct status dnat" in outbound[dns]
    assert dns < refused


def test_only_the_hosts_end_reaches_the_agent() -> None:
    slot = PLAN.slot(5)
    led = _chains(rules.gateway(slot, "9.9.9.9"))["led"]
    assert f"ip saddr {slot.host_side} tcp dport 7111" in led


def test_replacing_is_one_transaction() -> None:
    for text in (
        rules.gateway(PLAN.slot(1), "9.9.9.9"),
        rules.host(PLAN, "9.9.9.9", [], resolver_is_local=False),
    ):
        first, second = text.splitlines()[:2]
        assert first.startswith("table ")
        assert second == f"delete {first}"


def test_the_hosts_own_networks_are_refused() -> None:
    text = rules.host(PLAN, "9.9.9.9", ["203.0.113.7", "203.0.113.0/24"], resolver_is_local=False)
    assert "203.0.113.0/24, 203.0.113.7" in text


def test_a_resolver_on_the_host_is_the_only_service_of_it() -> None:
    def to_host(local: bool) -> str:
        text = rules.host(PLAN, "203.0.113.7", [], resolver_is_local=local)
        return _chains(text)["to_host"]

    assert "dport 53" in to_host(True)
    assert "dport" not in to_host(False)


def test_metadata_private_and_loopback_are_on_the_list() -> None:
    for network in ("169.254.0.0/16", "10.0.0.0/8", "127.0.0.0/8", "100.64.0.0/10", "240.0.0.0/4"):
        assert network in rules.REFUSED
