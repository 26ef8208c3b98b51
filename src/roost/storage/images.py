"""Immutable images: ``<hex>.ext4`` and, written last, ``<hex>.json``. Without its manifest an image is
debris. Size variants are reflinks grown or shrunk once and kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.errors import CapacityError, NotFoundError, UnsupportedError
from roost.host import files, run
from roost.storage.interface import Image
from roost.storage.pool import Pool

DEFAULT_GIB = 10
_RESIZE_TIMEOUT_S = 120


class Images:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def list(self) -> list[Image]:
        """Sweeps nothing: an image without a manifest may be one that is being added."""
        found = []
        for manifest in sorted(self._pool.images.glob("[0-9a-f]*.json")):
            if (image := self._read(manifest)) is not None:
                found.append(image)
        return found

    def _read(self, manifest: Path) -> Image | None:
        data = files.read_json(manifest)
        path = manifest.with_suffix(".ext4")
        if data is None:
            return None
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        return Image(
            digest=f"sha256:{manifest.stem}",
            path=path,
            size_bytes=stat.st_size,
            allocated_bytes=stat.st_blocks * 512,
            raw_written=bool(data.get("raw_written", True)),
            imported=bool(data.get("imported", True)),
            agent_digest=data.get("agent_digest"),
            content=data.get("content_digest"),
            kind=str(data.get("kind", "")),
        )

    def manifest(self, digest: str) -> dict[str, Any] | None:
        return files.read_json(self._pool.images / f"{_hex(digest)}.json")

    def get(self, digest: str) -> Image | None:
        return self._read(self._pool.images / f"{_hex(digest)}.json")

    def add(self, made: Path, digest: str, manifest: Mapping[str, Any]) -> Image:
        """Moves ``made`` (a file in the pool's ``tmp``) in. Durable on return; the same digest twice is
        the same image."""
        name = _hex(digest)
        path = self._pool.images / f"{name}.ext4"
        fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.chmod(made, 0o400)
        os.rename(made, path)
        files.write_json(
            self._pool.images / f"{name}.json",
            {"format": 1, "raw_written": False, "imported": False, **manifest},
        )
        image = self.get(digest)
        assert image is not None
        return image

    def delete(self, digest: str) -> None:
        name = _hex(digest)
        (self._pool.images / f"{name}.json").unlink(missing_ok=True)
        files.sync_dir(self._pool.images)
        (self._pool.images / f"{name}.ext4").unlink(missing_ok=True)
        for variant in self._pool.variants.glob(f"{name}-*.ext4"):
            variant.unlink(missing_ok=True)

    def sized(self, image: Image, storage_gib: int) -> Path:
        """The image at that size; made on first use. Raises STORAGE_FULL where the content is larger."""
        if not image.path.exists():
            raise NotFoundError(
                f"Image {image.digest} is not in the pool any more; build its template again.",
                code="TEMPLATE_NOT_FOUND",
            )
        size = storage_gib << 30
        if image.path.stat().st_size == size:
            return image.path
        path = self._pool.variants / f"{_hex(image.digest)}-{storage_gib}.ext4"
        if path.exists():
            return path
        if image.raw_written or image.imported:
            raise UnsupportedError(
                "The size of this image cannot be changed on the host, since a virtual machine wrote its "
                "blocks; ask for the size it has.",
            )
        temporary = self._pool.tmp / path.name
        try:
            files.reflink(image.path, temporary, durable=False)
            _resize(temporary, storage_gib)
            fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        files.sync_dir(self._pool.variants)
        return path


def _resize(path: Path, storage_gib: int) -> None:
    size = storage_gib << 30
    growing = size > path.stat().st_size
    if growing:
        os.truncate(path, size)
    # 1 means errors were mended; resize2fs refuses an image that was not checked.
    check = run.run(
        ["e2fsck", "-f", "-p", str(path)], timeout_s=_RESIZE_TIMEOUT_S, env=_ENV, check=False
    )
    if check.code > 1:
        raise run.CommandError(["e2fsck"], check)
    try:
        run.run(["resize2fs", str(path), f"{storage_gib}G"], timeout_s=_RESIZE_TIMEOUT_S, env=_ENV)
    except run.CommandError as exc:
        if growing:
            raise
        raise CapacityError(
            f"This template does not fit into {storage_gib} GiB; ask for more storage_gib.",
            code="STORAGE_FULL",
            retryable=False,
            details={"storage_gib": storage_gib},
        ) from exc
    if not growing:
        os.truncate(path, size)


_ENV = {"LC_ALL": "C", "E2FSPROGS_FAKE_TIME": "1700000000"}


def _hex(digest: str) -> str:
    name = digest.removeprefix("sha256:")
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"not a digest: {digest!r}")
    return name
