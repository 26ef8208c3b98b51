"""The preview proxy beside Debian's nginx on the host, in front of the same server: nginx in a machine on runc.

Both are on the host's loopback for the same load generator (wrk), turn by turn. The host's nginx runs in the slot's
gateway namespace, from where it reaches the machine as our sockets do, with a listening socket made in the host's own
namespace, which it inherits; it keeps its connections to the machine open, as we do. The daemon's bound on requests to
one machine must be out of the way: ``ROOST_PREVIEW_REQUESTS_PER_SECOND=1000000``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.report import Report
from roost import Client, Machine
from roost.host import netns
from roost.host.run import run as command
from roost.network.addresses import MACHINE_ADDRESS, instance_tag

PORT = 8080
CONNECTIONS = 32
SECONDS = 5
INSIDE = """user root; worker_processes 1; events { worker_connections 512; }
http { access_log off; keepalive_requests 100000000; server { listen 8080; location / { return 200 '%s'; } } }"""
OUTSIDE = """daemon off; worker_processes 1; pid %(dir)s/pid; error_log %(dir)s/error.log;
events { worker_connections 512; }
http { access_log off; keepalive_requests 100000000; client_body_temp_path %(dir)s/body; proxy_temp_path %(dir)s/proxy;
fastcgi_temp_path %(dir)s/fastcgi; uwsgi_temp_path %(dir)s/uwsgi; scgi_temp_path %(dir)s/scgi;
upstream machine { server %(address)s:8080; keepalive 64; }
server { listen 127.0.0.1:%(port)d; location / { proxy_pass http://machine; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_set_header Host $http_host;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; } } }"""


@dataclass(frozen=True)
class Load:
    per_second: float
    median_ms: float


def run(report: Report, n: int) -> None:
    for program, package in (("nginx", "nginx-light"), ("wrk", "wrk")):
        if shutil.which(program) is None:
            command(
                ["apt-get", "install", "-y", "-q", "--no-install-recommends", package],
                timeout_s=600,
            )
    with Client() as client, Machine.create(driver="runc", memory_mib=512, autosleep="never") as m:
        install(m)
        m.files.write("/etc/nginx/nginx.conf", INSIDE % ("x" * 200))
        m.exec("nginx && sleep 0.5", check=True, timeout=20)
        m.ports.create(PORT, visibility="public")
        ours = urlsplit(client.url).port or 80
        host = urlsplit(m.url(PORT)).netloc
        with nginx() as theirs:
            turns: dict[int, list[Load]] = {theirs: [], ours: []}
            for port in turns:
                load(port, host, CONNECTIONS, 1)
            for _ in range(max(3, n // 4)):
                for port, found in turns.items():
                    found.append(load(port, host, CONNECTIONS, SECONDS))
            single = {port: [load(port, host, 1, 2) for _ in range(3)] for port in turns}
        report.add(
            f"preview, requests a second, {CONNECTIONS} connections",
            "/s",
            [each.per_second for each in turns[ours]],
            [each.per_second for each in turns[theirs]],
            bound=0.4,
            at_least=True,
        )
        for name, found in ((f"{CONNECTIONS} connections", turns), ("one connection", single)):
            added = statistics.median(each.median_ms for each in found[ours])
            added -= statistics.median(each.median_ms for each in found[theirs])
            report.add(f"  median latency beyond nginx's, {name}", "ms", [added], bound=2)


def install(m: Machine) -> None:
    """The host's nginx, with its libraries: the base template is of the same release."""
    linked = subprocess.run(["ldd", "/usr/sbin/nginx"], check=True, capture_output=True, text=True)
    libraries = re.findall(r"=> (/\S+)", linked.stdout)
    have = set(m.exec(["sh", "-c", "ls -d " + " ".join(libraries) + " 2>/dev/null"]).stdout.split())
    for path in ["/usr/sbin/nginx", *(each for each in libraries if each not in have)]:
        m.files.write(path, Path(path).resolve().read_bytes(), mode=0o755)
    m.exec("mkdir -p /var/log/nginx /var/lib/nginx /etc/nginx", check=True)


def load(port: int, host: str, connections: int, seconds: int) -> Load:
    said = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Host: {host}", f"http://127.0.0.1:{port}/"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"wrk saw errors:\n{said}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    median = re.search(r"^\s+50%\s+([\d.]+)(us|ms|s)$", said, re.MULTILINE)
    assert rate is not None
    assert median is not None
    return Load(float(rate[1]), float(median[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[median[2]])


@contextlib.contextmanager
def nginx() -> Iterator[int]:
    """The host's, in front of the machine; its port."""
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as directory, socket.socket() as sock:
        Path(directory).chmod(0o755)
        sock.bind(("127.0.0.1", 0))
        sock.listen(511)
        port: int = sock.getsockname()[1]
        values = {"dir": directory, "port": port, "address": MACHINE_ADDRESS}
        (Path(directory) / "nginx.conf").write_text(OUTSIDE % values)
        with inside_gateway():
            process = subprocess.Popen(
                ["nginx", "-c", f"{directory}/nginx.conf"],
                env={**os.environ, "NGINX": f"{sock.fileno()};"},
                pass_fds=[sock.fileno()],
                stderr=subprocess.DEVNULL,
            )
        try:
            time.sleep(0.5)
            yield port
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def inside_gateway() -> Iterator[None]:
    """The slot of this daemon (ROOST_RUN_DIR) that leads to a machine with a server on that port: the bench's own."""
    tag = instance_tag(Path(os.environ.get("ROOST_RUN_DIR", "/run/roost")))
    for name in netns.names(f"rst{tag}-g"):
        fd = netns.open_fd(name)
        try:
            with netns.entered(fd):
                with socket.socket() as probe:
                    probe.settimeout(0.5)
                    found = probe.connect_ex((MACHINE_ADDRESS, PORT)) == 0
                if found:
                    yield
                    return
        finally:
            os.close(fd)
    raise SystemExit(
        "No slot of this daemon leads to the machine: set ROOST_RUN_DIR as the daemon's."
    )
