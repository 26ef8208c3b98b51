"""The port's certificate, where there is one: read at the start, again when told to, and never worn half.

HTTP/1.1 is the first protocol offered and HTTP/2 the second, since what speaks HTTP/2 here is gRPC: a browser or curl
offers both and gets the first, gRPC offers HTTP/2 alone.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import structlog

from roost.errors import InvalidRequestError, RoostError

log = structlog.get_logger(__name__)

PROTOCOLS = ["http/1.1", "h2"]


class Tls:
    """``context`` is for the connections from now on."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises CONFIG_INVALID for files that cannot be read, or are no pair."""
        self._certificate = certificate
        self._key = key
        self.context = load(certificate, key)

    def reload(self) -> None:
        """What stands in the files now, if that is a pair; else what was goes on, and the log says so."""
        try:
            self.context = load(self._certificate, self._key)
        except RoostError as failure:
            log.error("tls.reload", error_code=failure.code, message=failure.message)
        else:
            log.info("tls.reload", certificate=str(self._certificate))


def load(certificate: Path, key: Path) -> ssl.SSLContext:
    """Raises CONFIG_INVALID."""
    for setting, path in (("ROOST_TLS_CERT", certificate), ("ROOST_TLS_KEY", key)):
        try:
            with path.open("rb"):
                pass
        except OSError as failure:
            raise _bad(f"{setting} {path} cannot be read: {failure.strerror}.") from failure
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_alpn_protocols(PROTOCOLS)
    try:
        # A password is asked of nobody: a daemon has no terminal.
        made.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as failure:
        reason = failure.reason or str(failure)
        if reason == "KEY_VALUES_MISMATCH":
            raise _bad(
                f"ROOST_TLS_KEY {key} is not the key of ROOST_TLS_CERT {certificate}."
            ) from failure
        raise _bad(
            f"ROOST_TLS_CERT {certificate} and ROOST_TLS_KEY {key} are no PEM certificate and key: {reason}."
        ) from failure
    return made


def of(certificate: str, key: str) -> Tls | None:
    """None where neither is set. Raises CONFIG_INVALID."""
    if not certificate and not key:
        return None
    if not certificate or not key:
        missing = "ROOST_TLS_KEY" if certificate else "ROOST_TLS_CERT"
        raise _bad(f"{missing} is missing: a certificate and its key are set together.")
    return Tls(Path(certificate), Path(key))


def _no_password() -> str:
    raise _bad("ROOST_TLS_KEY needs a passphrase: give one without.")


def _bad(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="CONFIG_INVALID")
