"""A template as an image of one layer, in a tar that any tool for images reads: an OCI image layout (image-spec 1.1).

What a template says of its machines' start and an image cannot is an annotation of the manifest, ``ANNOTATION``: JSON of
what ``roost.toml`` says, and believed as little. Such a file is imported like any other image: its tree is unpacked inside
a machine, so nobody need be trusted and every rung can use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from roost.templates.oci import image
from roost.templates.oci.image import Blob, bad
from roost.templates.pack import END, header, padding
from roost.templates.roosttoml import RoostToml

ANNOTATION = "roost.template"
LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_KEPT = tuple(RoostToml.model_fields)


def said(annotations: Mapping[str, str]) -> dict[str, Any]:
    """A template's keys. Raises VALIDATION_FAILED for what no roost.toml could say."""
    text = annotations.get(ANNOTATION)
    if text is None:
        return {}
    value = image.read_json(text.encode(errors="replace"), "annotation")
    try:
        return RoostToml.model_validate(value).config()
    except ValidationError as failure:
        first = failure.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise bad(f"what it says of its machines' start: {where}: {first['msg']}") from failure


def documents(
    config: Mapping[str, Any], tag: str, layer: Blob, diff_id: str
) -> tuple[dict[str, bytes], list[bytes]]:
    """(name -> content, what blobs they refer to): the files of the layout but the layer's own."""
    inner: dict[str, Any] = {}
    if env := config.get("env"):
        inner["Env"] = [f"{name}={value}" for name, value in sorted(env.items())]
    for ours, theirs in (("user", "User"), ("workdir", "WorkingDir"), ("labels", "Labels")):
        if config.get(ours):
            inner[theirs] = config[ours]
    for ours, theirs in (("entrypoint", "Entrypoint"), ("cmd", "Cmd")):
        if config.get(ours):
            inner[theirs] = list(config[ours])
    if ports := config.get("ports"):
        inner["ExposedPorts"] = {f"{port}/tcp": {} for port in ports}
    described = _dumps(
        {
            "architecture": image.architecture(),
            "os": "linux",
            "config": inner,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
    kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
    manifest = _dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _refer(described, _CONFIG),
            "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size}],
            "annotations": {ANNOTATION: json.dumps(kept, sort_keys=True)},
        }
    )
    named = {**_refer(manifest, _MANIFEST), "annotations": {image.REF_NAME: tag}}
    index = _dumps({"schemaVersion": 2, "manifests": [named]})
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}, [
        described,
        manifest,
    ]


def pack(
    config: Mapping[str, Any], tag: str, layer: Blob, diff_id: str, content: Iterator[bytes]
) -> Iterator[bytes]:
    """The archive, in pieces. ``content``: the layer's."""
    files, blobs = documents(config, tag, layer, diff_id)
    for name, data in files.items():
        yield _member(name, data)
    for data in blobs:
        yield _member(f"blobs/sha256/{image.digest(data).removeprefix('sha256:')}", data)
    yield header(f"blobs/sha256/{layer.hex}", b"0", 0o644, layer.size, 0)
    yield from content
    yield padding(layer.size) + END


def _member(name: str, data: bytes) -> bytes:
    return header(name, b"0", 0o644, len(data), 0) + data + padding(len(data))


def _refer(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": image.digest(data), "size": len(data)}


def _dumps(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
