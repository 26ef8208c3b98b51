"""Which names and addresses a slot has: all of it follows from the instance and the index."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from roost.drivers.interface import NetworkSlot
from roost.errors import InvalidRequestError
from roost.host import idmaps, netns

AGENT_PORT = 7111
MACHINE_ADDRESS = "10.0.0.2"
GATEWAY_ADDRESS = "10.0.0.1"
INNER_PREFIX = 30
MACHINE_MAC = "02:72:73:74:00:02"
GATEWAY_MAC = "02:72:73:74:00:01"
MAX_SLOTS = 16384


def instance_tag(run_dir: Path) -> str:
    """Four hex digits that tell this daemon's things from another's on the same host."""
    return hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:4]


@dataclass(frozen=True, slots=True)
class Slot:
    index: int
    gateway_netns: str
    machine_netns: str
    host_interface: str
    host_side: str  # the host's end of the slot's /30
    gateway_side: str  # the gateway's end: where the host reaches the agent
    users: idmaps.Block  # whom the machine's namespace belongs to

    def public(self) -> NetworkSlot:
        return NetworkSlot(
            index=self.index,
            netns=netns.DIRECTORY / self.machine_netns,
            interface="eth0",
            mac=MACHINE_MAC,
            address=f"{MACHINE_ADDRESS}/{INNER_PREFIX}",
            gateway=GATEWAY_ADDRESS,
            host_address=self.gateway_side,
            users=self.users,
        )


class Plan:
    def __init__(self, cidr: str, run_dir: Path, uid_base: int = idmaps.DEFAULT_BASE) -> None:
        try:
            self.network = ipaddress.IPv4Network(cidr)
        except ValueError as exc:
            raise _bad_cidr(cidr) from exc
        if self.network.prefixlen > 30 or self.network.overlaps(
            ipaddress.IPv4Network(f"{GATEWAY_ADDRESS}/{INNER_PREFIX}", strict=False)
        ):
            raise _bad_cidr(cidr)
        self.tag = instance_tag(run_dir)
        self.prefix = f"rst{self.tag}-"
        self.table = f"roost_{self.tag}"
        self._uid_base = uid_base
        self.capacity = min(MAX_SLOTS, self.network.num_addresses // 4, idmaps.capacity(uid_base))
        self._name = re.compile(rf"{self.prefix}[gmh](\d{{1,5}})")

    def slot(self, index: int) -> Slot:
        if not 0 <= index < self.capacity:
            raise ValueError(f"slot {index} is not in {self.network}")
        base = self.network.network_address + 4 * index
        return Slot(
            index=index,
            gateway_netns=f"{self.prefix}g{index}",
            machine_netns=f"{self.prefix}m{index}",
            host_interface=f"{self.prefix}h{index}",
            host_side=str(base + 1),
            gateway_side=str(base + 2),
            users=idmaps.block(index, self._uid_base),
        )

    def index_of(self, name: str) -> int | None:
        """Of a namespace's or interface's name; None for what is not ours."""
        match = self._name.fullmatch(name)
        return int(match[1]) if match else None


def _bad_cidr(cidr: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"ROOST_NETWORK_CIDR is {cidr!r}; give an IPv4 network of /30 or larger, its host bits zero, "
        f"apart from {GATEWAY_ADDRESS}/{INNER_PREFIX}, such as 10.201.0.0/16.",
        code="CONFIG_INVALID",
    )
