"""The key this host shows to SSH clients: one, ed25519, made at the first start and kept for good."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import asyncssh

from roost.errors import InvalidRequestError

NAME = "ssh_host_ed25519_key"


def load(data_dir: Path) -> asyncssh.SSHKey:
    """Made where there is none, readable by its owner alone. Raises CONFIG_INVALID for one that cannot be used."""
    path = data_dir / NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _make(path)
    except OSError as failure:
        raise _unusable(path, failure.strerror or str(failure)) from failure
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            raise _unusable(path, "others may read it")
        try:
            return asyncssh.import_private_key(file.read(16384))
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as failure:
            raise _unusable(path, "it is no private key without a passphrase") from failure


def public(key: asyncssh.SSHKey) -> str:
    """``<type> <base64>``, as in known_hosts."""
    return " ".join(key.export_public_key().decode().split()[:2])


def _make(path: Path) -> asyncssh.SSHKey:
    key = asyncssh.generate_private_key("ssh-ed25519", comment="roost")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(key.export_private_key())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return key


def _unusable(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The SSH host key {path} cannot be used: {why}. Mend it, or remove it for a new one (clients will then"
        " warn that the host has changed).",
        code="CONFIG_INVALID",
    )
