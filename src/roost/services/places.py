"""Where previews are: host names and URLs of machines' ports. Pure.

{port}-{machine id}.{domain}      {name}.{domain}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_PLACE = re.compile(r"([1-9]\d{0,4})-([a-z0-9]{26,40})", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
# Names people would take for Roost's own, or that browsers and mailers look up by themselves.
RESERVED = frozenset(
    {"admin", "api", "autodiscover", "localhost", "mail", "roost", "sandbox", "wpad", "www"}
    | {"account", "accounts", "auth", "id", "login", "oauth", "signin", "sso"}
)


@dataclass(frozen=True, slots=True)
class Place:
    """A port of a machine, as a host names it."""

    machine_id: str
    port: int


class Places:
    """``url``: how browsers reach ``domain``: scheme, host, port. ``told``: somebody said so, it is no guess."""

    def __init__(self, domain: str, url: str, told: bool = False) -> None:
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.told = told
        self._suffix = f".{domain}"
        self._port = f":{parts.port}" if parts.port else ""

    @property
    def domain(self) -> str:
        return self._suffix[1:]

    @property
    def below(self) -> str:
        """The domain, with the port it is reached at."""
        return f"{self._suffix[1:]}{self._port}"

    def label(self, host: str) -> str | None:
        """What a Host header says below the domain; None where it is none of ours."""
        name = host.partition(":")[0].lower().removesuffix(".")
        return name[: -len(self._suffix)] if name.endswith(self._suffix) else None

    def url(self, label: str) -> str:
        return f"{self.scheme}://{label}{self._suffix}{self._port}"

    @staticmethod
    def label_of(machine_id: str, port: int) -> str:
        return f"{port}-{machine_id}"

    @staticmethod
    def read(label: str) -> Place | None:
        """None for a name."""
        match = _PLACE.fullmatch(label)
        if match is None or int(match[1]) > 65535:
            return None
        return Place(match[2], int(match[1]))


def is_name(text: str) -> bool:
    """Whether a port may be called so."""
    return (
        _NAME.fullmatch(text) is not None
        and text not in RESERVED
        and not text.startswith("xn--")
        and _PLACE.fullmatch(text) is None
    )
