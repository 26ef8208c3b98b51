"""Whom the SDK trusts to be the daemon, where it speaks TLS. Shared by both halves.

The usual authorities (SSL_CERT_FILE replaces them), those of the PEM file ROOST_CA besides; and on the daemon's own host,
where ROOST_TLS_CERT names its certificate, exactly that one, whatever name it is for.
"""

from __future__ import annotations

import functools
import os
import ssl
from urllib.parse import urlsplit

from roost.client._config import is_loopback
from roost.errors import error


def context(url: str) -> ssl.SSLContext | None:
    """None for a plain address. Raises InvalidRequestError where a file cannot be read."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "wss"):
        return None
    own = os.environ.get("ROOST_TLS_CERT")
    if own and is_loopback(parts.hostname or ""):
        return _pinned(own, os.stat(own).st_mtime_ns if os.path.exists(own) else 0)
    return _usual(os.environ.get("ROOST_CA") or "", os.environ.get("SSL_CERT_FILE") or "")


@functools.lru_cache(4)
def _pinned(path: str, _changed: int) -> ssl.SSLContext:
    """Of whoever holds the key of the certificate in this file, and of nobody else."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its issuer need not be known
    _load(made, "ROOST_TLS_CERT", path)
    return made


@functools.lru_cache(4)
def _usual(ca: str, _instead: str) -> ssl.SSLContext:
    import httpx

    made = httpx.create_ssl_context()
    if ca:
        _load(made, "ROOST_CA", ca)
    return made


def _load(into: ssl.SSLContext, setting: str, path: str) -> None:
    try:
        into.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as exc:
        raise error("CONFIG_INVALID", f"{setting} {path} cannot be used: {exc}.") from exc
