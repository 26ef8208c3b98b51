"""Arithmetic of networks: which addresses stay refused once the operator opened some. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses

from roost.egress.policy import METADATA, REFUSED, Reach
from roost.network.addresses import GATEWAY_ADDRESS, INNER_PREFIX, Plan

_INNER = IPv4Network(f"{GATEWAY_ADDRESS}/{INNER_PREFIX}", strict=False)


def without(networks: Iterable[IPv4Network], holes: Iterable[IPv4Network]) -> list[IPv4Network]:
    """Every address of ``networks`` that is in none of ``holes``, in order and as few networks as may be."""
    left = list(collapse_addresses(networks))
    for hole in holes:
        rest: list[IPv4Network] = []
        for each in left:
            if not each.overlaps(hole):
                rest.append(each)
            elif not each.subnet_of(hole):
                rest.extend(each.address_exclude(hole))
        left = rest
    return list(collapse_addresses(left))


def opened(private: Iterable[IPv4Network], plan: Plan) -> list[IPv4Network]:
    """What of the operator's ranges machines may reach: never metadata, a neighbour or their own gateway."""
    return without(private, (*METADATA, plan.network, _INNER))


def refused(private: Iterable[IPv4Network], plan: Plan) -> list[IPv4Network]:
    """What a slot's rules refuse whatever the policy says."""
    return without((*map(IPv4Network, REFUSED), plan.network), opened(private, plan))


def reach(private: Iterable[IPv4Network], plan: Plan, here: Iterable[str]) -> Reach:
    """What may be dialled for machines. ``here``: addresses and networks of the host's, with a prefix or without. An
    address of the host itself is opened by an entry for just that address, and not by the range it is in."""
    private = tuple(private)
    nets = [IPv4Network(each) for each in here]
    own = [each for each in nets if each.prefixlen == 32 and each not in private]
    return Reach(private=tuple(without(opened(private, plan), own)), here=(*nets, plan.network))


def shown(networks: Iterable[IPv4Network]) -> str:
    """As elements of a set."""
    return ", ".join(
        str(each.network_address) if each.prefixlen == 32 else str(each) for each in networks
    )
