"""A build's context and an image in it: names are plain, and nothing is read that is not in the archive."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from itertools import islice
from pathlib import Path

from roost.errors import RoostError
from roost.templates.context import Context
from roost.templates.oci import image, layout
from tests.fuzz.targets.parcel import mended


def _tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()[: 1 << 14].rstrip(b"\0") + bytes(1024)


def _file(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def _layout() -> bytes:
    config = json.dumps({"os": "linux", "architecture": image.architecture()}).encode()
    layer = bytes(1024)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        return {"mediaType": kind, "digest": image.digest(data), "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [blob(layer, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()
    index = {"manifests": [blob(manifest, "application/vnd.oci.image.manifest.v1+json")]}
    blobs = [_file(f"blobs/sha256/{image.digest(b)[7:]}", b) for b in (config, layer, manifest)]
    return _tar(_file("index.json", json.dumps(index).encode()), *blobs)


COVERS = ("roost.templates.context", "roost.templates.pack", "roost.templates.oci", "tarfile")
SEEDS = (
    _tar(_file("a"), _link("b", "a"), _link("c/d", "../../../etc/passwd")),
    _tar(_file("n" * 150), _link("x", "x"), _link("h", "a", tarfile.LNKTYPE)),
    _tar(_file("n" * 150), format=tarfile.GNU_FORMAT),
    _tar(_file("../x"), _file("/y"), _file("a/./b")),
    _layout(),
    _tar(
        _file("manifest.json", b'[{"Config": "c", "Layers": ["l"], "RepoTags": ["a:b"]}]'),
        _file("c", b"{}"),
        _file("l"),
    ),
)
LONGEST = 16384
WORDS = (
    b"../",
    b"index.json",
    b"manifest.json",
    b"ustar\x0000",
    b"path=",
    b"linkpath=",
    b"size=",
    b"././@LongLink",
)


def one(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        sent = Path(directory) / "sent"
        sent.write_bytes(mended(data))
        try:
            context = Context.read(sent)
        except RoostError as refused:
            assert refused.code == "INVALID_BODY", refused.code
            return
        for name, entry in context.entries.items():
            parts = name.split("/")
            assert all(part not in ("", ".", "..") for part in parts), name
            assert entry.offset + entry.size <= len(data)
        try:
            for source in ("*", "*/*", ".", "a/../b"):
                for entry in islice(context.find(source), 50):
                    if entry.kind == "file":
                        context.digest(entry)
                    list(islice(context.below(entry.name), 50))
            context.near("abc")
            found = layout.find(layout.Files(context), None)
            kept = image.config(found.config)
        except RoostError as refused:
            refused.message.encode(errors="surrogatepass")
            return
        json.dumps([kept, dict(found.annotations)], ensure_ascii=False).encode()
