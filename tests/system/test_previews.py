"""Servers in real machines, from outside: HTTP, server-sent events, WebSocket, large bodies, sleep, a proxy in front."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from roost import Machine

from .conftest import Daemon

pytestmark = pytest.mark.system
MIB = 2**20
SERVER = r"""
import base64, hashlib, http.server, sys, threading, time
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_GET(self):
        if self.headers.get('Upgrade') == 'websocket':
            key = self.headers['Sec-WebSocket-Key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
            self.send_response(101)
            self.send_header('Upgrade', 'websocket'); self.send_header('Connection', 'Upgrade')
            self.send_header('Sec-WebSocket-Accept', base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            while True:
                a, b = self.rfile.read(2)
                n = b & 127
                if n == 126: n = int.from_bytes(self.rfile.read(2), 'big')
                mask = self.rfile.read(4)
                data = bytes(x ^ mask[i % 4] for i, x in enumerate(self.rfile.read(n)))
                self.wfile.write(bytes([a, len(data)]) + data)
                if a & 15 == 8: self.close_connection = True; return
        if self.path == '/events':
            self.send_response(200); self.send_header('Content-Type', 'text/event-stream')
            self.send_header('Connection', 'close'); self.end_headers()
            for n in range(5):
                self.wfile.write(b'data: %d\n\n' % n); time.sleep(0.3)
            self.close_connection = True
            return
        if self.path.startswith('/big'):
            n = int(self.path.partition('?')[2])
            self.send_response(200); self.send_header('Content-Length', str(n << 20)); self.end_headers()
            for _ in range(n): self.wfile.write(bytes(1 << 20))
            return
        self.say(('hello %s %s' % (self.headers['Host'], self.headers['X-Forwarded-For'])).encode())
    def do_POST(self):
        left, seen = int(self.headers['Content-Length']), hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 1 << 20)); seen.update(part); left -= len(part)
        self.say(seen.hexdigest().encode())
    def say(self, body):
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), H).serve_forever()
"""


def serve(m: Machine, address: str, port: int) -> None:
    m.files.write("/root/server.py", SERVER)
    m.exec(
        f"nohup python3 /root/server.py {address} {port} >/dev/null 2>&1 </dev/null & "
        f"for i in $(seq 100); do python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' "
        "2>/dev/null && exit 0; sleep 0.1; done; exit 1",
        check=True,
        timeout=60,
    )


@pytest.fixture
def machine(daemon: Daemon, driver: str) -> Iterator[Machine]:
    with Machine.create(driver=driver, memory_mib=512) as m:
        yield m


def rss(daemon: Daemon) -> int:
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_a_server_is_reached_wherever_it_listens(daemon: Daemon, machine: Machine) -> None:
    serve(machine, "0.0.0.0", 8000)
    serve(machine, "127.0.0.1", 8001)
    for port in (8000, 8001):
        with machine.http(port) as http:
            for _ in range(3):
                assert http.get("/").text == f"hello {urlsplit(machine.url(port)).netloc} 127.0.0.1"
            begun = time.monotonic()
            with http.stream("GET", "/events") as answer:
                lines = [(line, time.monotonic() - begun) for line in answer.iter_lines() if line]
            assert [line for line, _ in lines] == [f"data: {n}" for n in range(5)]
            assert lines[0][1] < lines[-1][1] - 0.5, "each as it comes"
        host = urlsplit(machine.url(port)).netloc
        address = ("127.0.0.1", urlsplit(daemon.url).port)
        with (
            socket.create_connection(address) as sock,
            connect(
                f"ws://{host}/x", sock=sock, additional_headers={"X-Roost-Preview-Token": daemon.key}, compression=None
            ) as ws,
        ):  # fmt: skip
            for text in ("one", "two"):
                ws.send(text)
                assert ws.recv(timeout=20) == text
        with socket.create_connection(address) as sock, pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{host}/x", sock=sock)
        assert refused.value.response.status_code == 401
    answer = httpx.get(
        f"{daemon.url}/v1/machines/{machine.id}/proxy/8001/",
        headers={"authorization": f"Bearer {daemon.key}"},
        trust_env=False,
    )
    assert answer.text.startswith("hello 127.0.0.1")
    assert answer.headers["content-security-policy"] == "sandbox"


def test_what_is_large_goes_through_and_is_held_nowhere(daemon: Daemon, machine: Machine) -> None:
    serve(machine, "0.0.0.0", 8000)
    serve(machine, "127.0.0.1", 8001)
    part = bytes(range(256)) * 4096
    wanted = hashlib.sha256()
    for _ in range(200):
        wanted.update(part)
    for port in (8000, 8001):
        with machine.http(port, timeout=120) as http:
            http.get("/big?20")
            before, most, got = rss(daemon), 0, 0
            with http.stream("GET", "/big?200") as answer:
                for piece in answer.iter_bytes(MIB):
                    got += len(piece)
                    if not got % (20 * MIB):
                        time.sleep(0.02)  # slower than it could
                        most = max(most, rss(daemon))
            assert got == 200 * MIB

            def parts() -> Iterator[bytes]:
                nonlocal most
                for _ in range(200):
                    most = max(most, rss(daemon))
                    yield part

            answer = http.post("/", content=parts(), headers={"content-length": str(200 * MIB)})
            assert answer.text == wanted.hexdigest()
            assert most - before < 24 * MIB, (port, before, most)


def test_a_closed_port_says_so_and_the_agents_is_none(daemon: Daemon, machine: Machine) -> None:
    with machine.http(9000) as http:
        answer = http.get("/")
        assert answer.status_code == 502 and answer.json()["error_code"] == "PORT_CLOSED"
        assert "start a server" in answer.json()["message"]
        page = http.get("/", headers={"accept": "text/html"})
        assert page.status_code == 502 and "9000" in page.text and page.text.startswith("<!doctype")
        serve(machine, "127.0.0.1", 9000)
        assert http.get("/").status_code == 200
    answer = httpx.get(
        f"{daemon.url}/v1/machines/{machine.id}/proxy/7111/",
        headers={"authorization": f"Bearer {daemon.key}"},
        trust_env=False,
    )
    assert answer.json()["error_code"] == "PORT_CLOSED"


def test_a_request_wakes_it_and_an_idle_connection_lets_it_sleep(daemon: Daemon) -> None:
    with Machine.create(driver="gvisor", memory_mib=512, autosleep="2s") as m:
        serve(m, "0.0.0.0", 8000)
        with m.http(8000, timeout=60) as http:
            for tier in ("frozen", "hibernated"):
                assert http.get("/").status_code == 200
                begun = time.monotonic()
                while m.refresh().phase != "sleeping":
                    assert time.monotonic() - begun < 30, (
                        "its connection is open, but nothing is asked"
                    )
                    time.sleep(0.2)
                assert m.tier == "frozen"
                if tier == "hibernated":
                    m.sleep("hibernated")
                assert http.get("/").status_code == 200
                assert m.refresh().phase == "running"


def test_ports_go_with_their_machine_and_no_fork_has_them(daemon: Daemon) -> None:
    with Machine.create(driver="gvisor", memory_mib=256) as m:
        m.ports.create(8000, name="attempt", visibility="public")
        with m.fork() as child:
            assert child.ports.list() == []
    with Machine.create(driver="runc", memory_mib=256) as again:
        assert again.ports.create(8000, name="attempt")["name"] == "attempt"
    metrics = httpx.get(
        f"{daemon.url}/metrics",
        headers={"authorization": f"Bearer {daemon.key}"},
        trust_env=False,
    ).text
    assert "roost_preview_requests" in metrics


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_behind_nginx_each_request_finds_its_host(daemon: Daemon, tmp_path: Path) -> None:
    with (
        Machine.create(driver="runc", memory_mib=256) as one,
        Machine.create(driver="runc", memory_mib=256) as two,
        nginx(daemon, tmp_path) as front,
        httpx.Client(trust_env=False, timeout=30) as http,
    ):
        for m in (one, two):
            serve(m, "0.0.0.0", 8000)
        hosts = {
            m.id: urlsplit(m.ports.create(8000, visibility="public")["url"]).netloc
            for m in (one, two)
        }
        for _ in range(5):
            for host in hosts.values():
                said = http.get(front, headers={"host": host, "x-forwarded-for": "192.0.2.9"})
                assert said.text == f"hello {host} 192.0.2.9, 127.0.0.1, 127.0.0.1", said.text
            assert http.get(f"{front}/healthz", headers={"host": "api.example"}).json() == {
                "status": "ok"
            }
            refused = http.get(front, headers={"host": "1-" + "a" * 26 + ".localhost"})
            assert (
                refused.status_code == 401
                and json.loads(refused.text)["error_code"] == "AUTH_INVALID"
            )


@contextlib.contextmanager
def nginx(daemon: Daemon, tmp_path: Path) -> Iterator[str]:
    """One worker with one connection to the daemon for everything, as documented."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {tmp_path}/pid; error_log {tmp_path}/error.log; user root;"
        "events { worker_connections 64; } http { access_log off;"
        f" upstream roost {{ server 127.0.0.1:{urlsplit(daemon.url).port}; keepalive 1; }}"
        f" server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://roost; proxy_http_version 1.1;"
        " proxy_set_header Host $http_host; proxy_set_header Connection '';"
        " proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
        " proxy_set_header X-Forwarded-Proto $scheme; } } }"
    )
    process = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf")])
    try:
        for _ in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
