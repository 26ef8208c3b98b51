"""Which TCP ports are listened on in a machine, as its kernel tells: of every server, shown outside or not."""

from __future__ import annotations

import builtins
import ipaddress
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from roost.errors import RoostError
from roost.network.addresses import AGENT_PORT
from roost.services.doors import require_own_network
from roost.services.files import Files
from roost.services.machines import Machines

_TABLES = (b"/proc/net/tcp", b"/proc/net/tcp6")
_LISTEN = "0A"
MAX_BYTES = 4 << 20  # of each table: who has more connections is told what was read until there


@dataclass(frozen=True, slots=True)
class Listening:
    port: int
    addresses: list[str]  # 0.0.0.0 and :: are all of them


class ListeningPorts:
    def __init__(self, files: Files, machines: Machines) -> None:
        self._files = files
        self._machines = machines

    async def list(self, tenant: str, machine_id: str) -> builtins.list[Listening]:
        """By number, without the agent's own. Wakes the machine. Raises UNSUPPORTED (it has the host's network)."""
        require_own_network(await self._machines.get(tenant, machine_id))
        found: defaultdict[int, set[str]] = defaultdict(set)
        for number, table in enumerate(_TABLES):
            try:
                text = await self._read(tenant, machine_id, table)
            except RoostError as failure:
                if number and failure.code == "FILE_NOT_FOUND":  # a kernel without IPv6
                    continue
                raise
            for address, port in parse(text.splitlines()):
                found[port].add(address)
        found.pop(AGENT_PORT, None)
        return [Listening(port, sorted(found[port])) for port in sorted(found)]

    async def _read(self, tenant: str, machine_id: str, path: bytes) -> str:
        reading = await self._files.read(tenant, machine_id, path)
        parts: list[bytes] = []
        size = 0
        try:
            async for part in reading.data:
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    break
        finally:
            await reading.data.aclose()
        return b"".join(parts).decode("ascii", "replace")


def parse(lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    """(address, port) of those that listen. What is no line of such a table is passed over."""
    for line in lines:
        words = line.split()
        if len(words) < 4 or words[3] != _LISTEN:
            continue
        address, colon, port = words[1].partition(":")
        try:
            if colon:
                yield _address(bytes.fromhex(address)), int(port, 16)
        except ValueError:
            continue


def _address(raw: bytes) -> str:
    """Words of the host's byte order each. Raises ValueError."""
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    found = ipaddress.ip_address(raw)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
