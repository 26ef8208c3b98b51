"""Volumes: disks of their own, that outlive the machines that mount them."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from roost.client._sync._client import Client, default_client
from roost.client._types import parse_time
from roost.client._wire import segment


class Volume:
    """Get one with ``create``, ``get`` or ``list``; mount it with ``Machine.create(volumes=["NAME:/path"])``: by one
    machine, or with ``:ro`` by several. A microVM writes its blocks itself, so what one had read-write is microVMs'
    from then on."""

    def __init__(self, client: Client, data: Mapping[str, Any]) -> None:
        self._http = client.http
        self._data = dict(data)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.size_gib} GiB>"

    @classmethod
    def create(
        cls, name: str, *, size_gib: int | None = None, client: Client | None = None
    ) -> Self:
        """Empty; it takes room as it fills, up to ``size_gib`` (10). Raises ConflictError ALREADY_EXISTS, LimitError."""
        client = client or default_client()
        body: dict[str, Any] = {"name": name}
        if size_gib is not None:
            body["size_gib"] = size_gib
        return cls(client, client.http.call("POST", "/v1/volumes", json=body))

    @classmethod
    def get(cls, volume: str, *, client: Client | None = None) -> Self:
        """By id or name. Raises NotFoundError."""
        client = client or default_client()
        return cls(client, client.http.call("GET", f"/v1/volumes/{segment(volume)}"))

    @classmethod
    def list(cls, *, limit: int | None = None, client: Client | None = None) -> builtins.list[Self]:
        """Newest first; ``limit=None`` is all."""
        client = client or default_client()
        return [cls(client, item) for item in client.http.pages("/v1/volumes", {}, limit)]

    def refresh(self) -> Self:
        self._data = self._http.call("GET", f"/v1/volumes/{self.id}")
        return self

    def delete(self) -> None:
        """With what is in it. Raises ConflictError VOLUME_IN_USE while a machine has it, asleep too."""
        self._http.call("DELETE", f"/v1/volumes/{self.id}")

    @property
    def id(self) -> str:
        return str(self._data["volume_id"])

    @property
    def name(self) -> str:
        return str(self._data["name"])

    @property
    def size_gib(self) -> int:
        return int(self._data["size_gib"])

    @property
    def raw_written(self) -> bool:
        """A microVM had it read-write: only microVMs may have it from then on."""
        return bool(self._data["raw_written"])

    @property
    def attachments(self) -> builtins.list[dict[str, Any]]:
        """Who has it: {machine_id, path, read_only}."""
        return [dict(each) for each in self._data["attachments"]]

    @property
    def created_at(self) -> datetime | None:
        return parse_time(self._data.get("created_at"))

    def to_json(self) -> dict[str, Any]:
        """The daemon's own record."""
        return dict(self._data)
