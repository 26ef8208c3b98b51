"""Which resolver machines are led to."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from roost.errors import UnsupportedError

_FILES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")


def choose(configured: str, files: tuple[str, ...] = _FILES) -> str:
    """An IPv4 address that is not the host's loopback. Raises HOST_UNSUPPORTED with the remedy."""
    if configured:
        if _usable(configured):
            return configured
        raise UnsupportedError(
            f"ROOST_DNS is {configured!r}; give an IPv4 address that is not loopback.",
            code="CONFIG_INVALID",
        )
    for file in files:
        for address in nameservers(file):
            if _usable(address):
                return address
    raise UnsupportedError(
        "No resolver that machines can reach: the host's own are on loopback or IPv6 only. Set ROOST_DNS "
        "to an IPv4 resolver.",
        code="HOST_UNSUPPORTED",
        details={"remedy": "ROOST_DNS=9.9.9.9"},
    )


def nameservers(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [w[1] for w in words if len(w) >= 2 and w[0] == "nameserver"]


def _usable(address: str) -> bool:
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast)
