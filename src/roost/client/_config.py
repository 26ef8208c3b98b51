"""Where the daemon is and who we are: arguments, then the environment, then this host's key file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from roost import defaults
from roost.errors import error


@dataclass(frozen=True, slots=True)
class Config:
    url: str  # no slash at its end
    api_key: str


def fingerprint() -> tuple[str | None, ...]:
    """What a default client was made from; when it changes, another client is due."""
    names = (
        "ROOST_URL",
        "ROOST_PORT",
        "ROOST_API_KEY",
        "ROOST_DATA_DIR",
        "ROOST_CA",
        "ROOST_TLS_CERT",
    )
    return (str(os.getpid()), *(os.environ.get(n) for n in names))


def data_dir() -> Path:
    return Path(os.environ.get("ROOST_DATA_DIR") or defaults.data_dir())


def default_url() -> str:
    scheme = "https" if os.environ.get("ROOST_TLS_CERT") else "http"
    port = os.environ.get("ROOST_PORT") or 7676
    return os.environ.get("ROOST_URL") or f"{scheme}://127.0.0.1:{port}"


def resolve(url: str | None = None, api_key: str | None = None) -> Config:
    """The settings in force.

    The key file is read only for a daemon on this host: it is never sent elsewhere. Raises
    InvalidRequestError for a URL that is none, AuthError when there is no key or it cannot be read.
    """
    url = (url or default_url()).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise error("CONFIG_INVALID", f"ROOST_URL is no http(s) address: {url!r}.")
    key = api_key or os.environ.get("ROOST_API_KEY")
    if not key:
        if not is_loopback(parts.hostname):
            raise error("AUTH_REQUIRED", f"No key for {url}. Set ROOST_API_KEY or pass api_key=.")
        key = read_key_file(data_dir() / "key")
    if not key.isascii() or any(c.isspace() for c in key):
        raise error("AUTH_INVALID", "The API key has characters that no key has.")
    return Config(url, key)


def read_key_file(path: Path) -> str:
    """The key the daemon left for this host's owner (mode 0600)."""
    try:
        key = path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        raise error(
            "AUTH_REQUIRED",
            f"No API key: ROOST_API_KEY is not set and there is no {path}. Start the daemon with "
            "`roost up`, or set ROOST_URL and ROOST_API_KEY to use another host's.",
        ) from None
    except OSError as exc:
        raise error(
            "AUTH_REQUIRED",
            f"The API key in {path} cannot be read ({exc.strerror}). Run as the user that owns it, "
            "or set ROOST_API_KEY.",
        ) from exc
    if not key:
        raise error("AUTH_REQUIRED", f"{path} is empty. Restart the daemon, or set ROOST_API_KEY.")
    return key


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
