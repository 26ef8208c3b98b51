"""API keys: who is asking."""

from __future__ import annotations

import builtins

from roost.services.models import Key, Principal


class Keys:
    async def bootstrap(self) -> str | None:
        """On the first start: tenant ``default``, its key, and ``data_dir/key`` (0600) holding it. Returns the
        key then, else None."""
        raise NotImplementedError

    async def authenticate(self, secret_form: str) -> Principal:
        """Who ``<prefix>_<64 hex>`` is; from memory when seen before. Raises AUTH_INVALID."""
        raise NotImplementedError

    async def create(self, tenant: str, name: str) -> Key:
        """The only answer that carries ``secret``."""
        raise NotImplementedError

    async def list(self, tenant: str) -> builtins.list[Key]:
        """Those not revoked, oldest first."""
        raise NotImplementedError

    async def revoke(self, tenant: str, key_id: str) -> None:
        """At once. Raises KEY_NOT_FOUND; IN_USE for the tenant's last key."""
        raise NotImplementedError
