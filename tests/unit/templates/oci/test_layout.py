"""Layouts and archives in contexts."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from roost.errors import CapacityError, RoostError
from roost.templates.context import Context
from roost.templates.oci import image, layout
from tests.oci_images import Image, archive, digest, entry, link, tagged, tar


def context(tmp_path: Path, data: bytes) -> Context:
    path = tmp_path / "context.tar"
    path.write_bytes(data)
    return Context.read(path)


def small() -> Image:
    return Image().layer(tar([entry("a", "one")])).layer(tar([entry("b", "two")]), "+zstd")


def plenty(count: int) -> None:
    """There is room."""


def content(found: layout.Found) -> list[bytes]:
    return [b"".join(found.open(layer)) for layer in found.manifest.layers]


def test_a_layout_in_a_directory(tmp_path: Path) -> None:
    made = small()
    files = made.layout(tagged(made.manifest({"User": "app"}), "v1"))
    there = context(tmp_path, archive(files, "images/base/"))
    for tag in (None, "v1"):
        found = layout.find(layout.Files(there, "images/base"), tag)
        assert [digest(data) for data in content(found)] == [each["digest"] for each in made.layers]
        assert image.config(found.config) == {"user": "app"}
    with pytest.raises(RoostError, match="no tag 'v2'"):
        layout.find(layout.Files(there, "images/base"), "v2")
    with pytest.raises(RoostError, match=r"neither an index\.json"):
        layout.find(layout.Files(there, "images"), None)


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_an_archive_in_a_context(tmp_path: Path, packed: Any) -> None:
    made = small()
    inner = packed(archive(made.layout(made.manifest(annotations={"a": "b"}))))
    there = context(tmp_path, tar([entry("x/base.tar", inner), entry("other", "y")]))
    (found_entry,) = there.find("x/base.tar")
    inside = layout.archive(there, found_entry, tmp_path / "archive", 1 << 30, plenty)
    found = layout.find(layout.Files(inside), None)
    assert len(content(found)) == 2
    assert found.annotations == {"a": "b"}


def test_what_docker_saved(tmp_path: Path) -> None:
    one, config = tar([entry("a", "one")]), json.dumps({"config": {"Cmd": ["x"]}}).encode()
    images = [
        {"Config": "c.json", "RepoTags": ["base:v1"], "Layers": ["1/layer.tar", "2/layer.tar"]}
    ]
    there = context(
        tmp_path,
        tar(
            [
                entry("1/layer.tar", one),
                link("2/layer.tar", "../1/layer.tar"),
                entry("c.json", config),
                entry("manifest.json", json.dumps(images)),
            ]
        ),
    )
    found = layout.find(layout.Files(there), "v1")
    assert content(found) == [one, one]
    assert found.manifest.layers[0].digest == digest(one)
    assert image.config(found.config) == {"cmd": ["x"]}
    with pytest.raises(RoostError, match="0 images tagged v2"):
        layout.find(layout.Files(there), "v2")


def test_lies(tmp_path: Path) -> None:
    """A blob that is not what its name says, one that is missing, one of another size."""
    made = small()
    manifest = made.manifest()
    good = made.layout(manifest)

    def found(files: dict[str, bytes]) -> layout.Found:
        return layout.find(layout.Files(context(tmp_path, archive(files))), None)

    place = f"blobs/sha256/{manifest['digest'].removeprefix('sha256:')}"
    changed = good[place].replace(b"schemaVersion", b"schemaversion")
    with pytest.raises(RoostError, match="its manifest is not what its digest says"):
        found({**good, place: changed})
    layer = f"blobs/sha256/{made.layers[0]['digest'].removeprefix('sha256:')}"
    with pytest.raises(RoostError, match="a layer of it is missing"):
        found({name: data for name, data in good.items() if name != layer})
    with pytest.raises(RoostError, match="of another size"):
        found({**good, layer: good[layer] + b"x"})


def test_names_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(tar([entry("a", "one")]))
    images = [{"Config": "../secret", "Layers": [str(tmp_path / "secret")]}]
    there = context(tmp_path, tar([entry("manifest.json", json.dumps(images))]))
    with pytest.raises(RoostError, match="is missing"):
        layout.find(layout.Files(there), None)
    for name in ("../out", "/etc/passwd"):
        with pytest.raises(RoostError, match=r"absolute|upwards"):
            context(tmp_path, tar([entry(name, "x")]))


@pytest.mark.parametrize(
    "data",
    [bytes(200 << 20), gzip.compress(os.urandom(2 << 20) * 100), gzip.compress(b"") * 150_000],
)
def test_there_is_room_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """The pool is everybody's; and who does not wait any more is heard while nothing comes of what is read."""
    monkeypatch.setattr(layout, "_READ", 1 << 20)
    asked: list[int] = []

    def room(count: int) -> None:
        asked.append(count)
        if len(asked) > 2:
            raise CapacityError("full", code="STORAGE_FULL")

    pieces = [data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]
    with pytest.raises(RoostError, match="full"):
        layout.opened(iter(pieces), tmp_path / "large", 1 << 30, room)
    written = sum(each.stat().st_size for each in tmp_path.iterdir())
    assert written <= sum(asked)


def test_archives_that_grow(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    with pytest.raises(RoostError, match="far more than its size"):
        layout.opened(iter([bomb]), tmp_path / "bomb", 1 << 30, plenty)
    with pytest.raises(RoostError, match="larger than 1 MiB"):
        layout.opened(iter([bytes(1 << 20)] * 2), tmp_path / "large", 1 << 20, plenty)
    with pytest.raises(RoostError, match="compression is damaged"):
        layout.opened(iter([bomb[:1000]]), tmp_path / "cut", 1 << 30, plenty)
