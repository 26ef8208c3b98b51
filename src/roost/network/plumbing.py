"""Makes and unmakes one slot, and the host's side. Synchronous; each call in a thread of its own turn."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from roost.host import netns, run
from roost.network import counters, rules
from roost.network.addresses import (
    GATEWAY_ADDRESS,
    GATEWAY_MAC,
    INNER_PREFIX,
    MACHINE_ADDRESS,
    MACHINE_MAC,
    Plan,
    Slot,
)

_NFT_TIMEOUT_S = 20
_NO_SUCH_DEVICE = 19
_PERMANENT = 0x80  # NUD_PERMANENT
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True, slots=True)
class HostView:
    """What slots need to know of the host's own network."""

    mtu: int
    addresses: frozenset[str]
    networks: frozenset[str]


def look_at_host(plan: Plan) -> HostView:
    """Without what is ours."""
    with IPRoute() as ip:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        mtus = {link["index"]: link.get_attr("IFLA_MTU") for link in ip.get_links()}
        addresses, networks = set(), set()
        for entry in ip.get_addr(family=2):
            if plan.index_of(names.get(entry["index"], "")) is not None:
                continue
            address = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
            addresses.add(address)
            networks.add(_network(entry.get_attr("IFA_ADDRESS") or address, entry["prefixlen"]))
        uplinks = [
            r.get_attr("RTA_OIF") for r in ip.get_default_routes(family=2) if r.get_attr("RTA_OIF")
        ]
    mtu = min((mtus[i] for i in uplinks if i in mtus), default=1500)
    return HostView(mtu, frozenset(addresses), frozenset(networks))


def _network(address: str, prefix: int) -> str:
    return str(ipaddress.IPv4Network(f"{address}/{prefix}", strict=False))


def load_rules(text: str) -> None:
    """Into the calling thread's namespace, all or nothing."""
    run.run(["nft", "-f", "-"], timeout_s=_NFT_TIMEOUT_S, text_in=text)


def drop_host_table(plan: Plan) -> None:
    load_rules(f"table inet {plan.table}\ndelete table inet {plan.table}\n")


def forward_on_host() -> str:
    """Turns forwarding on; what it was."""
    was = _FORWARDING.read_text().strip()
    if was != "1":
        _FORWARDING.write_text("1")
    return was


def stop_forwarding() -> None:
    _FORWARDING.write_text("0")


class AddressTakenError(OSError):
    """Somebody else on this host has the slot's address: another daemon with the same range."""


def build(slot: Slot, resolver: str, mtu: int) -> None:
    """The rules stand before the first link is there. On failure nothing stays."""
    try:
        gateway = netns.create(slot.gateway_netns)
        try:
            machine = netns.create(slot.machine_netns)
            try:
                _build(slot, resolver, mtu, gateway, machine)
            finally:
                os.close(machine)
        finally:
            os.close(gateway)
    except BaseException:
        demolish(slot)
        raise


def _build(slot: Slot, resolver: str, mtu: int, gateway: int, machine: int) -> None:
    with netns.entered(gateway):
        _sysctl("ipv4/ip_forward", "1")
        _no_ipv6()
        load_rules(rules.gateway(slot, resolver) + rules.counted())
    with IPRoute() as ip:
        if any(entry.get_attr("IFA_LOCAL") == slot.host_side for entry in ip.get_addr(family=2)):
            raise AddressTakenError(f"{slot.host_side} is in use on this host")
        ip.link(
            "add",
            ifname=slot.host_interface,
            kind="veth",
            mtu=mtu,
            peer={"ifname": "out", "net_ns_fd": gateway, "mtu": mtu},
        )
        with contextlib.suppress(OSError):  # a host without IPv6
            _sysctl(f"ipv6/conf/{slot.host_interface}/disable_ipv6", "1")
        _address(ip, slot.host_interface, slot.host_side, 30)
    with netns.entered(gateway), IPRoute() as ip:
        ip.link(
            "add",
            ifname="in",
            kind="veth",
            address=GATEWAY_MAC,
            mtu=mtu,
            peer={"ifname": "eth0", "net_ns_fd": machine, "address": MACHINE_MAC, "mtu": mtu},
        )
        _address(ip, "out", slot.gateway_side, 30)
        inner = _address(ip, "in", GATEWAY_ADDRESS, INNER_PREFIX)
        ip.neigh(
            "replace",
            dst=MACHINE_ADDRESS,
            lladdr=MACHINE_MAC,
            ifindex=inner,
            state=_PERMANENT,
        )
        ip.link("set", index=1, state="up")
        ip.route("add", dst="0.0.0.0/0", gateway=slot.host_side)
    with netns.entered(machine), IPRoute() as ip:
        _no_ipv6()
        _sysctl("ipv4/ping_group_range", "0 2147483647")
        _sysctl("ipv4/ip_unprivileged_port_start", "0")
        ip.link("set", index=1, state="up")
        _address(ip, "eth0", MACHINE_ADDRESS, INNER_PREFIX)
        ip.route("add", dst="0.0.0.0/0", gateway=GATEWAY_ADDRESS)


def _address(ip: Any, name: str, address: str, prefix: int) -> int:
    index: int = ip.link_lookup(ifname=name)[0]
    ip.addr("add", index=index, address=address, prefixlen=prefix)
    ip.link("set", index=index, state="up")
    return index


def _sysctl(name: str, value: str) -> None:
    """Of the calling thread's namespace."""
    (Path("/proc/sys/net") / name).write_text(value)


def _no_ipv6() -> None:
    with contextlib.suppress(FileNotFoundError):
        _sysctl("ipv6/conf/all/disable_ipv6", "1")
        _sysctl("ipv6/conf/default/disable_ipv6", "1")


def stands(slot: Slot) -> bool:
    """Whether the host still has all of it."""
    try:
        for name in (slot.gateway_netns, slot.machine_netns):
            os.close(netns.open_fd(name))
    except FileNotFoundError:
        return False
    return Path("/sys/class/net", slot.host_interface).exists()


def renew_rules(slot: Slot, resolver: str) -> None:
    fd = netns.open_fd(slot.gateway_netns)
    try:
        with netns.entered(fd):
            load_rules(rules.gateway(slot, resolver))
    finally:
        os.close(fd)


def egress(slot: Slot) -> int:
    """Bytes that left for elsewhere since it was built. Raises OSError where nothing counts."""
    fd = netns.open_fd(slot.gateway_netns)
    try:
        with netns.entered(fd):
            return counters.read(rules.COUNTERS, rules.EGRESS)
    finally:
        os.close(fd)


def demolish(slot: Slot) -> None:
    """Idempotent. On return no name of the slot is left."""
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=slot.host_interface):
            try:
                ip.link("del", index=index)
            except NetlinkError as exc:
                if exc.code != _NO_SUCH_DEVICE:
                    raise
    netns.delete(slot.machine_netns)
    netns.delete(slot.gateway_netns)


def present(plan: Plan) -> set[int]:
    """Indices of every slot of ours that has anything on this host."""
    names: Iterable[str] = [
        *netns.names(plan.prefix),
        *(p.name for p in Path("/sys/class/net").glob(f"{plan.prefix}h*")),
    ]
    return {i for i in map(plan.index_of, names) if i is not None}
