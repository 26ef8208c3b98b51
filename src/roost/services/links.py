"""Links: whoever has one may see a port until it expires. No row is kept of them.

    rlt_<base64url of: expiry (u64, seconds since 1970, big-endian), 16 random bytes, HMAC-SHA256 of both and the port>

The port's salt is in the HMAC: a new salt ends all links of the port, as its removal does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct

from roost.services.models import Port

PREFIX = "rlt_"
_SIZE = 8 + 16 + 32


class Links:
    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"roost-link-v1" + secret).digest()

    def make(self, port: Port, expires: int) -> str:
        """``expires``: seconds since 1970."""
        return self.sign(_of(port), expires)

    def read(self, port: Port, token: str) -> int | None:
        """When it expires (or has); None for what is no link of this port."""
        return self.verify(_of(port), token)

    def sign(self, about: str, expires: int) -> str:
        """A token that says until when, to whom ``about`` is known."""
        body = struct.pack(">Q", expires) + secrets.token_bytes(16)
        whole = base64.urlsafe_b64encode(body + self._tag(about, body))
        return PREFIX + whole.decode().rstrip("=")

    def verify(self, about: str, token: str) -> int | None:
        """When it expires (or has); None for what was not signed for this."""
        if len(token) > 128 or not token.startswith(PREFIX):
            return None
        text = token.removeprefix(PREFIX)
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return None
        body, tag = raw[:24], raw[24:]
        if len(raw) != _SIZE or not hmac.compare_digest(tag, self._tag(about, body)):
            return None
        expires: int = struct.unpack(">Q", body[:8])[0]
        return expires

    def _tag(self, about: str, body: bytes) -> bytes:
        return hmac.digest(self._key, about.encode() + b":" + body, "sha256")


def _of(port: Port) -> str:
    return f"{port.id}:{port.host_id}:{port.port}:{port.salt}"
