"""Snapshots as one file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from roost.errors import RoostError
from roost.storage import parcel
from roost.storage.parcel import PIECE, Parcel, Part


def sparse(path: Path, size: int, pieces: Mapping[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            os.pwrite(file.fileno(), data, offset)
    return path


def packed(tmp_path: Path, manifest: Mapping[str, Any], parts: list[Part]) -> Path:
    path = tmp_path / "parcel"
    path.write_bytes(b"".join(parcel.pack(manifest, parts)))
    return path


def test_what_was_packed_comes_out(tmp_path: Path) -> None:
    random = os.urandom(3 * PIECE)
    disk = sparse(
        tmp_path / "disk", 1 << 30, {0: b"begin", 5 * PIECE - 100: random, (1 << 30) - 1: b"!"}
    )
    memory = sparse(tmp_path / "memory", 2 * PIECE + 17, {10: random[:PIECE]})
    path = packed(
        tmp_path, {"machine": {"vcpu": 1}}, [Part("disk", disk), Part("memory-0", memory)]
    )
    assert path.stat().st_size < 5 * PIECE + (1 << 20)
    found = Parcel(path)
    assert found.manifest["machine"] == {"vcpu": 1}
    assert found.parts == {"disk": 1 << 30, "memory-0": 2 * PIECE + 17}
    heard: list[int] = []
    found.unpack({"disk": tmp_path / "d", "memory-0": tmp_path / "m"}, heard.append)
    assert heard == sorted(heard)
    for one, other in ((disk, "d"), (memory, "m")):
        with one.open("rb") as a, (tmp_path / other).open("rb") as b:
            assert (
                hashlib.file_digest(a, "sha256").digest()
                == hashlib.file_digest(b, "sha256").digest()
            )
        assert (tmp_path / other).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_blocks * 512 < 6 * PIECE
    # The disk alone, of one with memory; all of it is proven all the same.
    found.unpack({"disk": tmp_path / "alone"})


def test_it_is_an_ordinary_tar(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", PIECE, {0: b"x"})
    with tarfile.open(packed(tmp_path, {}, [Part("disk", disk)])) as archive:
        assert archive.getnames() == ["manifest.json", "disk/000000000000", "end.json"]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    disk = sparse(tmp_path / "disk", 4 * PIECE, {0: b"one", PIECE: b"two", 3 * PIECE: b"four"})
    return packed(tmp_path, {}, [Part("disk", disk)])


def refused(path: Path, tmp_path: Path, match: str | None) -> None:
    target = tmp_path / "target"
    with pytest.raises(RoostError, match=match) as failure:
        Parcel(path).unpack({"disk": target})
    assert failure.value.code == "INVALID_BODY"
    target.unlink(missing_ok=True)


def test_every_changed_byte_is_noticed(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    end = data.rindex(b"end.json")
    for at in range(0, end + 600, 307):
        changed = bytearray(data)
        changed[at] ^= 0x20
        whole.write_bytes(changed)
        refused(whole, tmp_path, None)


def test_one_that_breaks_off(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    for cut in (0, 100, 512, 1000, 2048, data.rindex(b"end.json"), data.rindex(b"end.json") + 512):
        whole.write_bytes(data[:cut])
        refused(whole, tmp_path, None)


def forged(path: Path, members: list[tuple[str, bytes]], **more: Any) -> Path:
    """One whose digest is right, by somebody who knows how."""
    out = io.BytesIO()
    manifest = {
        "format": "roost-snapshot",
        "version": 1,
        "piece": PIECE,
        "parts": {"disk": 2 * PIECE},
    }
    for name, data in [("manifest.json", json.dumps({**manifest, **more}).encode()), *members]:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        out.write(info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
    digest = json.dumps({"sha256": hashlib.sha256(out.getvalue()).hexdigest()}).encode()
    info = tarfile.TarInfo("end.json")
    info.size = len(digest)
    path.write_bytes(out.getvalue() + info.tobuf(tarfile.USTAR_FORMAT) + digest + bytes(1024))
    return path


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([("../../etc/passwd", b"x")], "no place"),
        ([("/etc/passwd", b"x")], "no place"),
        ([("disk/../../../x", b"x")], "no place"),
        ([("memory-0/000000000000", frame(bytes(PIECE)))], "no place"),
        ([("disk/000000000001", frame(bytes(PIECE)))], "not in order"),
        ([("disk/ffffffffffff", frame(bytes(PIECE)))], "not in order"),
        ([("disk/000000400000", frame(b"x" * PIECE)), ("disk/000000000000", frame(b"x" * PIECE))], "not in order"),
        ([("disk/000000000000", frame(b"short"))], "another size"),
        ([("disk/000000000000", frame(bytes(300 << 20)))], "another size"),
        ([("disk/000000000000", b"no frame")], "damaged"),
    ],
)  # fmt: skip
def test_pieces_that_are_not_believed(
    tmp_path: Path, members: list[tuple[str, bytes]], match: str
) -> None:
    refused(forged(tmp_path / "forged", members), tmp_path, match)


@pytest.mark.parametrize(
    "more",
    [
        {"format": "other"},
        {"version": 2},
        {"piece": 1},
        {"parts": None},
        {"parts": {}},
        {"parts": {"disk": -1}},
        {"parts": {"disk": 1 << 50}},
        {"parts": {"disk": True}},
        {"parts": {"disk": 1, "../x": 1}},
        {"parts": {"disk": 1, **{f"memory-{n}": 1 for n in range(70)}}},
    ],
)
def test_manifests_that_are_not_believed(tmp_path: Path, more: dict[str, Any]) -> None:
    refused(forged(tmp_path / "forged", [], **more), tmp_path, None)
