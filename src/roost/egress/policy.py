"""What a machine may reach: a pure rule over names, addresses and ports.

    open       everything but what is always refused (private ranges, metadata, the host)
    allowlist  the entries of ``allow`` and nothing else
    off        nothing, names included

An entry is ``HOST[:PORT[,PORT...]][/PROTOCOL]``. HOST is a name (``python.example``), a wildcard for every name below one
(``*.mirror.example``, which is not ``mirror.example``), or an IPv4 address or network in CIDR form. A name is proven by what
is said on the connection (the SNI of TLS, the Host of HTTP), so its protocol is ``tcp`` and its ports are 80 and 443
unless given. An address without a port is every port of TCP and UDP, and ICMP.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from roost.errors import InvalidRequestError

WEB_PORTS = (80, 443)
MAX_ENTRIES = 256
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_MAX_NAME = 253

# Nothing a machine may ever speak to, unless the operator allows a part: this network, private, shared, loopback,
# link-local with the clouds' metadata, protocol assignments, 6to4 relays, benchmarks,
# multicast, reserved, broadcast. An explicit list: what a library calls private changes.
REFUSED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
# Not even the operator's list opens them. 168.63.129.16 is Azure's wire server: the host's settings, at an address
# that is no private one.
METADATA = tuple(ipaddress.IPv4Network(each) for each in ("169.254.0.0/16", "168.63.129.16/32"))
_REFUSED = tuple(ipaddress.IPv4Network(each) for each in REFUSED)


# Of these no part can be opened: nothing that is reached by routing lies there.
_NEVER = tuple(
    ipaddress.IPv4Network(each)
    for each in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
)
_MAX_PRIVATE = 64


class Mode(StrEnum):
    OPEN = "open"
    ALLOWLIST = "allowlist"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Entry:
    """Exactly one of ``name`` (lower case, no final dot; a wildcard begins with ``*.``) and ``network``.
    ``ports`` () is: of a name, the web's; of a network, all. ``protocol`` None is: of a name tcp, of a network any."""

    name: str | None = None
    network: ipaddress.IPv4Network | None = None
    ports: tuple[int, ...] = ()
    protocol: str | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Raises VALIDATION_FAILED, saying what is wrong with it."""
        rest, protocol = text.strip(), None
        for known in ("tcp", "udp"):
            if rest.endswith(f"/{known}"):
                rest, protocol = rest[: -len(known) - 1], known
        host, colon, said = rest.partition(":")
        ports = _ports(text, said) if colon else ()
        network = _network(text, host)
        if network is not None:
            if protocol is not None and not ports:
                raise _bad(text, "a protocol goes with ports")
            return cls(network=network, ports=ports, protocol=protocol)
        if protocol == "udp":
            raise _bad(text, "a name is proven on TCP only; use an address for UDP")
        return cls(name=_name(text, host), ports=ports)

    def __str__(self) -> str:
        host = self.name if self.name is not None else _shown(self.network)
        ports = ":" + ",".join(map(str, self.ports)) if self.ports else ""
        return f"{host}{ports}" + (f"/{self.protocol}" if self.protocol else "")

    def covers_name(self, name: str) -> bool:
        """Whatever the port."""
        if self.name is None:
            return False
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) > len(self.name) - 1
        return name == self.name


@dataclass(frozen=True, slots=True)
class Policy:
    """``observe``: everything that is tried is listed, allowed or not, so that an allowlist can be made of it."""

    mode: Mode = Mode.OPEN
    allow: tuple[Entry, ...] = ()
    observe: bool = False

    @classmethod
    def read(cls, value: object) -> Policy:
        """Of JSON: a mode's name, or ``{mode, allow: [entry], observe}``. Raises VALIDATION_FAILED."""
        if isinstance(value, str):
            value = {"mode": value}
        if not isinstance(value, Mapping):
            raise InvalidRequestError(
                "egress is open, allowlist, off, or an object with mode, allow and observe.",
                details={"field": "egress"},
            )
        unknown = sorted(set(value) - {"mode", "allow", "observe"})
        if unknown:
            raise InvalidRequestError(
                f"egress has no {unknown[0][:64]!r}: it has mode, allow and observe.",
                details={"field": "egress"},
            )
        allow, observe = value.get("allow") or (), value.get("observe", False)
        try:
            mode = Mode(value.get("mode", Mode.ALLOWLIST if "allow" in value else Mode.OPEN))
        except ValueError:
            raise InvalidRequestError(
                "egress.mode is open, allowlist or off.", details={"field": "egress.mode"}
            ) from None
        if not isinstance(observe, bool):
            raise InvalidRequestError(
                "egress.observe is true or false.", details={"field": "egress.observe"}
            )
        if isinstance(allow, str) or not isinstance(allow, Sequence):
            raise InvalidRequestError(
                "egress.allow is a list of entries.", details={"field": "egress.allow"}
            )
        if allow and mode is not Mode.ALLOWLIST:
            raise InvalidRequestError(
                f"egress.allow goes with the mode allowlist, not {mode}.",
                details={"field": "egress.allow"},
            )
        if len(allow) > MAX_ENTRIES:
            raise InvalidRequestError(
                f"egress.allow has at most {MAX_ENTRIES} entries.",
                details={"field": "egress.allow"},
            )
        entries = []
        for each in allow:
            if not isinstance(each, str):
                raise InvalidRequestError(
                    "egress.allow is a list of entries such as python.example, *.mirror.example or 192.0.2.0/24:5432.",
                    details={"field": "egress.allow"},
                )
            entries.append(Entry.parse(each))
        return cls(mode, tuple(dict.fromkeys(entries)), observe)

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode.value,
            "allow": [str(each) for each in self.allow],
            "observe": self.observe,
        }

    def allows_name(self, name: str, port: int | None = None) -> bool:
        """``name`` as ``clean_name`` gives it; ``port`` None: on any, which is what a resolver asks."""
        if self.mode is not Mode.ALLOWLIST:
            return self.mode is Mode.OPEN
        return any(
            each.covers_name(name) and (port is None or port in (each.ports or WEB_PORTS))
            for each in self.allow
        )

    def allows_address(self, address: str, port: int, protocol: str = "tcp") -> bool:
        """By an entry for addresses. What is always refused is not looked at here: ``Reach`` does."""
        if self.mode is not Mode.ALLOWLIST:
            return self.mode is Mode.OPEN
        at = ipaddress.IPv4Address(address)
        return any(
            each.network is not None
            and at in each.network
            and (not each.ports or port in each.ports)
            and each.protocol in (None, protocol)
            for each in self.allow
        )

    @property
    def name_ports(self) -> tuple[int, ...]:
        """TCP ports on which names are proven."""
        ports = {port for each in self.allow if each.name is not None for port in each.ports}
        return tuple(sorted(ports | set(WEB_PORTS)))


@dataclass(frozen=True, slots=True)
class Reach:
    """Which addresses may be spoken to at all, under any policy. ``private``: parts of the refused ranges that the
    operator opens; ``here``: the host's own addresses and networks, which stay closed but for those."""

    private: tuple[ipaddress.IPv4Network, ...] = ()
    here: tuple[ipaddress.IPv4Network, ...] = field(default=())

    def permits(self, address: str) -> bool:
        """False for whatever is no IPv4 address."""
        try:
            at = ipaddress.IPv4Address(address)
        except ValueError:
            return False
        if any(at in each for each in METADATA):
            return False
        if any(at in each for each in self.private):
            return True
        return not any(at in each for each in (*_REFUSED, *self.here))


def private_ranges(text: str) -> tuple[ipaddress.IPv4Network, ...]:
    """Of ``ROOST_EGRESS_PRIVATE``: networks in CIDR form, each within a range that is refused otherwise, with commas
    between. Raises ValueError, saying which and why."""
    found = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            network = ipaddress.IPv4Network(each)
        except ValueError as exc:
            raise ValueError(f"{each[:100]!r} is no IPv4 network in CIDR form: {exc}") from None
        if any(network.overlaps(each) for each in METADATA):
            raise ValueError(f"{network} has the clouds' metadata in it; that stays closed")
        if any(network.overlaps(never) for never in _NEVER):
            raise ValueError(f"{network} is no range that a network can have")
        if not any(network.subnet_of(refused) for refused in _REFUSED):
            raise ValueError(
                f"{network} is not within a range that is refused, so it needs no opening"
            )
        found.append(network)
    if len(found) > _MAX_PRIVATE:
        raise ValueError(f"at most {_MAX_PRIVATE} ranges")
    return tuple(dict.fromkeys(found))


def clean_name(text: str) -> str | None:
    """A host name in the one form that is compared: lower case, without a final dot, IDNA as ASCII. None for what is
    none: an address in any spelling, too."""
    name = text.lower().rstrip(".") if text.endswith(".") else text.lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return None
    if (
        not name
        or len(name) > _MAX_NAME
        or not all(_LABEL.fullmatch(each) for each in name.split("."))
    ):
        return None
    last = name.rpartition(".")[2]
    if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):  # inet_aton would read an address
        return None
    return name


def _name(text: str, host: str) -> str:
    wild = host.startswith("*.")
    name = clean_name(host[2:] if wild else host)
    if name is None:
        raise _bad(
            text, "a host is a name, a wildcard such as *.example.org, an address or a network"
        )
    if wild and "." not in name:
        raise _bad(text, "a wildcard needs two labels below it, such as *.example.org")
    return f"*.{name}" if wild else name


def _network(text: str, host: str) -> ipaddress.IPv4Network | None:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+){3}(/[0-9]+)?", host):
        return None
    try:
        return ipaddress.IPv4Network(host)
    except ValueError as exc:
        raise _bad(text, f"{exc}") from exc


def _ports(text: str, said: str) -> tuple[int, ...]:
    ports = []
    for each in said.split(","):
        if not re.fullmatch(r"[0-9]{1,5}", each) or not 1 <= int(each) <= 65535:
            raise _bad(text, "a port is a number from 1 to 65535")
        ports.append(int(each))
    return tuple(sorted(set(ports)))


def _shown(network: ipaddress.IPv4Network | None) -> str:
    assert network is not None
    return str(network.network_address) if network.prefixlen == 32 else str(network)


def _bad(text: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text[:100]!r} is no egress entry: {why}.",
        details={"field": "egress.allow", "entry": text[:100]},
    )
