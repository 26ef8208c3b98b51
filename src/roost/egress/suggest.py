"""The allowlist that would have done: made of what a machine tried. Pure.

Names where a name was said, else addresses; ports only where they are not the web's. Of what was refused only that
which an entry could let through: never what is refused in every mode. A wildcard is offered beside the names it would
stand for and never in their place, and not for domains under which anybody can have a name.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from roost.egress.interface import Decision
from roost.egress.policy import MAX_ENTRIES, WEB_PORTS, Entry, Mode, Policy, Reach, clean_name

MANY = 3  # names below one parent, and a wildcard is offered
# Below these everybody can have a name of their own.
SHARED = frozenset(
    {
        "amazonaws.com", "appspot.com", "azureedge.net", "azurewebsites.net", "cloudapp.net", "cloudfront.net",
        "fastly.net", "firebaseapp.com", "fly.dev", "github.io", "gitlab.io", "githubusercontent.com", "herokuapp.com",
        "netlify.app", "ngrok.io", "pages.dev", "r2.dev", "render.com", "trafficmanager.net", "vercel.app", "web.app",
        "windows.net", "workers.dev",
    }
)  # fmt: skip
_SECOND_LEVEL = frozenset({"ac", "co", "com", "edu", "go", "gov", "gob", "ne", "net", "or", "org"})
_WITH_PORTS = ("tcp", "udp")


@dataclass(frozen=True, slots=True)
class Wildcard:
    entry: str
    instead_of: tuple[str, ...]  # entries of ``allow``


@dataclass(frozen=True, slots=True)
class Suggestion:
    """``left_out``: entries beyond what a list may have, those tried least."""

    allow: tuple[str, ...] = ()
    wildcards: tuple[Wildcard, ...] = ()
    left_out: int = 0


def suggest(policy: Policy, decisions: Iterable[Decision], reach: Reach) -> Suggestion:
    """Of what was refused; of a machine that is observed and open, of all that it tried. ICMP is in no entry but a
    whole address's, which is more than was tried: it is left out."""
    everything = policy.observe and policy.mode is Mode.OPEN
    names: dict[str, set[int]] = defaultdict(set)
    addresses: dict[tuple[str, str], set[int]] = defaultdict(set)
    tried: dict[str, int] = defaultdict(int)
    for each in decisions:
        if each.allowed and not everything:
            continue
        host = _host(each, policy, reach, everything)
        if host is None:
            continue
        tried[host] += each.count
        if _is_address(host):
            addresses[host, each.protocol].add(each.port)
        else:  # a name that was only asked for has no port
            names[host] |= set() if each.via == "dns" else {each.port}
    entries = [(tried[name], _named(name, ports)) for name, ports in names.items()]
    entries += [
        (tried[host], _addressed(host, protocol, ports))
        for (host, protocol), ports in addresses.items()
    ]
    room = MAX_ENTRIES if policy.mode is not Mode.ALLOWLIST else MAX_ENTRIES - len(policy.allow)
    entries.sort(key=lambda each: (-each[0], str(each[1])))
    chosen = sorted((entry for _, entry in entries[:room]), key=_order)
    return Suggestion(
        tuple(map(str, chosen)), tuple(_wildcards(chosen)), max(0, len(entries) - room)
    )


def _host(each: Decision, policy: Policy, reach: Reach, everything: bool) -> str | None:
    """What an entry would be about; None where none could have helped."""
    if _is_address(each.host):
        useful = (
            each.protocol in _WITH_PORTS and 1 <= each.port <= 65535 and reach.permits(each.host)
        )
        known = policy.allows_address(each.host, each.port, each.protocol)
        return each.host if useful and (everything or not known) else None
    if clean_name(each.host) != each.host or each.host.endswith(".arpa"):
        return None
    if "." not in each.host or each.host.startswith(
        "_"
    ):  # nothing of the world outside; a service asked for
        return None
    known = policy.allows_name(each.host, None if each.via == "dns" else each.port)
    return each.host if everything or not known else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _named(name: str, ports: set[int]) -> Entry:
    return Entry(name=name, ports=() if ports <= set(WEB_PORTS) else tuple(sorted(ports)))


def _addressed(host: str, protocol: str, ports: set[int]) -> Entry:
    network = ipaddress.IPv4Network(host)
    return Entry(network=network, ports=tuple(sorted(ports)), protocol=protocol)


def _order(entry: Entry) -> tuple[bool, list[str], str]:
    """Names before addresses, those of one domain together."""
    return entry.name is None, (entry.name or "").split(".")[::-1], str(entry)


def _wildcards(entries: Sequence[Entry]) -> Iterable[Wildcard]:
    groups: dict[tuple[str, tuple[int, ...]], list[Entry]] = defaultdict(list)
    for entry in entries:
        parent = entry.name and registrable(entry.name)
        if parent and parent != entry.name and parent not in SHARED:
            groups[parent, entry.ports].append(entry)
    for (parent, ports), members in groups.items():
        if len(members) < MANY:
            continue
        common = _common([str(each.name) for each in members], parent)
        made = Entry(name=f"*.{common}", ports=ports)
        covered = tuple(str(e) for e in members if e.name != common)
        if len(covered) >= MANY:
            yield Wildcard(str(made), covered)


def registrable(name: str) -> str | None:
    """The part of a name that somebody registered, by its looks: two labels, three where it ends as in ``co.uk``. None
    for what is no longer than such an end."""
    labels = name.split(".")
    of_a_country = len(labels[-1]) == 2 and labels[-2:-1] and labels[-2] in _SECOND_LEVEL
    count = 3 if of_a_country else 2
    return ".".join(labels[-count:]) if len(labels) >= count else None


def _common(names: Sequence[str], parent: str) -> str:
    """The longest domain that all of them are, or are below of."""
    shared: list[str] = []
    for labels in zip(*(name.split(".")[::-1] for name in names), strict=False):
        if len(set(labels)) > 1:
            break
        shared.insert(0, labels[0])
    found = ".".join(shared)
    return found if len(found) >= len(parent) else parent
