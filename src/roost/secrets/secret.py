"""What a secret is: a value, the hosts it is for, and how a request gets it there.

By a header that the boundary sets (whatever the machine sent under that name is dropped), or by a placeholder that the
machine's programs send where the value belongs. Hosts are names and wildcards as in an egress policy; the port is 443
unless given. Over clear HTTP a secret goes only to a host whose entry says ``:80``.
"""

from __future__ import annotations

import html
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, quote_plus

from roost.egress.policy import Entry
from roost.errors import InvalidRequestError, bad

MAX_SECRETS = 64  # of a machine
MAX_HOSTS = 32
MAX_VALUE = 8192
MAX_FORMS = (
    128 * 2**10
)  # bytes of all forms of all values of a machine: what the boundary looks for
# A shorter one would be found everywhere: answers could not be searched for it.
MIN_VALUE = 8
TLS_PORTS = (443,)
# What frames a request, or says where it goes: not a secret's to set (RFC 9110, 7.6.1; RFC 9112, 6).
FORBIDDEN = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "expect", "host", "http2-settings",
        "if-range", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "range",
        "sec-websocket-accept", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol",
        "sec-websocket-version", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_VISIBLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PLACEHOLDER = re.compile(r"[A-Za-z0-9._~-]{12,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """As asked for; nothing has been checked. None: as it is, where it exists."""

    name: str
    value: str | None = field(default=None, repr=False)
    hosts: Sequence[str] | None = None
    header: str | None = None
    format: str | None = None
    placeholder: str | None = None
    in_body: bool | None = None


@dataclass(frozen=True, slots=True)
class Secret:
    """Exactly one of ``header`` and ``placeholder`` is set. ``format`` has ``{value}`` in it, once."""

    name: str
    hosts: tuple[Entry, ...]
    header: str | None
    format: str
    placeholder: str | None
    in_body: bool
    created_at: datetime
    updated_at: datetime

    def ports(self, entry: Entry) -> tuple[int, ...]:
        return entry.ports or TLS_PORTS

    def to_boundary(self, value: str) -> dict[str, Any]:
        hosts = [{"name": each.name, "ports": self.ports(each)} for each in self.hosts]
        return {
            "hosts": hosts,
            "value": value,
            "header": self.header,
            "format": self.format,
            "placeholder": self.placeholder,
            "in_body": self.in_body,
        }


def made(spec: SecretSpec, before: Secret | None, now: datetime) -> Secret:
    """What ``spec`` makes of it; its value is ``check_value``'s. Raises VALIDATION_FAILED, which never says a value."""
    if not _NAME.fullmatch(spec.name):
        raise bad("name", "is [A-Za-z_][A-Za-z0-9_]*, at most 64 characters")
    if spec.hosts is None and before is None:
        raise bad("hosts", "names where it may go, such as api.example.org")
    hosts = before.hosts if spec.hosts is None and before is not None else _hosts(spec.hosts or ())
    header, placeholder = spec.header, spec.placeholder
    if header is not None and placeholder is not None:
        raise bad("header", "and placeholder exclude each other")
    if header is None and placeholder is None and before is not None:
        header, placeholder = before.header, before.placeholder
    if header is not None:
        return _by_header(spec, before, hosts, header, now)
    if spec.format is not None:
        raise bad("format", "goes with header")
    return Secret(
        name=spec.name,
        hosts=hosts,
        header=None,
        format="{value}",
        placeholder=_placeholder(spec.name, placeholder),
        in_body=_kept(spec.in_body, before.in_body if before else False),
        created_at=before.created_at if before else now,
        updated_at=now,
    )


def _by_header(
    spec: SecretSpec, before: Secret | None, hosts: tuple[Entry, ...], header: str, now: datetime
) -> Secret:
    if not _HEADER.fullmatch(header):
        raise bad("header", "is a header's name, at most 64 characters")
    if header.lower() in FORBIDDEN:
        raise bad("header", f"cannot be {header}: it frames the request or says where it goes")
    if spec.in_body:
        raise bad("in_body", "goes with a placeholder")
    standing = before.format if before is not None and before.header is not None else "{value}"
    text = standing if spec.format is None else spec.format
    if text.count("{value}") != 1 or len(text) > 256 or not _VISIBLE.fullmatch(text):
        raise bad("format", "has {value} in it, once, and at most 256 printable ASCII characters")
    return Secret(
        name=spec.name,
        hosts=hosts,
        header=header,
        format=text,
        placeholder=None,
        in_body=False,
        created_at=before.created_at if before else now,
        updated_at=now,
    )


def check_value(value: str) -> None:
    """Raises VALIDATION_FAILED."""
    if not MIN_VALUE <= len(value) <= MAX_VALUE or not _VISIBLE.fullmatch(value):
        raise bad(
            "value",
            f"has {MIN_VALUE} to {MAX_VALUE} printable ASCII characters, no space at its ends; a shorter one could"
            " not be kept out of answers",
        )


def weight(value: str) -> int:
    """At least as many bytes as all that ``boundary/redaction.py`` makes of it to look for."""
    text = json.dumps(value)[1:-1]
    escaped = {quote(value, safe=""), quote(value), quote_plus(value)} - {value}
    written = {text, text.replace("/", "\\/"), html.escape(value)} - {value}
    return 13 * len(value) + 2 * sum(map(len, escaped)) + sum(map(len, written))


def check_weight(values: Sequence[str]) -> None:
    """Raises VALIDATION_FAILED."""
    if sum(map(weight, values)) > MAX_FORMS:
        raise bad(
            "value",
            "is too long beside the machine's other secrets: written in all the ways that answers are searched for,"
            f" they make more than {MAX_FORMS // 1024} KiB",
        )


def check_apart(secret: Secret, others: Sequence[Secret]) -> None:
    """Two must not set one header of one host, nor stand for one placeholder. Raises VALIDATION_FAILED."""
    if len(others) >= MAX_SECRETS:
        raise bad("name", f"is one too many: a machine has at most {MAX_SECRETS} secrets")
    for each in others:
        mine, other = secret.placeholder, each.placeholder
        if mine is not None and other is not None and (mine in other or other in mine):
            raise bad("placeholder", f"is in that of {each.name}, or that in it")
        if secret.header is None or each.header is None:
            continue
        if secret.header.lower() == each.header.lower() and _meet(secret, each):
            raise bad("header", f"is set for one of these hosts by {each.name} already")


def environment(secrets: Sequence[Secret]) -> dict[str, str]:
    """What the machine's programs are told: placeholders, by the secret's name."""
    return {each.name: each.placeholder for each in secrets if each.placeholder is not None}


def to_row(secret: Secret) -> dict[str, Any]:
    return {
        "name": secret.name,
        "hosts": [str(each) for each in secret.hosts],
        "header": secret.header,
        "format": secret.format,
        "placeholder": secret.placeholder,
        "in_body": secret.in_body,
        "created_at": secret.created_at,
        "updated_at": secret.updated_at,
    }


def from_row(row: Mapping[Any, Any]) -> Secret:
    plain = ("name", "header", "format", "placeholder", "in_body", "created_at", "updated_at")
    hosts = tuple(Entry.parse(each) for each in row["hosts"])
    return Secret(hosts=hosts, **{name: row[name] for name in plain})


def _hosts(said: Sequence[str]) -> tuple[Entry, ...]:
    if not 1 <= len(said) <= MAX_HOSTS:
        raise bad("hosts", f"has 1 to {MAX_HOSTS} entries")
    found = []
    for text in said:
        try:
            entry = Entry.parse(text)
        except InvalidRequestError as failure:
            raise InvalidRequestError(
                failure.message.replace("egress entry", "host of a secret"),
                details={"field": "hosts", "entry": text[:100]},
            ) from None
        if entry.name is None:
            raise bad("hosts", "are names: an address proves nothing about who answers there")
        found.append(entry)
    return tuple(dict.fromkeys(found))


def _placeholder(name: str, said: str | None) -> str:
    if said is None:
        return f"roost-secret-{name.lower().replace('_', '-')}-{secrets.token_hex(8)}"
    if not _PLACEHOLDER.fullmatch(said):
        raise bad("placeholder", "has 12 to 256 characters of A-Z a-z 0-9 . _ ~ -")
    return said


def _meet(one: Secret, other: Secret) -> bool:
    return any(
        _overlap(a.name or "", b.name or "") and set(one.ports(a)) & set(other.ports(b))
        for a in one.hosts
        for b in other.hosts
    )


def _overlap(a: str, b: str) -> bool:
    """Whether there is a name that both are for."""
    if a.startswith("*.") and b.startswith("*."):
        return f".{a[2:]}".endswith(b[1:]) or f".{b[2:]}".endswith(a[1:])
    return Entry(name=a).covers_name(b) or Entry(name=b).covers_name(a)


def _kept(said: bool | None, before: bool) -> bool:
    return before if said is None else said
