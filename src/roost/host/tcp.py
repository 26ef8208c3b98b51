"""This host's TCP connections, as the kernel tells them."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

_OVER = {"06", "07"}  # TIME_WAIT, CLOSE: the other side knows of no connection any more


def connected(address: str, port: int) -> bool:
    """Whether this process's network namespace has a connection to there; IPv4, of sockets of both families."""
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    there = f"{number:08X}:{port:04X}"
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, _, remote, state, *_ = line.split()
            if state not in _OVER and remote.endswith(there):
                return True
    return False


def wait_closed(address: str, port: int, timeout_s: float) -> bool:
    """Blocks until there is none; False at the deadline."""
    deadline = time.monotonic() + timeout_s
    while connected(address, port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
