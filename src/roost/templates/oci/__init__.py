"""Images from elsewhere as what a build begins from: named in full, bounded, proven by their digests, and unpacked inside
a machine, never on the host.

    docker://...                         registry: skopeo in a cell, whose one way out is ``outlet``
    oci:, oci-archive:, docker-archive:  layout: read in place, in the context they lie in
                                         -> image: what it says of itself
                                         -> unpack: layers onto a blank root, each kept by the digests up to it

``Images`` is a build's ``BaseImages``.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.drivers.tree import AgentBinary
from roost.errors import InvalidRequestError, RoostError
from roost.settings import Settings
from roost.storage.images import Images as Kept
from roost.storage.interface import Image
from roost.storage.pool import Pool
from roost.storage.room import Room, asked
from roost.templates.base import Base, Foreign, Workshop
from roost.templates.context import FILE, Context
from roost.templates.oci import blank, exported, image, layout, unpack
from roost.templates.oci.image import Blob, Manifest
from roost.templates.oci.reference import InContext, InRegistry, parse
from roost.templates.oci.registry import Registries

MAX_IMAGE = 32 << 30  # compressed, all layers together


class Images:
    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        images: Kept,
        agent: AgentBinary,
        registries: Registries | None = None,
    ) -> None:
        self._blanks = blank.Blanks(pool, images, agent)
        self._registries = registries or Registries(settings)

    async def __call__(self, wanted: Foreign, workshop: Workshop) -> Base:
        """See ``roost.templates.base.BaseImages``."""
        try:
            named = parse(wanted.reference)
            if isinstance(named, InRegistry):
                return await self._from_registry(named, wanted, workshop)
            return await self._from_context(named, wanted, workshop)
        except RoostError as failure:
            raise layout.telling(failure, wanted.line) from failure

    async def _from_context(self, named: InContext, wanted: Foreign, workshop: Workshop) -> Base:
        if wanted.context is None:
            raise InvalidRequestError(f"{wanted.reference} lies in a context, and there is none.")
        work = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="archive-", dir=workshop.tmp))
        # The pool is everybody's, and what an archive unpacks to is known when it was written.
        with asked(
            workshop.require, lambda: InvalidRequestError("The build was cancelled.")
        ) as room:
            files = await asyncio.to_thread(_files, wanted.context, named, work / "archive", room)
        found = await asyncio.to_thread(layout.find, files, named.tag)
        return await self._made(found, workshop)

    async def _made(self, found: layout.Found, workshop: Workshop) -> Base:
        config = image.config(found.config) | exported.said(found.annotations)
        root = _Root(workshop, found.manifest, self._blanks)
        _bounded(found.manifest)
        count, begun = await root.begun()
        made = await root.unpack(count, begun, found.open)
        return _base(made, root.content(found.config), config)

    async def _from_registry(self, named: InRegistry, wanted: Foreign, workshop: Workshop) -> Base:
        credentials = wanted.credentials.get(named.host)
        workshop.say("note", f"asking {named.host} for {named.name}\n".encode())
        digest, manifest, raw = await self._registries.ask(named, credentials)
        config = image.config(raw)
        _bounded(manifest)
        workshop.say("note", f"{digest}\n".encode())
        root = _Root(workshop, manifest, self._blanks)
        count, begun = await root.begun()
        if count == len(manifest.layers):
            return _base(await root.unpack(count, begun, _nothing), root.content(raw), config)
        known = manifest.layers[:count]
        await workshop.require(2 * sum(layer.size for layer in manifest.layers[count:]))
        into = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="blobs-", dir=workshop.tmp))
        path = await self._registries.fetch(
            named,
            digest,
            manifest,
            known,
            into,
            credentials,
            lambda text: workshop.say("note", text.encode()),
        )
        made = await root.unpack(count, begun, lambda blob: layout.of_file(path(blob)))
        return _base(made, root.content(raw), config)


class _Root:
    """Of one image, being made."""

    def __init__(self, workshop: Workshop, manifest: Manifest, blanks: blank.Blanks) -> None:
        self._workshop = workshop
        self._manifest = manifest
        self._blanks = blanks
        self._keys = unpack.keys(manifest)

    async def begun(self) -> tuple[int, Image]:
        count, kept = await unpack.begun(self._workshop, self._keys)
        if kept is None:
            kept = await asyncio.to_thread(self._blanks.image)
        elif count:
            self._workshop.say("note", f"{count} of {len(self._keys)} layers are here\n".encode())
        return count, kept

    async def unpack(self, count: int, begun: Image, content: layout.Open) -> Image:
        return await unpack.unpack(
            self._workshop, self._manifest, self._keys, count, begun, content
        )

    def content(self, config: bytes) -> str:
        """Of what is in it, and of what it says of itself."""
        last = self._keys[-1] if self._keys else ""
        return image.digest(f"{last}\n{hashlib.sha256(config).hexdigest()}\n".encode())


def _files(context: Context, named: InContext, tmp: Path, room: Room) -> layout.Files:
    """Blocking."""
    if named.directory:
        return layout.Files(context, named.path)
    found = context.find(named.path)
    if len(found) != 1 or found[0].kind != FILE:
        near = context.near(named.path)
        hint = f"; did you mean {near}?" if near else ""
        raise InvalidRequestError(
            f"There is no file {named.path} in the context{hint}.", details={"field": "from"}
        )
    return layout.Files(layout.archive(context, found[0], tmp, MAX_IMAGE, room))


def _bounded(manifest: Manifest) -> None:
    if manifest.size > MAX_IMAGE:
        raise image.bad(f"its layers are larger than {MAX_IMAGE >> 30} GiB")


def _base(made: Image, content: str, config: Mapping[str, Any]) -> Base:
    return Base(made, content, config)


def _nothing(blob: Blob) -> Any:
    raise AssertionError("nothing is left to unpack")
