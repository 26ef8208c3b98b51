"""The port with a certificate: HTTP, WebSockets and gRPC over TLS, from an authority of the tests' own."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from roost.client._tls import context
from roost.daemon import load_settings, url
from roost.errors import InvalidRequestError
from roost.gateway import tls
from roost.settings import Settings
from tests.unit.api.kit import Served, until


@dataclass
class Authority:
    directory: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the tests")])
        made = self._sign(self.name, self.key.public_key(), authority=True)
        self.ca = self.directory / "ca.pem"
        self.ca.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, called: str, *names: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, called)])
        made = self._sign(subject, key.public_key(), names=names)
        cert, secret = self.directory / f"{called}.pem", self.directory / f"{called}.key"
        cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert, secret

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        names: tuple[str, ...] = (),
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            made = made.add_extension(alternatives, critical=False)
        return made.sign(self.key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def secure(tmp_path: Path, authority: Authority) -> AsyncIterator[Served]:
    cert, key = authority.issue("first", "localhost")
    served = Served(tmp_path, None, first_bytes_s=2.0)
    served.tls = tls.Tls(cert, key)
    await served.open()
    try:
        yield served
    finally:
        await served.close()


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


async def shown(
    port: int, trust: ssl.SSLContext, protocols: list[str] | None = None
) -> tuple[str, str | None]:
    if protocols:
        trust.set_alpn_protocols(protocols)
    _, writer = await asyncio.open_connection("localhost", port, ssl=trust, family=2)
    at = writer.get_extra_info("ssl_object")
    subject = dict(pair[0] for pair in at.getpeercert()["subject"])
    writer.close()
    return subject["commonName"], at.selected_alpn_protocol()


async def test_http_and_websocket(secure: Served, authority: Authority) -> None:
    trust = trusting(authority)
    async with httpx.AsyncClient(verify=trust, trust_env=False, timeout=20) as http:
        base = f"https://localhost:{secure.port}"
        assert (await http.get(f"{base}/healthz")).json() == {"status": "ok"}
        headers = {"authorization": f"Bearer {secure.key}"}
        big = await http.post(
            f"{base}/v1/machines", headers=headers, json={"labels": {"a": "x" * 5_000_000}}
        )
        assert big.status_code == 413
        with pytest.raises(httpx.HTTPError):
            await http.get(f"http://localhost:{secure.port}/healthz")
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"wss://localhost:{secure.port}/v1/x", ssl=trust, proxy=None):
            pass
    assert caught.value.response.status_code == 401


async def test_grpc(secure: Served, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{secure.port}", credentials) as channel:
        call = channel.unary_unary(
            "/nothing.Here/Call", request_serializer=None, response_deserializer=None
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_protocols(secure: Served, authority: Authority) -> None:
    """A browser and curl offer both: what they would say in HTTP/2 is for gRPC alone here."""
    assert (await shown(secure.port, trusting(authority), ["h2", "http/1.1"]))[1] == "http/1.1"
    assert (await shown(secure.port, trusting(authority), ["h2"]))[1] == "h2"


async def test_a_new_certificate_is_read_and_a_wrong_one_is_not(
    secure: Served, authority: Authority
) -> None:
    assert secure.tls is not None
    cert, key = authority.issue("second", "localhost")
    first = authority.directory / "first.pem", authority.directory / "first.key"
    first[0].write_bytes(cert.read_bytes())
    secure.tls.reload()  # the new certificate with the old key
    assert (await shown(secure.port, trusting(authority)))[0] == "first"
    first[1].write_bytes(key.read_bytes())
    secure.tls.reload()
    assert (await shown(secure.port, trusting(authority)))[0] == "second"


async def test_handshakes_are_counted_and_end(secure: Served) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", secure.port) for _ in range(5)]
    junk = await asyncio.open_connection("127.0.0.1", secure.port)
    await until(lambda: secure.front.open_connections >= 5)
    junk[1].write(b"GET / HTTP/1.1\r\n\r\n")
    for reader, writer in (*idle, junk):
        await asyncio.wait_for(reader.read(), 10)
        writer.close()
    await until(lambda: secure.front.open_connections == 0)


async def test_first_bytes_with_the_handshake(secure: Served, authority: Authority) -> None:
    """A request that comes in the same breath as the handshake's end is not lost."""
    for _ in range(20):
        reader, writer = await asyncio.open_connection(
            "localhost", secure.port, ssl=trusting(authority), family=2
        )
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.read(), 10)
        writer.close()


def test_wrong_files(tmp_path: Path, authority: Authority) -> None:
    cert, key = authority.issue("one", "localhost")
    _, other = authority.issue("two", "localhost")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    for certificate, secret, said in (
        (cert, other, "is not the key of"),
        (tmp_path / "none", key, "ROOST_TLS_CERT"),
        (cert, tmp_path / "none", "ROOST_TLS_KEY"),
        (junk, key, "no PEM"),
        (cert, junk, "no PEM"),
    ):
        with pytest.raises(InvalidRequestError, match=said) as caught:
            tls.Tls(certificate, secret)
        assert caught.value.code == "CONFIG_INVALID"
    with pytest.raises(InvalidRequestError, match="ROOST_TLS_KEY is missing"):
        tls.of(str(cert), "")
    assert tls.of("", "") is None


def test_the_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_TLS_CERT", "/x")
    assert url(load_settings()).startswith("https://127.0.0.1:")
    assert url(Settings.model_validate({"tls_cert": ""})).startswith("http://")


async def test_the_sdk_trusts_its_hosts_certificate_and_no_other(
    secure: Served, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"https://127.0.0.1:{secure.port}"  # a name the certificate does not have

    async def reached(where: str) -> bool:
        trust = context(where)
        assert trust is not None
        async with httpx.AsyncClient(verify=trust, trust_env=False) as http:
            try:
                return (await http.get(f"{where}/healthz")).status_code == 200
            except httpx.ConnectError:
                return False

    assert not await reached(base)
    monkeypatch.setenv("ROOST_TLS_CERT", str(authority.directory / "first.pem"))
    assert await reached(base)
    other, _ = authority.issue("other", "localhost")
    monkeypatch.setenv("ROOST_TLS_CERT", str(other))
    assert not await reached(base)
    monkeypatch.delenv("ROOST_TLS_CERT")
    monkeypatch.setenv("ROOST_CA", str(authority.ca))
    assert await reached(f"https://localhost:{secure.port}")
    assert context("http://localhost") is None
