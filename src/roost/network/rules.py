"""The rule sets, as text for nftables.

A slot's table has two parts. The frame (``gateway``) is the same under every policy: only the machine's own address,
nothing private, nothing inbound but the agent's port. Its three empty chains are what a policy fills (``policy``):

    named     which of the machine's connections are led to the proxy, where they must prove a name
    outbound  what goes straight out
    local     what of the machine's reaches the resolver and the proxy in the gateway

Every packet of the machine's flows passes one of the last two, in both directions, and is judged by what the flow was
begun for (``ct original``): nothing is let through for being established. So a policy that is put in place cuts what
it does not allow, in one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, collapse_addresses

from roost.egress.interface import BOUNDARY_UID, DNS_PORT, EGRESS_UID, PROXY_PORT
from roost.egress.policy import METADATA, REFUSED, WEB_PORTS, Entry, Mode, Policy, Reach
from roost.network.addresses import (
    AGENT_PORT,
    GATEWAY_ADDRESS,
    MACHINE_ADDRESS,
    MACHINE_MAC,
    Plan,
    Slot,
)
from roost.network.ranges import shown, without

TABLE = "roost"
COUNTERS, EGRESS = "roost_count", "egress"
_CONNECTIONS = 8192  # a machine's share of connection tracking
TRIED = 512  # different destinations that are told apart, refused and allowed each
TRIED_FOR_S = 86400
_ANY = "{ tcp, udp, icmp }"

# A refusal answers at once: programs that probe a cloud's metadata would wait for seconds otherwise.
_REFUSE = """\
    meta l4proto tcp reject with tcp reset
    reject with icmp type admin-prohibited"""


def gateway(slot: Slot, refused: Iterable[IPv4Network]) -> str:
    """Frame of the slot's gateway namespace, loaded before it has any link; ``policy`` follows in the same
    transaction. ``refused``: what no policy opens."""
    text = _frame(slot, shown(refused))
    return f"table inet {TABLE}\ndelete table inet {TABLE}\ntable arp {TABLE}\ndelete table arp {TABLE}\n{text}"


def renewed(slot: Slot, refused: Iterable[IPv4Network]) -> str:
    """The same frame where it stands already: what was counted stays. Refused by nftables where another form of it
    stands, for then ``gateway`` is needed."""
    text = _frame(slot, shown(refused))
    mark = f"chain inet {TABLE} {_form(slot)}"
    return f"delete {mark}\nflush table inet {TABLE}\nflush table arp {TABLE}\n{text}"


def _form(slot: Slot) -> str:
    """Name of an empty chain that says which form the frame has; what it refuses may differ."""
    return "form_" + hashlib.sha256(_body(slot, "").encode()).hexdigest()[:12]


def _frame(slot: Slot, refused: str) -> str:
    return f"""\
table arp {TABLE} {{
  chain genuine {{
    type filter hook input priority filter; policy drop;
    iifname "in" arp operation request arp saddr ether {MACHINE_MAC} arp saddr ip {MACHINE_ADDRESS} \
arp daddr ip {GATEWAY_ADDRESS} accept
    iifname "out" accept
  }}
}}
table inet {TABLE} {{
  chain {_form(slot)} {{ }}
{_body(slot, refused)}}}
"""


def _body(slot: Slot, refused: str) -> str:
    tried = f"flags dynamic,timeout; size {TRIED}; timeout {TRIED_FOR_S}s;"
    sets = "".join(
        f"  set {name} {{ type ipv4_addr . inet_proto . inet_service; {tried} counter; }}\n"
        f"  set {name}_other {{ type ipv4_addr . inet_proto; {tried} counter; }}\n"
        f"  set {name}_since {{ type ipv4_addr . inet_proto . inet_service; {tried} }}\n"
        f"  set {name}_other_since {{ type ipv4_addr . inet_proto; {tried} }}\n"
        for name in ("refused", "allowed")
    )
    return f"""\
{sets}\
  counter refused {{ }}
  chain named {{ }}
  chain outbound {{ }}
  chain local {{ }}
  chain genuine {{
    type filter hook prerouting priority raw; policy drop;
    iifname "in" ether saddr {MACHINE_MAC} ip saddr {MACHINE_ADDRESS} accept
    iifname {{ "out", "lo" }} meta nfproto ipv4 accept
  }}
  chain share {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "in" ct state new ct count over {_CONNECTIONS} drop
  }}
  chain led {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "out" ip saddr {slot.host_side} tcp dport {AGENT_PORT} \
dnat ip to {MACHINE_ADDRESS}:{AGENT_PORT}
    iifname "in" ip daddr {{ {refused} }} accept
    iifname "in" meta l4proto tcp jump named
  }}
  chain hidden {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "in" snat ip to {GATEWAY_ADDRESS}
    oifname "out" snat ip to {slot.gateway_side}
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state invalid drop
    iifname "in" ct direction reply ct original ip saddr {GATEWAY_ADDRESS} accept
    iifname "in" ip daddr {GATEWAY_ADDRESS} icmp type echo-request accept
    iifname "in" ct original ip saddr {MACHINE_ADDRESS} goto local
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "in" ct direction original ct original ip saddr {GATEWAY_ADDRESS} ip daddr {MACHINE_ADDRESS} \
tcp dport != {AGENT_PORT} accept
    meta l4proto tcp tcp flags & rst == rst accept
    oifname "in" icmp type {{ echo-reply, destination-unreachable, time-exceeded }} accept
    oifname "in" ct direction reply ct original ip saddr {MACHINE_ADDRESS} goto local
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    tcp flags syn tcp option maxseg size set rt mtu
    ct state invalid drop
    ct original ip saddr {slot.host_side} ct status dnat accept
    ct original ip saddr != {MACHINE_ADDRESS} drop
    ct original ip daddr {{ {refused} }} goto refuse
    iifname "in" oifname "out" ct direction original goto outbound
    iifname "out" oifname "in" ct direction reply goto outbound
  }}
  chain refuse {{
    ct direction original counter name "refused" jump refused
    ct direction reply meta l4proto tcp ct mark != 1 ct mark set 1 tcp flags set rst accept
    ct direction reply drop
    meta l4proto tcp reject with tcp reset
    reject with icmp type admin-prohibited
  }}
{_noted("refused")}\
{_noted("allowed")}\
"""


def _noted(name: str) -> str:
    """A chain that keeps count of where a packet would go. A set that is full takes no more, and stops nothing."""
    lines = []
    for match, suffix, key in (
        ("{ tcp, udp }", "", "ip daddr . meta l4proto . th dport"),
        ("!= { tcp, udp }", "_other", "ip daddr . meta l4proto"),
    ):
        lines.append(f"    meta l4proto {match} update @{name}{suffix} {{ {key} }}\n")
        lines.append(f"    meta l4proto {match} add @{name}{suffix}_since {{ {key} }}\n")
    return f"  chain {name} {{\n{''.join(lines)}  }}\n"


def policy(rule: Policy, led: Iterable[int] = ()) -> str:
    """What a policy puts into the frame's empty chains, in one transaction. ``led``: TCP ports whose connections go by
    the proxy also under ``open``."""
    chains: dict[str, list[str]] = {"named": [], "outbound": [], "local": []}
    if rule.mode is Mode.OPEN:
        _open(chains, rule.observe, led)
    elif rule.mode is Mode.ALLOWLIST:
        _allowlist(chains, rule)
    else:
        chains["local"].append(
            _DNS
        )  # where every name is told to be none, and noted: a lookup ends at once
    chains["outbound"].append("goto refuse")
    chains["local"].append("goto refuse")
    return "".join(
        f"flush chain inet {TABLE} {name}\n"
        + "".join(f"add rule inet {TABLE} {name} {line}\n" for line in lines)
        for name, lines in chains.items()
    )


def _open(chains: dict[str, list[str]], observe: bool, led: Iterable[int]) -> None:
    by_name, ports = sorted(set(led)), sorted({*led, *(WEB_PORTS if observe else ())})
    if ports:
        chains["named"].append(f"tcp dport {_ports(ports)} redirect to :{PROXY_PORT}")
    if by_name:  # over QUIC, a client would go around
        chains["outbound"].append(
            f"meta l4proto udp ct original proto-dst {_ports(by_name)} goto refuse"
        )
    if observe:
        chains["outbound"].append("ct state new jump allowed")
    chains["outbound"].append("accept")
    chains["local"] += [_DNS, "meta l4proto tcp ct status dnat accept"]


def _allowlist(chains: dict[str, list[str]], rule: Policy) -> None:
    for protocols, ports, networks in _groups(rule.allow):
        there = _one_of(shown(networks))
        to = f"ct original ip daddr {there}"
        many = [f"meta l4proto {_ANY} {to}"]
        if ports:
            asked = f"meta l4proto {_one_of(', '.join(protocols))} {to} ct original proto-dst {_ports(ports)}"
            many = [asked, f"ct state related meta l4proto icmp {to}"]
        if rule.observe:
            chains["outbound"] += [f"{each} ct state new jump allowed" for each in many]
        chains["outbound"] += [f"{each} accept" for each in many]
        if "tcp" in protocols:
            dport = f" tcp dport {_ports(ports)}" if ports else ""
            chains["named"].append(f"ip daddr {there}{dport} accept")
    by_name = _ports(rule.name_ports)
    chains["named"].append(f"tcp dport {by_name} redirect to :{PROXY_PORT}")
    chains["local"] += [
        _DNS,
        f"meta l4proto tcp ct status dnat ct original proto-dst {by_name} accept",
    ]


_DNS = (
    f"ct original ip daddr {GATEWAY_ADDRESS} meta l4proto {{ tcp, udp }} "
    f"ct original proto-dst {DNS_PORT} accept"
)


def _groups(
    entries: Sequence[Entry],
) -> list[tuple[tuple[str, ...], tuple[int, ...], list[IPv4Network]]]:
    """Entries for addresses, those with the same protocols and ports together."""
    groups: dict[tuple[tuple[str, ...], tuple[int, ...]], list[IPv4Network]] = {}
    for each in entries:
        if each.network is not None:
            protocols = (each.protocol,) if each.protocol else ("tcp", "udp")
            groups.setdefault((protocols, each.ports), []).append(each.network)
    return [(*key, list(collapse_addresses(found))) for key, found in groups.items()]


def _one_of(elements: str) -> str:
    """A set where it needs one: each is an object of the kernel's."""
    return f"{{ {elements} }}" if "," in elements else elements


def _ports(ports: Iterable[int]) -> str:
    """``{ 80, 443, 8000-8010 }``."""
    runs: list[list[int]] = []
    for port in sorted(ports):
        if runs and runs[-1][1] == port - 1:
            runs[-1][1] = port
        else:
            runs.append([port, port])
    return _one_of(", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs))


def counted() -> str:
    """For the slot's gateway namespace; the rest is renewed without it. Where it stands already, what it counted stays.
    Only what the machine began counts, and only once it may leave: straight out, or to the proxy."""
    return f"""\
table inet {COUNTERS} {{
  counter {EGRESS} {{ }}
  chain leaving {{
    type filter hook forward priority filter + 10; policy accept;
  }}
  chain proving {{
    type filter hook input priority filter + 10; policy accept;
  }}
}}
flush chain inet {COUNTERS} leaving
flush chain inet {COUNTERS} proving
add rule inet {COUNTERS} leaving iifname "in" oifname "out" ct direction original counter name "{EGRESS}"
add rule inet {COUNTERS} proving iifname "in" ct direction original ct status dnat counter name "{EGRESS}"
"""


def host(plan: Plan, reach: Reach) -> str:
    """For the host's own namespace."""
    slots = f'"{plan.prefix}h*"'
    own = [each for each in reach.here if each.prefixlen == 32 and each in reach.private]
    here = shown(without(reach.here, reach.private))
    refused = shown(without(map(IPv4Network, REFUSED), reach.private))
    return f"""\
table inet {plan.table}
delete table inet {plan.table}
table inet {plan.table} {{
  chain input {{
    type filter hook input priority filter - 10; policy accept;
    iifname {slots} jump to_host
  }}
  chain to_host {{
    ct state established,related accept
    {f"ip daddr {{ {shown(own)} }} accept" if own else ""}
{_REFUSE}
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
    ip daddr {{ {refused} }} jump refuse
    {f"ip daddr {{ {here} }} jump refuse" if here else ""}
  }}
  chain refuse {{
{_REFUSE}
  }}
  chain output {{
    type filter hook output priority filter - 10; policy accept;
    oifname {slots} jump to_agent
    meta skuid {{ {EGRESS_UID}, {BOUNDARY_UID} }} ip daddr {{ {shown(METADATA)} }} meta l4proto {{ tcp, udp }} th dport != {DNS_PORT} \
jump refuse
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
