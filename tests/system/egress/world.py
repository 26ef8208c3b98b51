"""A machine's two namespaces and an internet of its own, without a daemon: what the egress process stands between.

machine 10.0.0.2 --- gateway 10.0.0.1: 53, 7110, REDIRECT      host: the process      far: 192.175.48.x
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from roost.egress.interface import DNS_PORT, PROXY_PORT, Listeners
from roost.host import netns

GATEWAY, MACHINE = "10.0.0.1", "10.0.0.2"
DNS, WEB, OTHER, PLAIN = "192.175.48.53", "192.175.48.80", "192.175.48.81", "192.175.48.82"
UNUSED = "192.175.48.99"
PRIVATE = "172.30.253.2"  # the far side's own: refused
_LOCK = "/run/lock/roost-test-egress"
_RULES = """
table inet t {
  chain led {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "in" ip daddr != 10.0.0.1 tcp dport != { 9081, 9444 } redirect to :%d
  }
}
"""


def _sh(*words: str, text: str | None = None) -> None:
    subprocess.run(words, check=True, input=text, text=True, capture_output=True)


class Names:
    """DNS by UDP and TCP. ``asked`` is what reached it; ``turns`` are answers that change with each question."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.addresses: dict[str, list[str]] = {}
        self.turns: dict[str, list[list[str]]] = {}
        self.aliases: dict[str, str] = {}
        self.texts: dict[str, list[str]] = {}
        self.ttl = 60
        self.silent = False

    def answer(self, wire: bytes, *, udp: bool) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        if self.silent:
            return None
        reply = dns.message.make_response(query)
        owner = question.name
        if name in self.aliases:
            reply.answer.append(
                dns.rrset.from_text(owner, self.ttl, "IN", "CNAME", self.aliases[name] + ".")
            )
            name = self.aliases[name]
            owner = reply.answer[-1][0].target
        found = self.addresses.get(name)
        if turns := self.turns.get(name):
            found = turns.pop(0) if len(turns) > 1 else turns[0]
        if kind == "A" and found:
            reply.answer.append(dns.rrset.from_text(owner, self.ttl, "IN", "A", *found))
        elif kind == "TXT" and name in self.texts:
            said = [f'"{each}"' for each in self.texts[name]]
            reply.answer.append(dns.rrset.from_text(owner, self.ttl, "IN", "TXT", *said))
        elif found is None and name not in self.texts:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        try:
            return reply.to_wire(max_size=512 if udp else 65535)
        except dns.exception.TooBig:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            return reply.to_wire()


@dataclass
class Far:
    """What reached the servers, in order: (address, port, first line or what was said, Host)."""

    heard: list[tuple[str, int, str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)


class World:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.names = Names()
        self.far = Far()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        tag = os.getpid() % 100000
        self._n = {each: f"rteg-{each}{tag}" for each in ("gate", "mach", "far")}
        self._fds: dict[str, int] = {}
        self._host, self._farside = f"rte{tag}", f"rtf{tag}"
        self.tls: dict[str, ssl.SSLContext] = {}

    # --- up and down ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def up(self) -> Iterator[World]:
        turn = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(turn, fcntl.LOCK_EX)
        netns.prepare()
        _sweep()
        try:
            for each, name in self._n.items():
                self._fds[each] = netns.create(name)
            self._wire()
            self._serve()
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(2)
            subprocess.run(["ip", "link", "del", self._host], check=False, capture_output=True)
            for each, name in self._n.items():
                if each in self._fds:
                    os.close(self._fds[each])
                netns.delete(name)
            os.close(turn)

    def _wire(self) -> None:
        gate, mach, far = (self._n[each] for each in ("gate", "mach", "far"))
        for name in (gate, mach, far):
            _sh("ip", "-n", name, "link", "set", "lo", "up")
        _sh("ip", "-n", gate, "link", "add", "in", "type", "veth", "peer", "eth0", "netns", mach)
        for name, link, address in ((gate, "in", GATEWAY), (mach, "eth0", MACHINE)):
            _sh("ip", "-n", name, "addr", "add", f"{address}/30", "dev", link)
            _sh("ip", "-n", name, "link", "set", link, "up")
        _sh("ip", "-n", mach, "route", "add", "default", "via", GATEWAY)
        _sh("ip", "netns", "exec", gate, "nft", "-f", "-", text=_RULES % PROXY_PORT)
        _sh("ip", "link", "add", self._host, "type", "veth", "peer", self._farside, "netns", far)
        _sh("ip", "addr", "add", "172.30.253.1/30", "dev", self._host)
        _sh("ip", "link", "set", self._host, "up")
        _sh("ip", "-n", far, "addr", "add", f"{PRIVATE}/30", "dev", self._farside)
        _sh("ip", "-n", far, "link", "set", self._farside, "up")
        for address in (DNS, WEB, OTHER, PLAIN):
            _sh("ip", "-n", far, "addr", "add", f"{address}/32", "dev", "lo")
        _sh("ip", "-n", far, "route", "add", "default", "via", "172.30.253.1")
        _sh("ip", "route", "add", "192.175.48.0/24", "via", PRIVATE)

    @contextlib.contextmanager
    def inside(self, which: str) -> Iterator[None]:
        with netns.entered(self._fds[which]):
            yield

    def listeners(self) -> Listeners:
        with self.inside("gate"):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((GATEWAY, DNS_PORT))
            made = [udp]
            for port in (DNS_PORT, PROXY_PORT):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((GATEWAY if port == DNS_PORT else "0.0.0.0", port))
                sock.listen(512)
                made.append(sock)
        return Listeners(*made)

    def connect_straight(self) -> None:
        """Ports 9081 and 9444 of the far side are had by address translation alone, to compare with."""
        gate = self._n["gate"]
        out, to = f"rte{os.getpid() % 100000}o", "out"
        _sh("ip", "link", "add", out, "type", "veth", "peer", to, "netns", gate)
        _sh("ip", "addr", "add", "172.30.252.1/30", "dev", out)
        _sh("ip", "link", "set", out, "up")
        _sh("ip", "-n", gate, "addr", "add", "172.30.252.2/30", "dev", to)
        _sh("ip", "-n", gate, "link", "set", to, "up")
        _sh("ip", "-n", gate, "route", "add", "default", "via", "172.30.252.1")
        with self.inside("gate"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        masquerade = (
            "table inet n { chain p { type nat hook postrouting priority 100; masquerade; }; }"
        )
        _sh("ip", "netns", "exec", gate, "nft", "-f", "-", text=masquerade)
        _sh(
            "ip", "-n", self._n["far"], "route", "replace", "172.30.252.0/30", "via", "172.30.253.1"
        )
        self.listen(WEB, 9081, self._web)
        self.listen(WEB, 9444, self._secure)

    def run(self, *words: str) -> str:
        """A command in the machine's namespace."""
        argv = ["ip", "netns", "exec", self._n["mach"], *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    # --- the machine's side ---------------------------------------------------------------------

    def connect(self, address: str, port: int, timeout_s: float = 10) -> socket.socket:
        with self.inside("mach"):
            sock = socket.socket()
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        return sock

    def ask(self, wire: bytes, *, tcp: bool = False, timeout_s: float = 5) -> bytes:
        with self.inside("mach"):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(timeout_s)
            sock.connect((GATEWAY, DNS_PORT))
            if not tcp:
                sock.send(wire)
                return sock.recv(65535)
            sock.sendall(len(wire).to_bytes(2) + wire)
            file = sock.makefile("rb")
            return file.read(int.from_bytes(file.read(2)))

    def look_up(self, name: str, kind: str = "A", **how: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=0)
        return dns.message.from_wire(self.ask(query.to_wire(), **how))

    def http(self, address: str, port: int, request: bytes) -> bytes:
        """All that comes until the other side ends."""
        with self.connect(address, port) as sock:
            sock.sendall(request)
            return read_all(sock)

    def get(self, host: str, address: str = WEB, port: int = 80, path: str = "/") -> bytes:
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        return self.http(address, port, head.encode())

    def shake(
        self, name: str | None, address: str = WEB, port: int = 443, alpn: bool = False
    ) -> ssl.SSLSocket:
        """Raises ssl.SSLError, OSError."""
        context = ssl.create_default_context(cafile=str(self.place / "ca.pem"))
        if name is None:
            context.check_hostname = False
        sock = self.connect(address, port)
        try:
            return context.wrap_socket(sock, server_hostname=name)
        except BaseException:
            sock.close()
            raise

    # --- the far side ---------------------------------------------------------------------------

    def _serve(self) -> None:
        for name in ("allowed.test", "other.test"):
            self.tls[name] = self._certificate(name)
        with self.inside("far"):
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((DNS, 53))
            self._run(self._dns_udp, udp)
            self._listen(DNS, 53, self._dns_tcp)
            for address in (WEB, OTHER, PRIVATE):
                self._listen(address, 80, self._web)
                self._listen(address, 8080, self._web)
                self._listen(address, 443, self._secure)
            self._listen(PLAIN, 80, self._talker)
            self._listen(PLAIN, 443, self._echo)
            self._listen(PLAIN, 9000, self._echo)

    def listen(self, address: str, port: int, handler: Callable[[socket.socket], None]) -> None:
        with self.inside("far"):
            self._listen(address, port, handler)

    def _listen(self, address: str, port: int, handler: Callable[[socket.socket], None]) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
        self._run(lambda server: self._accept(server, handler), sock)

    def _run(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        sock.settimeout(0.1)

        def body() -> None:
            with sock:
                work(sock)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self, server: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        while not self._stop.is_set():
            try:
                sock, _ = server.accept()
            except TimeoutError:
                continue
            sock.settimeout(20)

            def body(sock: socket.socket = sock) -> None:
                with sock, contextlib.suppress(OSError):
                    handler(sock)

            threading.Thread(target=body, daemon=True).start()

    def _dns_udp(self, sock: socket.socket) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                wire, whose = sock.recvfrom(4096)
                if (said := self.names.answer(wire, udp=True)) is not None:
                    sock.sendto(said, whose)

    def _dns_tcp(self, sock: socket.socket) -> None:
        file = sock.makefile("rb")
        said = self.names.answer(file.read(int.from_bytes(file.read(2))), udp=False)
        if said is not None:
            sock.sendall(len(said).to_bytes(2) + said)

    def _web(self, sock: socket.socket) -> None:
        """HTTP/1.1 as servers are: /N gives N bytes, /close ends after it, /early answers before the body."""
        address, port = sock.getsockname()
        file = sock.makefile("rb")
        while line := file.readline():
            fields: dict[str, str] = {}
            while (raw := file.readline()) not in (b"\r\n", b""):
                name, _, value = raw.decode("latin-1").partition(":")
                fields[name.lower()] = value.strip()
            method, target, _ = line.decode("latin-1").split(" ", 2)
            self.far.heard.append((address, port, f"{method} {target}", fields.get("host", "")))
            self.far.sockets.append(sock)
            body = b""
            if target != "/early":
                if fields.get("transfer-encoding") == "chunked":
                    while size := int(file.readline().split(b";")[0], 16):
                        body += file.read(size)
                        file.readline()
                    while file.readline() not in (b"\r\n", b""):
                        pass
                else:
                    body = file.read(int(fields.get("content-length", "0")))
            self.far.bodies.append(body)
            if fields.get("upgrade") == "websocket":
                sock.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                    b"Connection: Upgrade\r\n\r\nhello"
                )
                while data := sock.recv(4096):
                    sock.sendall(data)
                return
            path = target.removeprefix("http://").partition("/")[2]
            if path == "hang":
                time.sleep(20)
            if path.isdigit():
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % int(path))
                if method != "HEAD":
                    send_zeros(sock, int(path))
            elif path == "chunked":
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n"
                )
            elif path == "continue":
                sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
            elif path == "unframed":
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nto the end")
                return
            else:
                said = f"{address} {fields.get('host')} {len(body)}".encode()
                close = b"Connection: close\r\n" if path == "close" else b""
                sock.sendall(
                    b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (close, len(said), said)
                )
                if close or fields.get("connection") == "close":
                    return

    def _secure(self, sock: socket.socket) -> None:
        address, port = sock.getsockname()
        said: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.place / "allowed.test.pem", self.place / "allowed.test.key")

        def by_name(tls: ssl.SSLSocket, name: str | None, _: object) -> None:
            said.append(name)
            if name in self.tls:
                tls.context = self.tls[name]

        context.sni_callback = by_name  # type: ignore[assignment]
        with context.wrap_socket(sock, server_side=True) as tls:
            self.far.heard.append((address, port, "tls", (said or [None])[0] or ""))
            self.far.sockets.append(tls)
            while data := tls.recv(65536):
                if data.startswith(b"GET /"):
                    size = int(data[5:].split(b" ")[0])
                    tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                    send_zeros(tls, size)
                else:
                    tls.sendall(data)

    def _talker(self, sock: socket.socket) -> None:
        """Speaks first, as SMTP does."""
        sock.sendall(b"220 here\r\n")
        self.far.heard.append((*sock.getsockname(), sock.recv(100).decode("latin-1"), ""))

    def _echo(self, sock: socket.socket) -> None:
        self.far.heard.append((*sock.getsockname(), "raw", ""))
        while data := sock.recv(65536):
            sock.sendall(data)

    def _certificate(self, name: str) -> ssl.SSLContext:
        ca, key = self.place / "ca.pem", self.place / "ca.key"
        if not ca.exists():
            _sh(
                *f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {ca} -days 2 -subj /CN=ca".split()
            )
        own, cert = self.place / f"{name}.key", self.place / f"{name}.pem"
        _sh(
            *f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {own} -out {cert} -days 2 -CA {ca} -CAkey {key}".split(),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},DNS:front.{name}"),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, own)
        return context


def send_zeros(sock: socket.socket, count: int) -> None:
    block = bytes(256 * 1024)
    while count:
        piece = min(count, len(block))
        sock.sendall(block[:piece])
        count -= piece


def read_all(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


def was_reset(sock: socket.socket, timeout_s: float = 5) -> bool:
    """Whether it ends by a reset, whatever was under way before; not by an end of the stream."""
    if isinstance(sock, ssl.SSLSocket):  # which makes an end of a reset
        sock = socket.socket(fileno=sock.detach())
        with sock:
            return was_reset(sock, timeout_s)
    sock.settimeout(timeout_s)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        return True
    return False


def _sweep() -> None:
    """What tests left that were killed; only under the lock."""
    for path in Path("/run/netns").glob("rteg-*"):
        netns.delete(path.name)
    for link in Path("/sys/class/net").glob("rte[0-9]*"):
        subprocess.run(["ip", "link", "del", link.name], check=False, capture_output=True)
