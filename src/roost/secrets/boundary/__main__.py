"""The boundary's process: ``PYTHON boundary/ FD``, with descriptor 0 its line to the daemon and FD its listening socket.

The line carries JSON, an object a line. First comes ``{password, ca, uid}``; then, in any number,
``{id, machines: {ID: state | null}}``, answered with ``{id}`` once it holds. What it is told lives in its memory alone,
which goes into no core file and, where the host lets it be locked, into no swap. It ends when the line does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import encodings.idna  # noqa: F401  (later its files may be out of reach)
import json
import logging
import os
import resource
import socket
import sys

import addon
import leaves
import narrowed
import rules
from mitmproxy import options
from mitmproxy.addons import core, proxyserver
from mitmproxy.master import Master
from mitmproxy.proxy.mode_servers import ServerInstance

MAX_LINE = 64 * 2**20
MEMORY = 4 * 2**30  # of addresses: what one machine sends must not take the host with it
# <linux/prctl.h>, <sys/mman.h>
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


def confine(uid: int | None) -> None:
    """Nobody's user, no privilege to regain, nothing of its memory on a disk. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if uid is not None:
        with contextlib.suppress(
            ValueError, OSError
        ):  # a host may not let even root; then it stays unlocked
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
            libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    for number, value in ((PR_SET_DUMPABLE, 0), (PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(number, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


async def main() -> None:
    # Nothing is logged: lines of mitmproxy name addresses, headers and what came over the wire.
    logging.disable(logging.CRITICAL)
    line = socket.socket(fileno=0)
    reader, writer = await asyncio.open_connection(sock=line, limit=MAX_LINE)
    said = json.loads(await reader.readline())
    listener = socket.socket(fileno=int(sys.argv[1]))
    confine(said["uid"])
    narrowed.apply()

    master = Master(options.Options(mode=[]))
    boundary = addon.Boundary(said["password"])
    server = proxyserver.Proxyserver()
    master.addons.add(core.Core(), boundary, server, leaves.Tls(boundary))
    master.options.update(
        rawtcp=False,
        ssl_verify_upstream_trusted_ca=said["ca"],
        validate_inbound_headers=True,
    )
    running = asyncio.create_task(master.run())
    instance = ServerInstance.make("socks5", server)
    await asyncio.start_server(instance.handle_stream, sock=listener)
    writer.write(b'{"ready": true}\n')
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    while told := await reader.readline():
        message = json.loads(told)
        for machine_id, state in message["machines"].items():
            if state is None:
                boundary.machines.pop(machine_id, None)
            else:
                # Beside the loop: what is looked for takes its time to be made ready.
                boundary.machines[machine_id] = await asyncio.to_thread(rules.Machine, state)
        writer.write(json.dumps({"id": message["id"]}).encode() + b"\n")
    master.shutdown()
    await running


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
