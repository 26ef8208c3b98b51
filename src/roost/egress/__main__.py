"""``python -m roost.egress``: started by ``supervisor.py``, which gives it the control socket as a descriptor.

Everything is imported first; then it becomes a user that owns nothing, for good. From there on it needs nothing of
the host but its sockets, /etc/resolv.conf and, for the name of an upstream proxy, what getaddrinfo reads.
"""

from __future__ import annotations

import argparse
import concurrent.futures.thread  # noqa: F401  (what asyncio would import later)
import encodings.idna  # noqa: F401
import os
import resource
import socket
import sys
import time
from typing import Any

import dns.rdata
import structlog
import uvloop

from roost.egress import web  # noqa: F401
from roost.egress.interface import EGRESS_UID
from roost.egress.process import Process
from roost.host import syscalls
from roost.memory import give_back

_LINES, _LINES_S = 100, 60.0  # of log; what machines do must not fill the disk


def main() -> int:
    parser = argparse.ArgumentParser(prog="roost.egress")
    parser.add_argument("--control", type=int, required=True, help="descriptor that listens")
    parser.add_argument("--version", required=True)
    said = parser.parse_args()
    os.umask(0o077)
    os.chdir("/")
    give_back()
    structlog.configure(
        processors=[
            _bounded(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]
    _raise_files()
    if os.geteuid() == 0:
        syscalls.drop_privileges(EGRESS_UID, syscalls.last_capability())
    uvloop.run(_run(said.control, said.version))
    return 0


async def _run(descriptor: int, version: str) -> None:
    await Process(socket.socket(fileno=descriptor), version).run()


def _raise_files() -> None:
    """As many as the kernel gives one process."""
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bounded() -> Any:
    """A processor that drops what is too much."""
    begun, count = time.monotonic(), 0

    def look(logger: object, method: str, event: structlog.typing.EventDict) -> Any:
        nonlocal begun, count
        if time.monotonic() - begun > _LINES_S:
            begun, count = time.monotonic(), 0
        count += 1
        if count > _LINES:
            raise structlog.DropEvent
        return event

    return look


if __name__ == "__main__":
    sys.exit(main())
