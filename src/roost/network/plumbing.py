"""Makes and unmakes one slot, and the host's side. Synchronous; each call in a thread of its own turn."""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from roost.egress.interface import DNS_PORT, PROXY_PORT, Listeners
from roost.egress.policy import Policy, Reach
from roost.host import idmaps, netns
from roost.network import counters, nft, ranges, rules
from roost.network.addresses import (
    GATEWAY_ADDRESS,
    GATEWAY_MAC,
    INNER_PREFIX,
    MACHINE_ADDRESS,
    MACHINE_MAC,
    Plan,
    Slot,
)
from roost.network.netlink import Netlink

_BACKLOG = 256
_LOOPBACK = 1  # its index
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


def forward_on_host() -> str:
    """Turns forwarding on; what it was."""
    was = _FORWARDING.read_text().strip()
    if was != "1":
        _FORWARDING.write_text("1")
    return was


def stop_forwarding() -> None:
    _FORWARDING.write_text("0")


class Tables:
    """Rules of the host and of every slot, as they are loaded. For every thread.

    ``private``: ranges that the operator opens."""

    def __init__(self, plan: Plan, private: Iterable[ipaddress.IPv4Network]) -> None:
        self._plan = plan
        self._refused = ranges.refused(private, plan)
        self._sessions = nft.Sessions()

    def host(self, reach: Reach) -> None:
        self._on_host(rules.host(self._plan, reach))

    def drop_host(self) -> None:
        table = f"table inet {self._plan.table}"
        self._on_host(f"{table}\ndelete {table}\n")

    def _on_host(self, text: str) -> None:
        self._sessions.load("", contextlib.nullcontext, text)

    def frame(self, slot: Slot) -> None:
        """Of a new slot, with the policy ``open``."""
        self.forget(slot)  # somebody may have looked at the one before as it went
        text = rules.gateway(slot, self._refused) + rules.policy(Policy()) + rules.counted()
        self._in(slot, text)

    def renew(self, slot: Slot, policy: str) -> None:
        """Frame and policy of a slot that an earlier daemon made; what was counted stays where the frame has the same
        form still."""
        try:
            self._in(slot, rules.renewed(slot, self._refused) + policy)
        except nft.NftError:
            text = rules.gateway(slot, self._refused) + policy + rules.counted()
            self._in(slot, text)

    def apply(self, slot: Slot, policy: str) -> None:
        """``policy``: as ``rules.policy`` gives it."""
        self._in(slot, policy)

    def _in(self, slot: Slot, text: str) -> None:
        self._sessions.load(slot.gateway_netns, functools.partial(_within, slot), text)

    def listed(self, slot: Slot) -> list[dict[str, Any]]:
        """Sets and counters of a slot, as ``tried.read`` wants them."""
        within = functools.partial(_within, slot)
        return self._sessions.listed(slot.gateway_netns, within, f"table inet {rules.TABLE}")

    def forget(self, slot: Slot) -> None:
        """Before its namespace goes, and after: somebody may have looked meanwhile."""
        self._sessions.forget(slot.gateway_netns)

    def close(self) -> None:
        self._sessions.close()


class TakenError(OSError):
    """Somebody else on this host has the slot's address, or numbers of its users: another daemon with the same range."""


def build(slot: Slot, tables: Tables, mtu: int) -> None:
    """Under the policy ``open``; the rules stand before the first link is there. On failure nothing stays."""
    try:
        gateway = netns.create(slot.gateway_netns)
        try:
            # Where there are no user namespaces drivers that need them say so; others do without.
            users = slot.users if idmaps.why_not() is None else None
            machine = netns.create(slot.machine_netns, users)
            try:
                if users is not None and (other := sharer(slot)):  # of two at once both see it
                    raise TakenError(f"users {users.first} on are those of {other}")
                _build(slot, tables, mtu, gateway, machine)
            finally:
                os.close(machine)
        finally:
            os.close(gateway)
    except BaseException:
        demolish(slot, tables)
        raise


def _build(slot: Slot, tables: Tables, mtu: int, gateway: int, machine: int) -> None:
    with netns.entered(gateway):
        _sysctl("ipv4/ip_forward", "1")
        _no_ipv6()
    tables.frame(slot)
    if _is_here(slot.host_side):
        raise TakenError(f"{slot.host_side} is in use on this host")
    with Netlink() as here:
        here.veth(slot.host_interface, "out", gateway, mtu)
        with contextlib.suppress(OSError):  # a host without IPv6
            _sysctl(f"ipv6/conf/{slot.host_interface}/disable_ipv6", "1")
        with netns.entered(gateway), Netlink() as there:
            there.veth("in", "eth0", machine, mtu, GATEWAY_MAC, MACHINE_MAC)
            with netns.entered(machine), Netlink() as inside:
                _no_ipv6()
                _sysctl("ipv4/ping_group_range", "0 2147483647")
                _sysctl("ipv4/ip_unprivileged_port_start", "0")
                _connect(inside, inside.index("eth0"), there, there.index("in"))
                _machine(inside)
            _connect(here, here.index(slot.host_interface), there, there.index("out"))
            _gateway(there, slot)
        here.address(here.index(slot.host_interface), slot.host_side, 30)


def sharer(slot: Slot) -> str | None:
    """A namespace of another daemon's whose users have some of the slot's numbers."""
    ours, _, _ = slot.machine_netns.partition("-")
    for name in netns.names("rst"):
        if name.partition("-")[0] == ours or "-m" not in name:
            continue
        with contextlib.suppress(OSError):  # it went meanwhile
            first = netns.made_by(name)
            if first is not None and slot.users.overlaps(idmaps.Block(first)):
                return name
    return None


def _gateway(there: Netlink, slot: Slot) -> None:
    there.up(_LOOPBACK)
    there.address(there.index("out"), slot.gateway_side, 30)
    there.address(there.index("in"), GATEWAY_ADDRESS, INNER_PREFIX)
    there.neighbour(there.index("in"), MACHINE_ADDRESS, MACHINE_MAC)
    there.default_route(slot.host_side)


def _machine(inside: Netlink) -> None:
    inside.up(_LOOPBACK)
    inside.address(inside.index("eth0"), MACHINE_ADDRESS, INNER_PREFIX)
    inside.default_route(GATEWAY_ADDRESS)


def _is_here(address: str) -> bool:
    """Whether it is one of this namespace's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((address, 0))
        except OSError as exc:
            if exc.errno != errno.EADDRNOTAVAIL:
                raise
            return False
    return True


def _connect(near: Netlink, one: int, far: Netlink, other: int) -> None:
    """Both ends of a pair up, and ready to send. The end that comes up without a peer sends only once the kernel looked
    at it again, in its own time; what is sent before is lost, and a lost ARP request costs a second."""
    near.up(one)
    far.up(other)
    near.down(one)
    near.up(one)


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


def egress(slot: Slot) -> int:
    """Bytes that left for elsewhere since it was built. Raises OSError where nothing counts."""
    with _within(slot):
        return counters.read(rules.COUNTERS, rules.EGRESS)


def listen(slot: Slot) -> Listeners:
    """Sockets of the gateway namespace, for the process that answers there. Raises OSError: EADDRINUSE while another
    still listens."""
    opened: list[socket.socket] = []
    try:
        with _within(slot):
            for kind, port in (
                (socket.SOCK_DGRAM, DNS_PORT),
                (socket.SOCK_STREAM, DNS_PORT),
                (socket.SOCK_STREAM, PROXY_PORT),
            ):
                sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
                opened.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((GATEWAY_ADDRESS, port))
                if kind == socket.SOCK_STREAM:
                    sock.listen(_BACKLOG)
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return Listeners(*opened)


def connection(slot: Slot) -> socket.socket:
    """A TCP socket of the gateway namespace."""
    with _within(slot):
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


@contextlib.contextmanager
def _within(slot: Slot) -> Iterator[None]:
    """The calling thread is in the slot's gateway namespace. Raises FileNotFoundError where it is gone."""
    fd = netns.open_fd(slot.gateway_netns)
    try:
        with netns.entered(fd):
            yield
    finally:
        os.close(fd)


def demolish(slot: Slot, tables: Tables) -> None:
    """Idempotent. On return no name of the slot is left."""
    tables.forget(slot)
    with Netlink() as here:
        here.delete(slot.host_interface)
    netns.delete(slot.machine_netns)
    netns.delete(slot.gateway_netns)
    tables.forget(slot)


def present(plan: Plan) -> set[int]:
    """Indices of every slot of ours that has anything on this host."""
    names: Iterable[str] = [
        *netns.names(plan.prefix),
        *(p.name for p in Path("/sys/class/net").glob(f"{plan.prefix}h*")),
    ]
    return {i for i in map(plan.index_of, names) if i is not None}
