"""Where a request's key may stand: found here, judged by ``Keys``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SUBPROTOCOL = "roost.key."
MAX_KEY = 256


def credential(
    headers: Iterable[tuple[bytes, bytes]], subprotocols: Sequence[str] = ()
) -> str | None:
    """The key as sent (Authorization: Bearer, X-API-Key, WebSocket subprotocol, in that order), or None.

    What is too long or not ASCII comes back as "", which is no key of anybody.
    """
    bearer: bytes | None = None
    plain: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            bearer = rest.strip() if scheme.lower() == b"bearer" else b""
        elif name == b"x-api-key":
            plain = value.strip()
    if bearer is not None:
        return _text(bearer)
    if plain is not None:
        return _text(plain)
    for offered in subprotocols:
        if offered.startswith(SUBPROTOCOL):
            return _text(offered.removeprefix(SUBPROTOCOL).encode())
    return None


def prefix(key: str) -> str:
    """What stands before the last underscore: it may choose a dialect and proves nothing."""
    return key.rpartition("_")[0]


def subprotocol(offered: Sequence[str]) -> str | None:
    """The one to answer with: a real one if any, for a browser takes no silence."""
    real = [each for each in offered if not each.startswith(SUBPROTOCOL)]
    return real[0] if real else (offered[0] if offered else None)


def _text(raw: bytes) -> str:
    if len(raw) > MAX_KEY:
        return ""
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        return ""
