"""What the boundary knows of one machine, and what it does with a secret: pure, and in its own environment."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from redaction import Needles

CLEAR_PORT = 80  # the one on which a secret that names it goes out without TLS


@dataclass(frozen=True, slots=True)
class Host:
    """``name`` may be a wildcard ``*.NAME``, which is every name below NAME and not NAME itself."""

    name: str
    ports: tuple[int, ...]

    def covers(self, name: str, port: int) -> bool:
        if port not in self.ports:
            return False
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) > len(self.name) - 1
        return name == self.name


@dataclass(frozen=True, slots=True)
class Secret:
    hosts: tuple[Host, ...]
    value: str = field(repr=False)
    header: str | None
    format: str
    placeholder: str | None
    in_body: bool

    @property
    def header_value(self) -> str:
        return self.format.replace("{value}", self.value)


class Machine:
    """One machine's secrets and the authority that its own programs trust."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.certificate: str = state["certificate"]
        self.key: str = state["key"]
        self.secrets = tuple(
            Secret(
                tuple(Host(each["name"], tuple(each["ports"])) for each in one["hosts"]),
                one["value"],
                one["header"],
                one["format"],
                one["placeholder"],
                one["in_body"],
            )
            for one in state["secrets"]
        )
        self.needles = Needles(each.value for each in self.secrets)

    def of(self, name: str, port: int, tls: bool) -> tuple[Secret, ...]:
        """Those for a request to that host. In clear text only on the port that says so."""
        if not tls and port != CLEAR_PORT:
            return ()
        return tuple(
            each for each in self.secrets if any(host.covers(name, port) for host in each.hosts)
        )


Fields = Sequence[tuple[bytes, bytes]]


def headers(fields: Fields, secrets: Sequence[Secret]) -> list[tuple[bytes, bytes]]:
    """A request's, with what the secrets add; what the machine sent under such a name is dropped."""
    added = [each for each in secrets if each.header is not None]
    names = {each.header.lower().encode() for each in added if each.header is not None}
    kept = [(name, _swapped(value, secrets)) for name, value in fields if name.lower() not in names]
    return kept + [
        (each.header.encode(), each.header_value.encode()) for each in added if each.header
    ]


def target(path: bytes, secrets: Sequence[Secret]) -> bytes:
    """Path and query of a request."""
    for each in secrets:
        if each.placeholder is not None:
            path = path.replace(each.placeholder.encode(), quote(each.value, safe="").encode())
    return path


def wants_body(secrets: Sequence[Secret]) -> bool:
    return any(each.in_body for each in secrets)


def body(data: bytes, kind: str, secrets: Sequence[Secret]) -> bytes:
    """``kind``: its content type, by which the value is written."""
    for each in secrets:
        if each.in_body and each.placeholder is not None:
            value = each.value
            if "x-www-form-urlencoded" in kind:
                value = quote(value, safe="")
            elif "json" in kind:
                value = json.dumps(value)[1:-1]
            data = data.replace(each.placeholder.encode(), value.encode())
    return data


def _swapped(value: bytes, secrets: Sequence[Secret]) -> bytes:
    """Also inside of ``Basic`` credentials, which are base64 (RFC 7617)."""
    scheme, space, rest = value.partition(b" ")
    if space and scheme.lower() == b"basic":
        try:
            plain = base64.b64decode(rest.strip(), validate=True)
        except binascii.Error:
            plain = b""
        changed = _replaced(plain, secrets)
        if changed != plain:
            return b"Basic " + base64.b64encode(changed)
    return _replaced(value, secrets)


def _replaced(data: bytes, secrets: Sequence[Secret]) -> bytes:
    for each in secrets:
        if each.placeholder is not None:
            data = data.replace(each.placeholder.encode(), each.value.encode())
    return data
