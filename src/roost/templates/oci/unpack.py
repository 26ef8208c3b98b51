"""Layers onto a blank root, inside a machine. Each is kept with those below it, so an image that has the same ones begins
from there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_pb2 as pb
from roost.errors import MachineError, RoostError, error
from roost.storage.interface import Image
from roost.templates.base import Workshop
from roost.templates.oci.image import Blob, Manifest, bad
from roost.templates.oci.layout import Open

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAX_ENTRIES = 2_000_000
MAX_RATIO = 1000
_FORM = 1  # counted up when layers are unpacked otherwise
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f: a zstd archive may begin so
# What is the archive's fault, and not the machine's.
_ITS_OWN = ("VALIDATION_FAILED", "INVALID_PATH", "LIMIT_EXCEEDED", "UNSUPPORTED", "IS_A_DIRECTORY")


def keys(manifest: Manifest) -> list[str]:
    """Of the roots after each layer: digests of all layers up to there."""
    found = []
    key = hashlib.sha256(f"roost-oci-layers {_FORM}\n".encode()).hexdigest()
    for layer in manifest.layers:
        key = hashlib.sha256(f"{key}\n{layer.digest}\n".encode()).hexdigest()
        found.append(key)
    return found


async def begun(workshop: Workshop, known: list[str]) -> tuple[int, Image | None]:
    """How many layers are kept already, and the root after those."""
    for count in range(len(known), 0, -1):
        if (image := await workshop.find(known[count - 1])) is not None:
            return count, image
    return 0, None


async def unpack(
    workshop: Workshop,
    manifest: Manifest,
    known: list[str],
    count: int,
    image: Image,
    open_blob: Open,
) -> Image:
    """The root after all layers; ``image`` has the first ``count``. Raises VALIDATION_FAILED for a layer that is not
    what its digest says or cannot be unpacked, MACHINE_DISK_FULL, and what a machine's start raises."""
    if count == len(manifest.layers):
        return image
    async with workshop.room(image) as room:
        for number in range(count, len(manifest.layers)):
            layer = manifest.layers[number]
            what = f"layer {number + 1} of {len(manifest.layers)}"
            workshop.say("note", f"unpacking {what} ({_size(layer.size)})\n".encode())
            head = await asyncio.to_thread(_head, open_blob(layer))
            header = pb.TarInHeader(
                path=b"/",
                layer=True,
                keep_special=True,
                compression=_compression(head),
                max_entries=MAX_ENTRIES,
                max_ratio=MAX_RATIO,
            )
            try:
                done = await room.agent.tar_in(header, _proven(open_blob(layer), layer, what))
            except RoostError as failure:
                raise _told(failure, what, layer) from failure
            if done.attributes_left_out:
                workshop.say(
                    "note", b"%d extended attributes left out\n" % done.attributes_left_out
                )
            image = await room.keep(known[number])
    return image


async def _proven(content: Iterator[bytes], blob: Blob, what: str) -> AsyncIterator[bytes]:
    """A blob as it is read; its last piece only once all of it was what its digest says."""
    found = hashlib.sha256()
    size = 0
    held = b""
    while piece := await asyncio.to_thread(_next, content, found):
        size += len(piece)
        if held:
            yield held
        held = piece
    if f"sha256:{found.hexdigest()}" != blob.digest or size != blob.size:
        raise bad(f"{what} is not what its digest says")
    if held:
        yield held


def _next(content: Iterator[bytes], total: Hash) -> bytes:
    piece = next(content, b"")
    total.update(piece)
    return piece


def _head(content: Iterator[bytes]) -> bytes:
    return next(content, b"")[:4]


def _compression(head: bytes) -> pb.Compression.ValueType:
    """By what it begins with: what its manifest says of that is often wrong."""
    if head[:2] == _GZIP:
        return pb.COMPRESSION_GZIP
    if head == _ZSTD or (head[1:] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F):
        return pb.COMPRESSION_ZSTD
    return pb.COMPRESSION_NONE


def _told(failure: RoostError, what: str, layer: Blob) -> RoostError:
    if failure.code in _ITS_OWN:
        return bad(f"{what} ({layer.digest[:19]}) cannot be unpacked: {failure.message}")
    if failure.code == "MACHINE_DISK_FULL":
        return error(
            failure.code,
            f"The image does not fit: the disk is full in {what}. Ask for more storage_gib (size in roost.toml).",
        )
    if isinstance(failure, MachineError):
        failure.details.setdefault("layer", layer.digest)
    return failure


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
