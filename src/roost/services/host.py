"""Host: what this machine of machines is and can, for ``GET /v1/host``."""

from __future__ import annotations

from typing import Any


class Host:
    async def describe(self) -> dict[str, Any]:
        """As SPECIFICATION says; plus ``stuck``: operations that could not be undone."""
        raise NotImplementedError
