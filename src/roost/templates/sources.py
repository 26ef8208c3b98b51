"""The Debian mirror the host itself uses, for building and for the machines afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roost.errors import UnsupportedError

_APT = Path("/etc/apt")
# What a mirror may need beyond its address; copied from the host's apt.
COPIED_OPTIONS = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
)
_ONE_LINE = re.compile(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)")


@dataclass(frozen=True, slots=True)
class Source:
    uri: str
    suite: str


def host_sources(directory: Path = _APT) -> list[Source]:
    found: list[Source] = []
    for path in (directory / "sources.list", *sorted(directory.glob("sources.list.d/*"))):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            found += _deb822(text)
        elif path.suffix == ".list":
            found += [
                Source(m[1].rstrip("/"), m[2])
                for line in text.splitlines()
                if (m := _ONE_LINE.match(line.strip()))
            ]
    return found


def _deb822(text: str) -> Iterable[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                fields[key] += " " + line.strip()
            else:
                key, _, value = line.partition(":")
                key = key.lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled") == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri.rstrip("/"), suite)


def lines(suite: str, components: Iterable[str], host: Iterable[Source]) -> list[str]:
    """``sources.list`` for the suite with its updates and security, by the host's mirrors where it
    has them."""
    by_suite = {s.suite: s.uri for s in reversed(list(host)) if s.uri.startswith("http")}
    parts = " ".join(components)
    main = by_suite.get(suite)
    if main is None:
        raise UnsupportedError(
            f"This host's apt knows no mirror of {suite}; add one to /etc/apt and build again.",
            code="HOST_UNSUPPORTED",
        )
    security = f"{suite}-security"
    fallback = f"{main}-security"
    return [
        f"deb {main} {suite} {parts}",
        f"deb {by_suite.get(f'{suite}-updates', main)} {suite}-updates {parts}",
        f"deb {by_suite.get(security, fallback)} {security} {parts}",
    ]


def copied_options(dump: str) -> list[str]:
    """Of ``apt-config dump``: the lines worth copying."""
    return [line for line in dump.splitlines() if line.split(" ", 1)[0] in COPIED_OPTIONS]
