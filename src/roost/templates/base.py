"""What a build begins from, and the place it works in: what parts of it ask of each other.

``FROM`` names one of our templates, a snapshot (``snapshot:NAME``) or an image from elsewhere (``docker://...``,
``oci:PATH``, ``oci-archive:PATH``). The first two are ``services.bases``'; the last is ``templates.oci``'s, which
gets the ``Workshop`` of the build, so that what comes from elsewhere is unpacked inside a machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from roost.storage.interface import Image

if TYPE_CHECKING:
    from roost.agent.client import AgentClient
    from roost.templates.context import Context

# (stream: "stdout" | "stderr" | "note", what was said)
Say = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True)
class Base:
    """``config`` has a template's keys (env, user, workdir, labels, ports, ...), besides ``entrypoint`` and ``cmd``
    (lists of arguments): what the image starts, which a template does not unless its own recipe says so."""

    image: Image  # in the pool; without an identity of its own
    content: str  # digest of what is in it, our agent apart: what cache keys begin with
    config: Mapping[str, Any] = field(default_factory=dict)
    template_id: str | None = None  # of the template it is


class Room(Protocol):
    """One machine of a build, for as long as the build needs it."""

    @property
    def agent(self) -> AgentClient: ...

    async def keep(self, key: str) -> Image:
        """Ends every process in it, syncs, and keeps its disk as an image: a layer of whose it is, found again by
        ``key`` (64 hex digits of all that went into it). Durable on return; the machine runs on."""


class Workshop(Protocol):
    """Of one build."""

    @property
    def tmp(self) -> Path:
        """A directory of the build's own in the pool (0700), gone with it: blobs, archives."""

    async def find(self, key: str) -> Image | None:
        """The layer of this key, if it was kept before, for the same tenant, and may be used."""

    def room(self, image: Image) -> AbstractAsyncContextManager[Room]:
        """A machine that starts from the image, on the rung this build runs on."""

    async def require(self, bytes_needed: int) -> None:
        """Raises STORAGE_FULL."""

    def say(self, stream: str, text: bytes) -> None:
        """Into the build's log."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """An image from elsewhere as ``FROM`` names it, all arguments put in."""

    reference: str  # "docker://debian:12", "oci:images/base:tag", "oci-archive:base.tar"
    line: int
    context: Context | None  # where "oci:" and "oci-archive:" lie
    # registry host -> {"username", "password"}; never in a log, a key or an error
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    fresh: bool = False  # --no-cache, --pull: ask the registry again


class BaseImages(Protocol):
    async def __call__(self, wanted: Foreign, workshop: Workshop) -> Base:
        """Raises VALIDATION_FAILED (with ``details.line``), DEPENDENCY_UNAVAILABLE, TEMPLATE_BUILD_FAILED."""


Pieces = AsyncIterator[bytes]
