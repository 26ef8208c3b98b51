"""This host's TCP connections, as the kernel tells them."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

_OVER = frozenset({"06", "07"})  # TIME_WAIT, CLOSE: the other side knows of no connection any more
# Closed here, and no answer to that, or no end from there. Who lives does both at once: this is what was left to
# one that had the address before and is gone, and can stay for a minute.
_UNANSWERED = _OVER | {"04", "05"}  # FIN_WAIT1, FIN_WAIT2
_ANSWER_S = 2.0


def connected(address: str, port: int, over: frozenset[str] = _OVER) -> bool:
    """Whether this process's network namespace has a connection to there; IPv4, of sockets of both families."""
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    there = f"{number:08X}:{port:04X}"
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, _, remote, state, *_ = line.split()
            if state not in over and remote.endswith(there):
                return True
    return False


def wait_closed(address: str, port: int, timeout_s: float) -> bool:
    """Blocks until there is none; False at the deadline."""
    begun = time.monotonic()
    while connected(address, port, _OVER if time.monotonic() - begun < _ANSWER_S else _UNANSWERED):
        if time.monotonic() - begun > timeout_s:
            return False
        time.sleep(0.002)
    return True


def answers(address: str, port: int, hello: bytes, timeout_s: float) -> bool:
    """Whether whoever listens there says anything to that in time. Raises nothing."""
    try:
        with socket.create_connection((address, port), timeout_s) as sock:
            sock.sendall(hello)
            return bool(sock.recv(1))
    except OSError:
        return False
