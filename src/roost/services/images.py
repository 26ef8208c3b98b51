"""Images that nobody needs any more, deleted; those that a build is using stay until it has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import structlog

from roost.errors import RoostError
from roost.storage.interface import Image, Storage
from roost.store import Store, templates

log = structlog.get_logger(__name__)
Use = Callable[[Image], Image]


class Images:
    def __init__(self, store: Store, storage: Storage) -> None:
        self._store = store
        self._storage = storage
        self._used: Counter[str] = Counter()
        self._late: set[str] = set()  # were to be deleted while they were used

    @contextlib.asynccontextmanager
    async def using(self) -> AsyncIterator[Use]:
        """What is given to it is not deleted meanwhile."""
        mine: set[str] = set()

        def use(image: Image) -> Image:
            if image.digest not in mine:
                mine.add(image.digest)
                self._used[image.digest] += 1
            return image

        try:
            yield use
        finally:
            self._used.subtract(mine)
            self._used += Counter()  # drops what is at zero
            for digest in mine & self._late:
                await asyncio.shield(self._drop_late(digest))

    async def _drop_late(self, digest: str) -> None:
        try:
            await self.drop(digest)
        except (RoostError, OSError) as failure:  # the next daemon sweeps it
            log.warning("images.left", digest=digest, error=str(failure))

    async def drop(self, digest: str) -> None:
        """Unless something needs it."""
        self._late.discard(digest)
        if await self._store.read(lambda c: templates.image_needed(c, digest)):
            return
        if self._used[digest]:
            self._late.add(digest)
            return
        await self._storage.delete_image(digest)
