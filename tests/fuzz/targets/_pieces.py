"""How a stream is cut, as an input says it."""

from __future__ import annotations

from collections.abc import Iterator


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """The first byte says into pieces of what size the rest is cut: (the pieces, the rest)."""
    size = (data[0] if data else 0) % 61 + 1
    rest = data[1:]
    return [rest[at : at + size] for at in range(0, len(rest), size)], rest


def fields(data: bytes, count: int) -> Iterator[bytes]:
    """So many parts, each after its length in one byte; the last is what is left."""
    for _ in range(count - 1):
        size = data[0] if data else 0
        yield data[1 : 1 + size]
        data = data[1 + size :]
    yield data
