"""A snapshot that somebody sends: refused in words, or its parts are as long as it says."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from roost.errors import RoostError
from roost.storage.parcel import Parcel, Part, pack


def _packed(content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        disk = Path(directory) / "disk"
        disk.write_bytes(content)
        return b"".join(pack({"driver": "runc", "memory": False}, [Part("disk", disk)]))


def _members(*members: tuple[str, bytes]) -> bytes:
    out = b""
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        out += info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return out


_SAID = b'{"format": "roost-snapshot", "version": 1, "piece": 4194304, "parts": {"disk": 4096}}'
COVERS = ("roost.storage.parcel", "tarfile")
SEEDS = (
    _packed(b"x" * 4096),
    _packed(bytes(4096)),
    _members(("manifest.json", _SAID), ("disk/000000000000", b"x"), ("end.json", b"{}")),
    _members(("manifest.json", b"[" * 500)),
)
LONGEST = 8192
WORDS = (
    b"manifest.json",
    b"end.json",
    b"disk/000000000000",
    b"memory-0/",
    b'"parts": ',
    b'"disk": ',
    b'"sha256": ',
)
_MOST = 1 << 24


def mended(data: bytes) -> bytes:
    """With right sums in what could be headers, which chance does not find."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        block = out[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def one(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        sent, disk = Path(directory) / "sent", Path(directory) / "disk"
        sent.write_bytes(mended(data))
        try:
            parcel = Parcel(sent)
            if parcel.parts["disk"] > _MOST:
                return
            parcel.unpack({"disk": disk})
        except RoostError as refused:
            assert refused.code == "INVALID_BODY", refused.code
            return
        assert disk.stat().st_size == parcel.parts["disk"]
        assert disk.stat().st_mode & 0o777 == 0o600
