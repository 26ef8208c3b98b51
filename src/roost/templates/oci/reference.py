"""How images from elsewhere are named.

    docker://HOST[:PORT]/NAME[:TAG][@sha256:DIGEST]    a registry's; without a tag and a digest ``latest``
    oci:PATH[:TAG]                                     an image layout, a directory of the build's context
    oci-archive:PATH[:TAG]                             one as a tar, plain or gzip
    docker-archive:PATH                                what ``docker save`` writes, plain or gzip

Names as the distribution specification (1.1, "Pulling manifests") and its reference grammar have them. A registry is
always named: there is none that a bare name means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from roost.errors import InvalidRequestError

REGISTRY, LAYOUT, ARCHIVES = "docker://", "oci:", ("oci-archive:", "docker-archive:")
SCHEMES = (REGISTRY, LAYOUT, *ARCHIVES)

_HOST = re.compile(
    r"(?=.{1,255}(?::|$))[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*(?::[0-9]{1,5})?",
    re.ASCII,
)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?=.{{1,255}}$){_PART}(?:/{_PART})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class InRegistry:
    host: str  # with its port where it has one
    name: str
    tag: str | None
    digest: str | None

    @property
    def place(self) -> str:
        return f"{self.host}/{self.name}"

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return f"{REGISTRY}{self.place}{tag}" + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True, slots=True)
class InContext:
    path: str  # relative, without . and ..
    directory: bool  # an image layout; else an archive
    tag: str | None


def parse(text: str) -> InRegistry | InContext:
    """Raises VALIDATION_FAILED, saying what is wrong."""
    if text.startswith(REGISTRY):
        return _registry(text, text.removeprefix(REGISTRY))
    for scheme in (LAYOUT, *ARCHIVES):
        if text.startswith(scheme):
            return _context(text, text.removeprefix(scheme), scheme == LAYOUT)
    raise _bad(text, "it begins with none of docker://, oci:, oci-archive: and docker-archive:")


def _registry(text: str, rest: str) -> InRegistry:
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _bad(text, "its digest is no sha256:<64 hex digits>")
    host, slash, path = rest.partition("/")
    likely = "." in host or ":" in host or host == "localhost"
    if not slash or not likely or not _HOST.fullmatch(host):
        raise _bad(text, "name the registry in full, as docker://registry.example/name:tag")
    name, colon, tag = path.partition(":")
    if not _NAME.fullmatch(name) or (colon and not _TAG.fullmatch(tag)):
        raise _bad(text, "its name or its tag is none that a registry knows")
    return InRegistry(host, name, tag if colon else (None if at else "latest"), digest or None)


def _context(text: str, rest: str, directory: bool) -> InContext:
    path, colon, tag = rest.rpartition(":")
    if not colon:
        path, tag = rest, ""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or len(path) > 4096:
        raise _bad(text, "its path leads out of the context")
    if not parts and not directory:
        raise _bad(text, "it names no file")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, "its tag is none that an image can have")
    return InContext("/".join(parts), directory, tag or None)


def _bad(text: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text[:200]!r} names no image: {why}.", details={"field": "from", "reference": text[:200]}
    )
