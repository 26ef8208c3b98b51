"""Images made by hand, as the image specification has them: layers of tars, a config, a manifest, an index."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

from roost.templates.oci.image import architecture

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "+gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
}


def entry(
    name: str, content: bytes | str = b"", **attributes: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """A file unless ``type`` says something else; other attributes are a TarInfo's, ``pax_headers`` too."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 1_700_000_000
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=target)


def tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Image:
    """Blobs by digest, and what refers to them."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    diff_ids: list[str] = field(default_factory=list)

    def blob(self, data: bytes, kind: str) -> dict[str, Any]:
        self.blobs[digest(data)] = data
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    def layer(self, content: bytes, packed: str = "+gzip") -> Image:
        kind = f"application/vnd.oci.image.layer.v1.tar{packed}"
        self.layers.append(self.blob(PACKERS[packed](content), kind))
        self.diff_ids.append(digest(content))
        return self

    def config(self, config: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        value = {
            "architecture": architecture(),
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            **more,
        }
        return self.blob(json.dumps(value).encode(), "application/vnd.oci.image.config.v1+json")

    def manifest(self, config: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        value = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.config(config),
            "layers": self.layers,
            **more,
        }
        return self.blob(json.dumps(value).encode(), value["mediaType"])

    def layout(self, *manifests: Mapping[str, Any]) -> dict[str, bytes]:
        """name -> content of an image layout."""
        index = {"schemaVersion": 2, "manifests": list(manifests)}
        files = {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps(index).encode(),
        }
        for name, data in self.blobs.items():
            files[f"blobs/sha256/{name.removeprefix('sha256:')}"] = data
        return files


def archive(files: Mapping[str, bytes], prefix: str = "") -> bytes:
    """A tar of such files: an oci-archive, or, below ``prefix``, a context with a layout in it."""
    return tar(entry(f"{prefix}{name}", data) for name, data in files.items())


def tagged(manifest: Mapping[str, Any], tag: str) -> dict[str, Any]:
    return {**manifest, "annotations": {"org.opencontainers.image.ref.name": tag}}
