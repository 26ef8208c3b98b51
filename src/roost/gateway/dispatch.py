"""Which app serves a request: by host, path and the prefix of its key. First match wins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from roost.errors import RoostError
from roost.services.models import Principal

Problem = tuple[int, list[tuple[bytes, bytes]], bytes]  # status, headers, body


def _never(method: str, path: str) -> bool:
    return False


def _no(path: str) -> bool:
    return False


def _none(path: str) -> None:
    return None


def _nothing(scope: Scope) -> None:
    return None


async def _nobody(scope: Scope) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Action:
    """What a call is in the audit log. ``lasting``: it changes something of the platform, not in a machine."""

    name: str
    lasting: bool
    machine_id: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """An app and what must hold before it is called."""

    name: str
    app: Any  # ASGI
    paths: tuple[str, ...]  # path prefixes, whole segments: "/v1" is "/v1" and "/v1/..."; "" is all
    hosts: tuple[str, ...] = ()  # exact, "*.domain" or "1234-*.domain"; none: any
    prefixes: tuple[str, ...] = ()  # of keys; none: any
    public: frozenset[str] = field(default_factory=frozenset)  # paths that need no key
    streams: Callable[[str, str], bool] = _never  # (method, path) whose body the app reads itself
    admin: Callable[[str, str], bool] = _never  # (method, path) that only an admin may ask for
    inside: Callable[[str], bool] = _no  # paths that use a machine, and change nothing of it
    own: Callable[[str], str | None] = _none  # the machine whose own status a path is
    action: Callable[[Scope], Action | None] = (
        _nothing  # of a request, routed or not; None: of none there is
    )
    # How an error looks, whoever found it; None: as the native API says it.
    problem: Callable[[RoostError, str], Problem] | None = None
    # Who comes with what is no key (a signed URL, a token of the dialect's own), once that is proven; None: a key is
    # asked for. Raises AUTH_INVALID for what proves nothing.
    admit: Callable[[Scope], Awaitable[Principal | None]] = _nobody


class Table:
    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = tuple(targets)

    def find(self, host: str, path: str, prefix: str | None) -> Target | None:
        """``host`` as the client sent it; ``prefix`` None where there is no key."""
        name = host_name(host)
        for target in self._targets:
            if (
                (not target.hosts or any(_host_matches(each, name) for each in target.hosts))
                and (not target.prefixes or prefix in target.prefixes)
                and any(_below(each, path) for each in target.paths)
            ):
                return target
        return None


def host_name(host: str) -> str:
    """Without port, in lower case, without a final dot."""
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _host_matches(pattern: str, name: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return name == pattern
    return name.startswith(before) and name.endswith(after) and len(name) >= len(pattern)


def _below(prefix: str, path: str) -> bool:
    return path.startswith(prefix) and (
        len(path) == len(prefix) or path[len(prefix)] == "/" or prefix in ("", "/")
    )
