"""A real boundary, a real HTTPS server with an authority of its own, and a machine's side of a connection."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from roost.secrets import authority
from roost.secrets.process import INSTALLED, Process

NAME = "api.example.org"
M = "m" * 26
VALUE = "canary-7Gk/2+fQ=x9Zb4"
PLACEHOLDER = "roost-secret-token-0123456789abcdef"


def secret(**said: Any) -> dict[str, Any]:
    return {
        "hosts": [{"name": NAME, "ports": [443]}],
        "value": VALUE,
        "header": None,
        "format": "{value}",
        "placeholder": None,
        "in_body": False,
        **said,
    }


def leaf(signer: authority.Authority, name: str) -> str:
    """Certificate and key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    by = x509.load_pem_x509_certificate(signer.certificate.encode())
    signing = serialization.load_pem_private_key(signer.key.encode(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(by.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(pem).decode() + private.decode()


@dataclass
class Seen:
    """A request as it arrived."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


Answer = Callable[[Seen, Any], None]


def echo(seen: Seen, out: Any) -> None:
    """All that came, as it came."""
    text = json.dumps([seen.line, seen.headers, seen.body.decode()]).encode()
    told = seen.all("authorization") or ["none"]
    out.write(b"HTTP/1.1 200 OK\r\nX-Told: " + told[0].encode() + b"\r\n")
    out.write(b"Content-Length: %d\r\n\r\n" % len(text) + text)


@dataclass
class Server:
    port: int
    answer: Answer = echo
    seen: list[Seen] = field(default_factory=list)

    @property
    def last(self) -> Seen:
        return self.seen[-1]


@contextlib.contextmanager
def serving(pem: Path | None) -> Iterator[Server]:
    """HTTP/1.1, over TLS where there is a certificate."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    server, stop = Server(listener.getsockname()[1]), threading.Event()
    context = None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)

    def one(raw: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), raw:
            raw.settimeout(20)
            sock = context.wrap_socket(raw, server_side=True) if context else raw
            with sock, sock.makefile("rwb") as file:
                while line := file.readline():
                    headers = []
                    while (each := file.readline().strip()) != b"":
                        name, _, value = each.decode().partition(":")
                        headers.append((name, value.strip()))
                    seen = Seen(line.decode().strip(), headers, b"")
                    for length in seen.all("content-length"):
                        seen.body = file.read(int(length))
                    server.seen.append(seen)
                    server.answer(seen, file)
                    file.flush()

    def accept() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
        listener.close()


class World:
    """``state`` is the machine's; change it and ``tell``."""

    def __init__(self, tmp: Path) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.machine = authority.create(M, now)
        self.outside = authority.create("outside", now)
        self.ca = tmp / "ca.pem"
        self.ca.write_text(self.outside.certificate)
        self.ca.chmod(0o644)
        self.states: dict[str, Any] = {}
        self.process = Process(INSTALLED, self.ca, self._all, uid=None)

    async def _all(self) -> dict[str, Any]:
        return dict(self.states)

    async def tell(self, *secrets: dict[str, Any], machine: str = M) -> None:
        self.states[machine] = {
            "certificate": self.machine.certificate,
            "key": self.machine.key,
            "secrets": list(secrets),
        }
        await self.process.tell({machine: self.states[machine]})

    def dial(
        self, port: int, name: str = NAME, machine: str = M, password: str | None = None
    ) -> socket.socket:
        """As the egress process does. Raises ConnectionError where it is refused."""
        _, host, at = self.process.endpoint.split(":")
        sock = socket.create_connection((host, int(at)), timeout=20)
        user = f"{machine}@{name}".encode()
        word = (self.process.password if password is None else password).encode()
        sock.sendall(b"\5\1\2")
        _read(sock, 2)
        sock.sendall(b"\1" + bytes([len(user)]) + user + bytes([len(word)]) + word)
        if _read(sock, 2)[1] != 0:
            sock.close()
            raise ConnectionRefusedError("wrong user or password")
        sock.sendall(b"\5\1\0\1" + socket.inet_aton("127.0.0.1") + struct.pack("!H", port))
        if (said := _read(sock, 10)[1]) != 0:
            sock.close()
            raise ConnectionRefusedError(f"SOCKS {said}")
        return sock

    def tls(self, sock: socket.socket, name: str = NAME) -> ssl.SSLSocket:
        """As a program in the machine, which believes its own authority alone."""
        context = ssl.create_default_context(cadata=self.machine.certificate)
        return context.wrap_socket(sock, server_hostname=name)


def _read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError("hung up")
        data += part
    return data


def ask(sock: socket.socket, text: str) -> tuple[str, dict[str, str], bytes]:
    """Sends a request, reads the whole answer: status line, headers, body."""
    sock.sendall(text.replace("\n", "\r\n").encode())
    with sock.makefile("rb") as file:
        status = file.readline().decode().strip()
        headers: dict[str, str] = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if "content-length" in headers:
            return status, headers, file.read(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            body = bytearray()
            while size := int(file.readline(), 16):
                body += file.read(size)
                file.readline()
            file.readline()
            return status, headers, bytes(body)
        return status, headers, file.read()


@contextlib.asynccontextmanager
async def world(tmp: Path) -> AsyncIterator[World]:
    if not INSTALLED.exists():
        pytest.skip("mitmproxy's environment is not installed: scripts/test makes it")
    made = World(tmp)
    try:
        yield made
    finally:
        await made.process.close()
