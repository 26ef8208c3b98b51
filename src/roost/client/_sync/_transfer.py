"""Files and trees between this machine's disk and a machine's."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from roost.client._sync._http import log
from roost.client._sync._io import from_iterator, in_thread
from roost.client._tar import CHUNK, Transfer, Unpacker, pack

if TYPE_CHECKING:
    from roost.client._sync._files import Files, RemotePath

Progress = Callable[[int], object] | None


def upload(
    files: Files, local: Path, remote: RemotePath, owner: str | None, progress: Progress
) -> Transfer:
    found = in_thread(os.stat, local)
    if stat.S_ISDIR(found.st_mode):
        files.mkdir(remote)
        tar = from_iterator(counted(pack(local), progress))
        answer = files.write_tar(remote, tar, owner=owner)
        return Transfer(answer["entries"], answer["bytes"])
    mode = found.st_mode & 0o777
    if progress is None:
        info = files.write(remote, local, mode=mode, owner=owner)
    else:
        chunks = from_iterator(counted(pieces(local), progress))
        info = files.write(remote, chunks, mode=mode, owner=owner)
    return Transfer(1, info.size)


def download(files: Files, remote: RemotePath, local: Path, progress: Progress) -> Transfer:
    info = files.stat(remote)
    if info.is_dir:
        return _tree(files, remote, local, progress)
    return _file(files, remote, local, info.mode, progress)


def _tree(files: Files, remote: RemotePath, local: Path, progress: Progress) -> Transfer:
    in_thread(os.makedirs, local, 0o777, True)
    with Unpacker(local) as unpacker:
        for chunk in files.read_tar(remote):
            in_thread(unpacker.feed, chunk)
            if progress is not None:
                progress(len(chunk))
        done = in_thread(unpacker.finish)
    for name in done.skipped:
        log.warning("left away %a: a link that leads out of the tree", name)
    return done


def _file(files: Files, remote: RemotePath, local: Path, mode: int, progress: Progress) -> Transfer:
    """Beside its place first, then renamed: a broken download leaves the old file."""
    descriptor, name = tempfile.mkstemp(prefix=".roost-", dir=local.parent)
    size = 0
    try:
        with os.fdopen(descriptor, "wb") as sink:
            for chunk in files.read_stream(remote):
                in_thread(sink.write, chunk)
                size += len(chunk)
                if progress is not None:
                    progress(len(chunk))
        os.chmod(name, mode & 0o777)
        os.replace(name, local)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return Transfer(1, size)


def pieces(local: Path) -> Iterator[bytes]:
    with open(local, "rb") as source:
        while chunk := source.read(CHUNK):
            yield chunk


def counted(chunks: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        if progress is not None:
            progress(len(chunk))
