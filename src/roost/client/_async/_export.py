"""One file for a template or a snapshot, on this machine's disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from roost.client._async._io import from_iterator, in_thread
from roost.client._async._transfer import counted, pieces

Progress = Callable[[int], object] | None


async def save(chunks: AsyncIterator[bytes], to: Path, progress: Progress) -> int:
    """Beside its place first, then renamed: a broken download leaves the old file, and nothing else."""
    descriptor, name = tempfile.mkstemp(prefix=".roost-", dir=to.parent)
    size = 0
    try:
        with os.fdopen(descriptor, "wb") as sink:
            async for chunk in chunks:
                await in_thread(sink.write, chunk)
                size += len(chunk)
                if progress is not None:
                    progress(len(chunk))
        os.replace(name, to)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    return size


def content(source: Path, progress: Progress) -> AsyncIterator[bytes]:
    return from_iterator(counted(pieces(source), progress))
