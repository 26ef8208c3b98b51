"""How templates are named: ``name``, ``name:tag``, ``name@sha256:<64 hex>``, or an id. A name alone is ``:latest``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from roost import ids
from roost.errors import InvalidRequestError

LATEST = "latest"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """Either ``id``, or ``name`` with a tag or a digest."""

    name: str | None
    tag: str | None = None
    digest: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        if self.name is None:
            return str(self.id)
        if self.digest is not None:
            return f"{self.name}@{self.digest}"
        return self.name if self.tag in (None, LATEST) else f"{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """Raises VALIDATION_FAILED."""
    if ids.formed(text):
        return Reference(None, id=text)
    name, at, digest = text.partition("@")
    if at:
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
            raise bad(text)
        return Reference(name, digest=digest)
    name, colon, tag = text.partition(":")
    if not _NAME.fullmatch(name) or (colon and not _TAG.fullmatch(tag)):
        raise bad(text)
    return Reference(name, tag if colon else LATEST)


def tagged(text: str) -> tuple[str, str]:
    """(name, tag) of what something is to be called. Raises VALIDATION_FAILED."""
    found = parse(text)
    if found.name is None or found.tag is None:
        raise bad(text)
    return found.name, found.tag


def bad(text: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text[:100]!r} names no template: NAME, NAME:TAG or NAME@sha256:DIGEST, with a name of lower-case "
        "letters, digits, dots, dashes and underscores (63 at most).",
        details={"field": "name"},
    )
