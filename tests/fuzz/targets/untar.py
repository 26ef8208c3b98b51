"""A tree that a machine sends to the SDK's user: nothing appears outside its directory, and no link in it leads out."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path

from roost.client._tar import Unpacker
from roost.errors import RoostError
from tests.fuzz.targets._pieces import cut
from tests.fuzz.targets.context import _file, _link
from tests.fuzz.targets.parcel import mended


def _tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return b"\x3c" + file.getvalue().rstrip(b"\0") + bytes(1024)


COVERS = ("roost.client._tar", "tarfile")
SEEDS = (
    _tar(_file("a/b"), _link("l", "a/b"), _link("h", "a/b", tarfile.LNKTYPE)),
    _tar(_link("out", "../outside"), _file("out/x")),
    _tar(_link("d", "/"), _link("d", ".", tarfile.DIRTYPE), _file("../x"), _file("/y")),
    _tar(_file("n" * 150), _link("s", "t" * 150)),
    _tar(_file("n" * 150), format=tarfile.GNU_FORMAT),
)
LONGEST = 8192
WORDS = (
    b"../outside",
    b"..",
    b"/",
    b"ustar\x0000",
    b"path=",
    b"linkpath=",
    b"size=",
    b"GNU.sparse.",
)


def one(data: bytes) -> None:
    top = Path(tempfile.mkdtemp())
    try:
        inside, outside = top / "inside", top / "outside"
        inside.mkdir()
        outside.mkdir()
        (outside / "canary").write_bytes(b"canary")
        said = mended(data[1:])
        pieces, _ = cut(data[:1] + said)
        before = len(os.listdir("/proc/self/fd"))
        try:
            with Unpacker(inside, max_entries=50, max_bytes=1 << 20) as unpacker:
                for piece in pieces:
                    unpacker.feed(piece)
                unpacker.finish()
        except (RoostError, OSError):
            pass
        assert len(os.listdir("/proc/self/fd")) == before
        assert sorted(os.listdir(top)) == ["inside", "outside"]
        assert os.listdir(outside) == ["canary"]
        canary = (outside / "canary").stat()
        assert (canary.st_size, canary.st_nlink) == (6, 1)
        root = os.path.realpath(inside)
        for directory, directories, files in os.walk(inside):
            for name in (*directories, *files):
                path = os.path.join(directory, name)
                found = os.lstat(path)
                kind = stat.S_IFMT(found.st_mode)
                assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), path
                if kind == stat.S_IFLNK:
                    led = os.path.realpath(path)
                    assert led == root or led.startswith(root + "/"), (path, os.readlink(path))
                else:
                    assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID), path
    finally:
        for directory, _, _ in os.walk(top):
            os.chmod(directory, 0o700)
        shutil.rmtree(top)
