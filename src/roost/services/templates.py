"""Templates: what machines start from, and their building."""

from __future__ import annotations

import builtins

from roost.services.models import Progress, Template


class Templates:
    async def list(self, tenant: str) -> builtins.list[Template]:
        """By name; shipped recipes that nobody built yet have status ``unbuilt``."""
        raise NotImplementedError

    async def get(self, tenant: str, name: str) -> Template:
        """Raises TEMPLATE_NOT_FOUND."""
        raise NotImplementedError

    async def build(
        self, name: str, force: bool = False, progress: Progress | None = None
    ) -> Template:
        """Builds a shipped recipe; single flight: callers during a build wait for that one and hear its
        progress. A ready template of the same recipe is returned as it is unless ``force``.
        Raises TEMPLATE_NOT_FOUND, TEMPLATE_BUILD_FAILED, STORAGE_FULL."""
        raise NotImplementedError

    async def resolve(self, tenant: str, name: str) -> Template:
        """The ready template with its ``image``. Raises TEMPLATE_NOT_FOUND, INVALID_STATE (with the command
        that builds it)."""
        raise NotImplementedError
