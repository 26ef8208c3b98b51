"""Snapshots: a machine at one instant."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from roost.client._sync import _export
from roost.client._sync._client import Client, default_client
from roost.client._types import parse_time
from roost.client._wire import given, segment


class Snapshot:
    """Get one with ``Machine.snapshot``, ``get`` or ``list``; make machines from it with
    ``Machine.create(snapshot=...)``."""

    def __init__(self, client: Client, data: Mapping[str, Any]) -> None:
        self._http = client.http
        self._data = dict(data)

    def __repr__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"<{type(self).__name__} {self.id}{name}>"

    @classmethod
    def get(cls, snapshot: str, *, client: Client | None = None) -> Self:
        """By id or name. Raises NotFoundError."""
        client = client or default_client()
        return cls(client, client.http.call("GET", f"/v1/snapshots/{segment(snapshot)}"))

    @classmethod
    def list(
        cls,
        *,
        machine_id: str | None = None,
        limit: int | None = None,
        client: Client | None = None,
    ) -> builtins.list[Self]:
        """Newest first; ``limit=None`` is all."""
        client = client or default_client()
        pages = client.http.pages("/v1/snapshots", given(machine_id=machine_id), limit)
        return [cls(client, item) for item in pages]

    def delete(self) -> None:
        """Machines made from it live on. Raises ConflictError IN_USE while one is being made."""
        self._http.call("DELETE", f"/v1/snapshots/{self.id}")

    def export(
        self, to: Path | str, *, memory: bool = False, progress: _export.Progress = None
    ) -> int:
        """As one file at ``to``, whole or not at all; its bytes. ``memory``: with its processes, which only this
        installation can go on from. ``progress`` hears how many bytes came."""
        return _export.save(self.read(memory=memory), Path(to), progress)

    def read(self, *, memory: bool = False) -> Iterator[bytes]:
        """That file's bytes as they come."""
        path = f"/v1/snapshots/{self.id}/export"
        params = given(memory="true" if memory else None)
        with self._http.stream("GET", path, params=params, timeout=None) as response:
            yield from response.iter_raw()

    @classmethod
    def load(
        cls,
        source: Path | str,
        *,
        name: str | None = None,
        trusted: bool = False,
        progress: _export.Progress = None,
        client: Client | None = None,
    ) -> Self:
        """The snapshot that ``export`` wrote. A disk that comes from elsewhere is a microVM's alone, unless an admin
        says ``trusted``. Raises InvalidRequestError INVALID_BODY for a file that was changed."""
        client = client or default_client()
        data = client.http.call(
            "POST",
            "/v1/snapshots/import",
            params=given(name=name, trusted="true" if trusted else None),
            content=_export.content(Path(source), progress),
            headers={"Content-Type": "application/x-tar"},
            timeout=None,
        )
        return cls(client, data)

    @property
    def id(self) -> str:
        return str(self._data["snapshot_id"])

    @property
    def name(self) -> str | None:
        return self._data.get("name")

    @property
    def machine_id(self) -> str:
        """Of the machine it is of, which may be gone."""
        return str(self._data["machine_id"])

    @property
    def memory(self) -> bool:
        """With its processes; False: the disk alone."""
        return bool(self._data["memory"])

    @property
    def status(self) -> str:
        """ready, or quarantined: its memory was found damaged or of another version (``reason``)."""
        return str(self._data["status"])

    @property
    def reason(self) -> str | None:
        return self._data.get("reason")

    @property
    def size_bytes(self) -> int | None:
        """Allocated, with what it shares with others."""
        return self._data.get("size_bytes")

    @property
    def paused_ms(self) -> float | None:
        """How long the machine stood still for it; None: it slept."""
        return self._data.get("paused_ms")

    @property
    def created_at(self) -> datetime | None:
        return parse_time(self._data.get("created_at"))

    def to_json(self) -> dict[str, Any]:
        """The daemon's own record."""
        return dict(self._data)
