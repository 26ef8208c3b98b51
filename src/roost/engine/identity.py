"""Who this host is: its secret and its node id, made once in data_dir.

The secret makes agents' tokens and cursors; it is never logged and never leaves the host.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from roost import ids


@dataclass(frozen=True, slots=True)
class HostIdentity:
    node_id: str
    secret: bytes = field(repr=False)

    @staticmethod
    def load(data_dir: Path) -> HostIdentity:
        data_dir.mkdir(parents=True, exist_ok=True)
        secret = _once(data_dir / "secret", secrets.token_hex(32))
        return HostIdentity(_once(data_dir / "node_id", ids.new()), bytes.fromhex(secret))

    def agent_token(self, machine_id: str, generation: int) -> str:
        """Another at each start; the one of the start before counts no more."""
        return hmac.digest(self.secret, f"{machine_id}:{generation}".encode(), "sha256").hex()


def linux_machine_id(machine_id: str) -> str:
    """32 hex digits for /etc/machine-id, the same for the machine's whole life."""
    return hashlib.sha256(b"roost-machine-id:" + machine_id.encode()).hexdigest()[:32]


def _once(path: Path, value: str) -> str:
    """The file's content; ``value`` is put there, durably and whole, when there is no file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return value
