"""Certificates that the boundary shows to machines: one for a name, signed by that machine's own authority."""

from __future__ import annotations

import datetime
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from mitmproxy import certs
from mitmproxy.addons import tlsconfig

DAYS = 7
EARLY = datetime.timedelta(days=2)  # for machines whose clock is behind
KEPT = 1024


class Leaves:
    """``of`` gives one that holds for days; a key of this process is in all of them."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._made: OrderedDict[tuple[str, str], tuple[datetime.datetime, Any]] = OrderedDict()

    def of(self, certificate: str, key: str, name: str) -> certs.CertStoreEntry:
        now = datetime.datetime.now(datetime.UTC)
        known = self._made.get((certificate, name))
        if known is not None and known[0] > now:
            self._made.move_to_end((certificate, name))
            return known[1]
        authority = x509.load_pem_x509_certificate(certificate.encode())
        signer = serialization.load_pem_private_key(key.encode(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(authority.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - EARLY)
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
            .sign(signer, hashes.SHA256())
        )
        entry = certs.CertStoreEntry(certs.Cert(leaf), self._key, None, [])
        self._made[certificate, name] = (now + datetime.timedelta(days=DAYS / 2), entry)
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return entry


class Tls(tlsconfig.TlsConfig):
    """mitmproxy's own settings of TLS, but for whose certificate is shown. It writes no authority anywhere."""

    def __init__(self, boundary: Any) -> None:
        self._boundary = boundary
        self._leaves = Leaves()
        self.certstore = SimpleNamespace(dhparams=None)

    def configure(self, updated: Any) -> None:
        pass

    def get_cert(self, conn_context: Any) -> certs.CertStoreEntry:
        """Raises for a name other than the one the connection is for: the handshake then fails."""
        machine, name = self._boundary.peer(conn_context.client)
        if conn_context.client.sni != name:
            raise ValueError("the name asked for is not the one that was proven")
        return self._leaves.of(machine.certificate, machine.key, name)
