"""Layers onto a root: what is kept is not unpacked again, and what lies is not kept."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.agent.v1 import agent_pb2 as pb
from roost.errors import RoostError, error
from roost.storage.interface import Image as Disk
from roost.templates.oci import exported, image, unpack
from roost.templates.oci.image import Blob, Manifest
from tests.oci_images import PACKERS, digest, entry, tar

DATA = [tar([entry(name, name * 1000)]) for name in ("one", "two", "three")]
PACKED = [pack(data) for pack, data in zip(PACKERS.values(), DATA, strict=True)]
MANIFEST = Manifest(
    Blob(digest(b"config"), 6), tuple(Blob(digest(each), len(each)) for each in PACKED)
)
COMPRESSIONS = [pb.COMPRESSION_NONE, pb.COMPRESSION_GZIP, pb.COMPRESSION_ZSTD]


class Shop:
    """A workshop whose machine writes down what it is given."""

    def __init__(self) -> None:
        self.tmp = Path("/nowhere")
        self.kept: dict[str, Disk] = {}
        self.begun: list[str] = []
        self.headers: list[pb.TarInHeader] = []
        self.data: list[bytes] = []
        self.failure: RoostError | None = None
        self.agent = self

    async def find(self, key: str) -> Disk | None:
        return self.kept.get(key)

    @contextlib.asynccontextmanager
    async def room(self, disk: Disk) -> AsyncIterator[Any]:
        self.begun.append(disk.digest)
        yield self

    async def keep(self, key: str) -> Disk:
        self.kept[key] = disk(key)
        return self.kept[key]

    async def tar_in(self, header: pb.TarInHeader, pieces: AsyncIterable[bytes]) -> pb.TarInReply:
        taken = b"".join([piece async for piece in pieces])
        if self.failure is not None:
            raise self.failure
        self.headers.append(header)
        self.data.append(taken)
        return pb.TarInReply(entries=1)

    async def require(self, size: int) -> None:
        pass

    def say(self, stream: str, text: bytes) -> None:
        pass


def disk(name: str) -> Disk:
    return Disk(name, Path("/nowhere"), 1 << 30, 0, False, False, None)


def opened(blob: Blob) -> Any:
    data = next(each for each in PACKED if digest(each) == blob.digest)
    return iter([data[:100], data[100:]])


async def test_what_is_here_is_not_unpacked_again() -> None:
    shop, keys = Shop(), unpack.keys(MANIFEST)
    assert await unpack.begun(shop, keys) == (0, None)
    made = await unpack.unpack(shop, MANIFEST, keys, 0, disk("blank"), opened)
    assert shop.begun == ["blank"]
    assert shop.data == PACKED
    assert [header.compression for header in shop.headers] == COMPRESSIONS
    assert all(header.layer and header.keep_special and header.max_ratio for header in shop.headers)
    assert made.digest == keys[2]
    assert list(shop.kept) == keys

    other = Manifest(
        MANIFEST.config, (*MANIFEST.layers[:2], Blob(digest(PACKED[0]), len(PACKED[0])))
    )
    again = unpack.keys(other)
    assert again[:2] == keys[:2]
    count, begun = await unpack.begun(shop, again)
    assert (count, begun) == (2, shop.kept[keys[1]])
    assert begun is not None
    await unpack.unpack(shop, other, again, count, begun, opened)
    assert shop.begun == ["blank", keys[1]]
    assert len(shop.data) == 4

    count, begun = await unpack.begun(shop, again)
    assert count == 3
    assert begun is not None
    assert await unpack.unpack(shop, other, again, count, begun, opened) == begun
    assert len(shop.begun) == 2


@pytest.mark.parametrize("lie", [PACKED[1][:-1], PACKED[1] + b"\0", PACKED[1][:-1] + b"x", b""])
async def test_a_layer_that_is_not_what_it_should_be(lie: bytes) -> None:
    shop, keys = Shop(), unpack.keys(MANIFEST)

    def lying(blob: Blob) -> Any:
        return iter([lie]) if blob == MANIFEST.layers[1] else opened(blob)

    with pytest.raises(RoostError, match="layer 2 of 3 is not what its digest says"):
        await unpack.unpack(shop, MANIFEST, keys, 0, disk("blank"), lying)
    assert list(shop.kept) == keys[:1]
    assert shop.data == PACKED[:1]


@pytest.mark.parametrize(
    ("code", "told", "match"),
    [
        ("INVALID_PATH", "VALIDATION_FAILED", "layer 1 of 3 .* cannot be unpacked: why"),
        ("LIMIT_EXCEEDED", "VALIDATION_FAILED", "cannot be unpacked: why"),
        ("MACHINE_DISK_FULL", "MACHINE_DISK_FULL", "disk is full in layer 1 of 3"),
        ("AGENT_LOST", "AGENT_LOST", "why"),
    ],
)
async def test_who_is_to_blame(code: str, told: str, match: str) -> None:
    shop = Shop()
    shop.failure = error(code, "why")
    with pytest.raises(RoostError, match=match) as failure:
        await unpack.unpack(shop, MANIFEST, unpack.keys(MANIFEST), 0, disk("blank"), opened)
    assert failure.value.code == told
    assert not shop.kept


def test_a_template_says_the_same_when_it_comes_back() -> None:
    config = {
        "env": {"A": "1"},
        "user": "app",
        "workdir": "/srv",
        "ports": [80],
        "labels": {"a": "b"},
        "start": ["/run", "-v"],
        "ready": {"port": 80, "timeout_s": 5.0, "interval_s": 0.5},
        "warmup": ["true"],
        "size": {"memory_mib": 2048},
        "entrypoint": ["/run"],
        "cmd": ["-v"],
    }
    layer = Blob(digest(b"layer"), 5)
    files, (described, manifest) = exported.documents(config, "v1", layer, digest(b"plain"))
    chosen = image.choose(files["index.json"], "v1")
    assert chosen == Blob(digest(manifest), len(manifest))
    read = image.manifest(manifest)
    assert read == Manifest(Blob(digest(described), len(described)), (layer,))
    annotations = image.read_json(manifest, "manifest")["annotations"]
    assert image.config(described) | exported.said(annotations) == config
    archive = b"".join(exported.pack(config, "v1", layer, digest(b"plain"), iter([b"layer"])))
    assert (
        hashlib.sha256(archive).digest()
        == hashlib.sha256(
            b"".join(exported.pack(config, "v1", layer, digest(b"plain"), iter([b"la", b"yer"])))
        ).digest()
    )


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"start": 1}', '{"other": 1}', '{"size": {"vcpu": "x"}}', '{"ready": {}}']
)
def test_annotations_that_are_not_believed(text: str) -> None:
    with pytest.raises(RoostError, match="cannot be used"):
        exported.said({exported.ANNOTATION: text})
    assert exported.said({"other": text}) == {}
