"""The "internet" of the tests: a namespace with public addresses that only this host routes to. One a session, whoever
asks for it: a host has one of each address.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.host import netns

INTERNET = "198.51.100.10"
RESOLVER = "198.51.100.53"


@pytest.fixture(scope="session")
def internet() -> Iterator[str]:
    """A namespace that answers on public addresses: a greeting on TCP 80 and 2000, and DNS."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    netns.prepare()
    _sweep()
    name = f"rtest-{os.getpid()}"
    turn = os.open("/run/lock/roost-test-internet", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(turn, fcntl.LOCK_EX)  # a host has one of each address: other sessions wait
    fd = netns.create(name)

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    stop = threading.Event()
    threads: list[threading.Thread] = []
    try:
        host, far = f"rt{os.getpid()}", f"rf{os.getpid()}"
        ip("link", "add", host, "type", "veth", "peer", "name", far, "netns", name)
        ip("addr", "add", "172.30.255.1/30", "dev", host)
        ip("link", "set", host, "up")
        ip("-n", name, "addr", "add", "172.30.255.2/30", "dev", far)
        ip("-n", name, "addr", "add", f"{INTERNET}/32", "dev", "lo")
        ip("-n", name, "addr", "add", f"{RESOLVER}/32", "dev", "lo")
        ip("-n", name, "addr", "add", "192.168.77.7/32", "dev", "lo")
        ip("-n", name, "addr", "add", "169.254.169.254/32", "dev", "lo")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", far, "up")
        ip("-n", name, "route", "add", "default", "via", "172.30.255.1")
        for network in ("198.51.100.0/24", "192.168.77.7/32", "169.254.169.254/32"):
            ip("route", "add", network, "via", "172.30.255.2")
        sockets = []
        with netns.entered(fd):
            # UDP on each address by itself, so that answers come from where the question went.
            for kind, address, port in (
                (socket.SOCK_STREAM, "0.0.0.0", 80),
                (socket.SOCK_STREAM, "0.0.0.0", 53),
                (socket.SOCK_DGRAM, RESOLVER, 53),
                (socket.SOCK_DGRAM, "192.168.77.7", 53),
            ):
                sock = socket.socket(socket.AF_INET, kind)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, port))
                sock.settimeout(0.2)
                if kind == socket.SOCK_STREAM:
                    sock.listen(16)
                sockets.append(sock)
        for sock in sockets:
            thread = threading.Thread(target=_serve, args=(sock, stop), daemon=True)
            thread.start()
            threads.append(thread)
        yield name
    finally:
        stop.set()
        for thread in threads:
            thread.join(2)
        subprocess.run(["ip", "link", "del", f"rt{os.getpid()}"], check=False)
        os.close(fd)
        netns.delete(name)
        os.close(turn)


def _sweep() -> None:
    """What sessions left that were killed: their routes are in the way of ours."""
    for name in [path.name for path in Path("/run/netns").glob("rtest-*")]:
        pid = name.removeprefix("rtest-")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "link", "del", f"rt{pid}"], check=False)
            netns.delete(name)


def _serve(sock: socket.socket, stop: threading.Event) -> None:
    """Says who is asking."""
    with sock:
        while not stop.is_set():
            try:
                if sock.type == socket.SOCK_DGRAM:
                    _, peer = sock.recvfrom(512)
                    sock.sendto(f"answer to {peer[0]}".encode(), peer)
                else:
                    connection, peer = sock.accept()
                    with connection:
                        connection.sendall(f"greeting to {peer[0]}\n".encode())
            except TimeoutError:
                continue
