"""Archives that ADD unpacks: strangers', read in threads that nobody can stop."""

from __future__ import annotations

import bz2
import gzip
import lzma
import time
from collections.abc import Callable

import pytest

from roost.services import steps

CUT = 1 << 20


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress])
async def test_archives_come_out_as_they_were(packed: Callable[[bytes], bytes]) -> None:
    parts = [b"a" * 300_000, b"", bytes(range(256)) * 5000, b"end"]
    data = b"".join(map(packed, parts))
    pieces = iter([data[at : at + CUT] for at in range(0, len(data), CUT)])
    found = [piece async for piece in steps._pieces(steps.inflated(pieces))]
    assert b"".join(found) == b"".join(parts)
    assert all(0 < len(piece) <= steps.PIECE for piece in found)


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress])
async def test_what_nothing_comes_of_is_left_soon(packed: Callable[[bytes], bytes]) -> None:
    """Members without content, one after another for gigabytes: a build that is cancelled leaves its thread."""
    member = packed(b"")
    read = 0

    def pieces() -> object:
        nonlocal read
        while True:
            read += CUT
            yield member * (CUT // len(member))

    begun = time.process_time()
    batch, more = steps._batch(steps.inflated(pieces()))  # type: ignore[arg-type]
    assert (batch, more) == (b"", True)
    assert read <= 5 * CUT
    assert (time.process_time() - begun) / (read / CUT) < 3
