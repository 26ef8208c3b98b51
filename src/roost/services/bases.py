"""What FROM names: one of our templates, a snapshot, or an image from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from roost.engine.engine import Engine
from roost.engine.flows import config_of
from roost.errors import RoostError, UnsupportedError
from roost.services import captured
from roost.services.images import Use
from roost.services.layers import Layers
from roost.services.models import Template
from roost.templates.base import Base, BaseImages, Foreign, Workshop
from roost.templates.dockerfile import wrong
from roost.templates.oci.reference import SCHEMES

SNAPSHOT = "snapshot:"
Resolve = Callable[[str, str], Awaitable[Template]]


def is_foreign(reference: str) -> bool:
    return reference.startswith(SCHEMES)


def needs_context(reference: str) -> bool:
    return is_foreign(reference) and not reference.startswith("docker://")


class Bases:
    def __init__(
        self, engine: Engine, layers: Layers, resolve: Resolve, foreign: BaseImages | None
    ) -> None:
        self._engine = engine
        self._layers = layers
        self._resolve = resolve
        self._foreign = foreign

    async def find(self, tenant: str, reference: str, line: int, use: Use) -> Base:
        """One of our own. Raises DOCKERFILE_INVALID, INVALID_STATE (not built), SNAPSHOT_NOT_FOUND; of another tenant's
        as of none."""
        try:
            if reference.startswith(SNAPSHOT):
                return await self._snapshot(tenant, reference.removeprefix(SNAPSHOT), use)
            template = await self._resolve(tenant, reference)
        except RoostError as failure:
            if failure.code == "TEMPLATE_NOT_FOUND" or (
                failure.code == "VALIDATION_FAILED" and not reference.startswith(SNAPSHOT)
            ):
                raise wrong(
                    line,
                    f"FROM {reference[:100]}: there is no such template. For an image of a registry write FROM "
                    f"docker://{reference[:100]}; `roost template ls` shows the templates",
                ) from failure
            raise
        assert template.image is not None
        image = use(template.image)
        return Base(image, image.content or image.digest, dict(template.config), template.id)

    async def foreign(self, wanted: Foreign, workshop: Workshop) -> Base:
        if self._foreign is None:
            raise UnsupportedError(
                f"FROM {wanted.reference}: images from elsewhere cannot be used here.",
                details={"line": wanted.line},
            )
        return await self._foreign(wanted, workshop)

    async def _snapshot(self, tenant: str, which: str, use: Use) -> Base:
        """Its disk alone, as a layer: whose machines ran on it need not stop."""
        row = await captured.find(self._engine.store, tenant, which)
        key = hashlib.sha256(f"roost-snapshot 1\n{row['id']}\n".encode()).hexdigest()
        with self._engine.holding(row["id"]):
            image = await self._layers.find(tenant, key, use)
            if image is None:
                image = await self._layers.of_snapshot(tenant, key, row["id"], use)
        config = await self._engine.store.read(
            lambda c: config_of(c, row["machine"]["template_id"])
        )
        env = {**config.get("env", {}), **dict(row["machine"].get("env") or {})}
        config = {**config, "env": env, "size": {"storage_gib": row["machine"]["storage_gib"]}}
        return Base(image, f"snapshot:{row['id']}", config, None)
