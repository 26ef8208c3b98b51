"""What a slot's rules counted, as decisions. Pure.

A set holds a destination for ``TRIED_FOR_S`` after it was last tried, so how long it still does says when that was; its
twin ``..._since`` is not renewed, so says when it began. Sets are bounded: a machine that tries more destinations than
fit is told of by the sum alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from roost.egress.interface import Decision
from roost.network.rules import TRIED_FOR_S

_NAMES = {"1": "icmp", "6": "tcp", "17": "udp"}
REFUSED = "address"  # the reason: no rule lets it go to that address


def read(listed: Iterable[Mapping[str, Any]], now: float) -> list[Decision]:
    """``listed``: a slot's table as nftables gives it in JSON; ``now``: seconds since the epoch. Newest last."""
    sets, refused = {}, 0
    for each in listed:
        if "set" in each:
            sets[each["set"]["name"]] = _elements(each["set"].get("elem", ()))
        elif "counter" in each and each["counter"]["name"] == "refused":
            refused = int(each["counter"]["packets"])
    found = []
    for name, allowed in (("refused", False), ("allowed", True)):
        for kind in (name, f"{name}_other"):
            since = sets.get(f"{kind}_since", {})
            for key, (count, left) in sets.get(kind, {}).items():
                last = now - (TRIED_FOR_S - left)
                began = now - (TRIED_FOR_S - since[key][1]) if key in since else last
                found.append(_decision(key, allowed, count, min(began, last), last))
    rest = refused - sum(each.count for each in found if not each.allowed)
    if rest > 0:  # beyond what the sets hold, or a day ago
        found.append(Decision("", 0, "", "packet", False, "unlisted", rest, now, now))
    return sorted(found, key=lambda each: each.last_at)


def _decision(
    key: tuple[str, ...], allowed: bool, count: int, first: float, last: float
) -> Decision:
    port = int(key[2]) if len(key) > 2 else 0
    protocol = _NAMES.get(key[1], key[1])
    reason = "" if allowed else REFUSED
    return Decision(key[0], port, protocol, "packet", allowed, reason, count, first, last)


def _elements(listed: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], tuple[int, float]]:
    """Destination -> how often, and seconds that it is held still."""
    found = {}
    for each in listed:
        element = each["elem"]
        key = tuple(map(str, element["val"]["concat"]))
        count = int(element.get("counter", {}).get("packets", 0))
        found[key] = (count, float(element.get("expires", 0)))
    return found
