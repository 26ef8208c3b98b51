"""The rule sets, as text for ``nft -f``. Each replaces its table whole, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable

from roost.network.addresses import (
    AGENT_PORT,
    GATEWAY_ADDRESS,
    MACHINE_ADDRESS,
    MACHINE_MAC,
    Plan,
    Slot,
)

# Nothing a machine may ever speak to: this network, private, shared, loopback, link-local with the
# clouds' metadata, protocol assignments, benchmarks, multicast, reserved, broadcast.
REFUSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)

# A refusal answers at once: programs that probe a cloud's metadata would wait for seconds otherwise.
_REFUSE = """\
    meta l4proto tcp reject with tcp reset
    reject with icmp type admin-prohibited"""

COUNTERS, EGRESS = "roost_count", "egress"
_CONNECTIONS = 8192  # a machine's share of connection tracking


def gateway(slot: Slot, resolver: str) -> str:
    """For the slot's gateway namespace; loaded before it has any link."""
    return f"""\
table inet roost
delete table inet roost
table inet roost {{
  set refused {{ type ipv4_addr; flags interval; elements = {{ {", ".join(REFUSED)} }}; }}
  chain genuine {{
    type filter hook prerouting priority raw; policy drop;
    iifname "in" ether saddr {MACHINE_MAC} ip saddr {MACHINE_ADDRESS} accept
    iifname {{ "out", "lo" }} meta nfproto ipv4 accept
  }}
  chain led {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "in" ip daddr {GATEWAY_ADDRESS} udp dport 53 dnat ip to {resolver}:53
    iifname "in" ip daddr {GATEWAY_ADDRESS} tcp dport 53 dnat ip to {resolver}:53
    iifname "out" ip saddr {slot.host_side} tcp dport {AGENT_PORT} \
dnat ip to {MACHINE_ADDRESS}:{AGENT_PORT}
  }}
  chain hidden {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname {{ "in", "out" }} masquerade
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname "in" icmp type echo-request accept
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    ct state established,related accept
    oifname "in" meta l4proto {{ icmp, tcp }} accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn tcp option maxseg size set rt mtu
    ct state established,related accept
    ct state invalid drop
    iifname "out" oifname "in" ct status dnat tcp dport {AGENT_PORT} accept
    iifname "in" oifname "out" jump outbound
  }}
  chain outbound {{
    ct count over {_CONNECTIONS} drop
    ct status dnat ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @refused jump refuse
    accept
  }}
  chain refuse {{
{_REFUSE}
  }}
}}
"""


def counted() -> str:
    """For the slot's gateway namespace, once: ``renew_rules`` leaves it alone, and what it counted with it. Only what
    the machine began counts, and only once it may leave."""
    return f"""\
table inet {COUNTERS} {{
  counter {EGRESS} {{ }}
  chain leaving {{
    type filter hook forward priority filter + 10; policy accept;
    iifname "in" oifname "out" ct direction original counter name "{EGRESS}"
  }}
}}
"""


def host(plan: Plan, resolver: str, here: Iterable[str], *, resolver_is_local: bool) -> str:
    """For the host's own namespace. ``here``: the host's addresses and connected networks."""
    slots = f'"{plan.prefix}h*"'
    dns = f"ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept"
    elements = ", ".join(sorted(set(here)))
    return f"""\
table inet {plan.table}
delete table inet {plan.table}
table inet {plan.table} {{
  set refused {{ type ipv4_addr; flags interval; elements = {{ {", ".join(REFUSED)} }}; }}
  set here {{ type ipv4_addr; flags interval; auto-merge; \
{f"elements = {{ {elements} }};" if elements else ""} }}
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname {slots} jump to_host
  }}
  chain to_host {{
    ct state established,related accept
    {dns if resolver_is_local else ""}
    jump refuse
    drop
  }}
  chain forward {{
    type filter hook forward priority filter - 10; policy accept;
    oifname {slots} jump to_slot
    iifname {slots} jump from_slot
  }}
  chain to_slot {{
    iifname {slots} drop
    ct state established,related accept
    drop
  }}
  chain from_slot {{
    meta nfproto != ipv4 drop
    ip saddr != {plan.network} drop
    ct state established,related accept
    {dns}
    ip daddr @refused jump refuse
    ip daddr @here jump refuse
  }}
  chain refuse {{
{_REFUSE}
  }}
  chain output {{
    type filter hook output priority filter - 10; policy accept;
    oifname {slots} jump to_agent
  }}
  chain to_agent {{
    tcp dport {AGENT_PORT} meta skuid 0 accept
    ct state established,related accept
    drop
  }}
  chain hidden {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {plan.network} oifname != {slots} masquerade
  }}
}}
"""
