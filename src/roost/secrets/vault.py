"""Values as they lie in the database: AES-256-GCM, each under its own nonce, bound to where it belongs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from roost.errors import InternalError

_VERSION = b"\x01"
_NONCE = 12
KEY_FILE = "secrets.key"


class Vault:
    """``belongs`` is what a value is bound to (a machine's id and the secret's name): under another it does not open."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def load(cls, data_dir: Path) -> Vault:
        """The key is a file of its own, made at first use, 0600. Raises INTERNAL for one that is damaged."""
        path = data_dir / KEY_FILE
        try:
            key = bytes.fromhex(path.read_text())
        except FileNotFoundError:
            key = secrets.token_bytes(32)
            _write(path, key.hex().encode())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise InternalError(
                f"{path} is damaged: put it back from a backup. Without it stored secrets cannot be read."
            )
        return cls(key)

    def seal(self, value: str, *belongs: str) -> bytes:
        nonce = secrets.token_bytes(_NONCE)
        return _VERSION + nonce + self._cipher.encrypt(nonce, value.encode(), _bound(belongs))

    def open(self, sealed: bytes, *belongs: str) -> str:
        """Raises INTERNAL where it was sealed for something else or with another key."""
        if sealed[:1] != _VERSION:
            raise _unreadable()
        nonce, rest = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        try:
            return self._cipher.decrypt(nonce, rest, _bound(belongs)).decode()
        except (InvalidTag, ValueError):
            raise _unreadable() from None


def _bound(belongs: tuple[str, ...]) -> bytes:
    return b"\0".join(each.encode() for each in belongs)


def _unreadable() -> InternalError:
    return InternalError(
        f"A stored secret cannot be read with this host's key ({KEY_FILE} in ROOST_DATA_DIR): set it again."
    )


def _write(path: Path, content: bytes) -> None:
    """Whole and durable before it is used."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
