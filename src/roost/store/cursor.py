"""Page cursors: opaque, and only ours come back."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import UTC, datetime, timedelta

from roost.errors import InvalidRequestError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Cursors:
    """Makes and reads cursors of ``(created_at, id)``; ``scope`` is whatever the list was of (tenant, filters):
    a cursor counts only there."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"roost-cursor-v1" + secret).digest()

    def encode(self, scope: str, at: datetime, id: str) -> str:
        body = f"{(at - _EPOCH) // _MICROSECOND}:{id}".encode()
        return _text(self._tag(scope, body) + body)

    def decode(self, scope: str, cursor: str) -> tuple[datetime, str]:
        """Raises INVALID_CURSOR."""
        try:
            raw = base64.b64decode(
                cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True
            )
        except (ValueError, binascii.Error):
            raw = b""
        tag, body = raw[:12], raw[12:]
        known = hmac.compare_digest(tag, self._tag(scope, body))
        # Base64 has spellings that read the same: only ours counts.
        if len(cursor) > 512 or not known or _text(raw) != cursor:
            raise InvalidRequestError(
                "This cursor is not one of this list's: use next_cursor of the answer before, with the same "
                "filters, or start again without a cursor.",
                code="INVALID_CURSOR",
            )
        micros, _, id = body.decode().partition(":")
        return _EPOCH + int(micros) * _MICROSECOND, id

    def _tag(self, scope: str, body: bytes) -> bytes:
        return hmac.digest(self._key, scope.encode() + b"\0" + body, "sha256")[:12]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
