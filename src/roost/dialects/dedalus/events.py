"""An execution's life and output as numbered events; pure.

    running, chunks of stdout, chunks of stderr, ... , how it ended

What the services keep is bytes of two streams, so events are cut from those as they are asked for: their order within
one stream is exact, between the two it is that of the asking, and so is the time of a chunk. A character that is not
whole yet waits for its rest. ``Place`` is how far somebody has come; where nothing is left of an ended one there is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from roost.api.v1.shapes import time
from roost.dialects.dedalus.shapes import why
from roost.errors import InvalidRequestError
from roost.services.outcome import HEAD_BYTES
from roost.store.executions import LIVE, ExecutionRow

CHUNK = 16 * 1024
STREAMS = ("stdout", "stderr")
_PLACE = re.compile(r"\d{1,15}\.\d{1,15}\.\d{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    sequence: int = 0  # of the next event
    stdout: int = 0  # the next byte
    stderr: int = 0

    def __str__(self) -> str:
        return f"{self.sequence}.{self.stdout}.{self.stderr}"

    @staticmethod
    def read(cursor: str) -> Place:
        """Raises INVALID_CURSOR."""
        if not _PLACE.fullmatch(cursor):
            raise InvalidRequestError(
                "This cursor is not one of these events': use next_cursor of the answer before.",
                code="INVALID_CURSOR",
            )
        return Place(*(int(part) for part in cursor.split(".")))


def events(
    row: ExecutionRow, place: Place, limit: int, now: datetime
) -> tuple[list[dict[str, Any]], Place | None]:
    """At most ``limit`` (>= 1) from there on, of a row with its output so far; and where to go on."""
    live = row.status in LIVE
    at = time(now if live or row.ended_at is None else row.ended_at)
    found: list[dict[str, Any]] = []
    if place.sequence == 0:
        place = replace(place, sequence=1)
        if live or row.started_at is not None:
            began = time(row.started_at or row.created_at)
            found.append({"sequence": 0, "type": "lifecycle", "at": began, "status": "running"})
    for stream in STREAMS:
        for offset, piece in _pieces(row, stream, getattr(place, stream), live):
            if len(found) == limit:
                return found, place
            text = piece.decode(errors="replace")
            found.append({"sequence": place.sequence, "type": stream, "at": at, "chunk": text})
            place = replace(place, sequence=place.sequence + 1, **{stream: offset + len(piece)})
    if live or len(found) == limit:
        return found, place
    last = {
        "sequence": place.sequence,
        "type": "lifecycle",
        "at": at,
        "status": row.status,
        "exit_code": row.exit_code,
        "signal": row.signal,
        **why(row),
    }
    found.append({name: value for name, value in last.items() if value is not None})
    return found, None


def _pieces(row: ExecutionRow, stream: str, start: int, live: bool) -> Iterator[tuple[int, bytes]]:
    """What is kept of it from ``start`` on, in chunks that end with whole characters."""
    data: bytes = getattr(row, stream) or b""
    total: int = max(getattr(row, f"{stream}_bytes") or 0, len(data))
    parts = [(0, data)]
    if getattr(row, f"{stream}_truncated"):
        head = data[:HEAD_BYTES]
        parts = [(0, head), (total - (len(data) - len(head)), data[len(head) :])]
    for n, (offset, part) in enumerate(parts):
        skip = max(0, start - offset)
        more = live and n == len(parts) - 1
        while skip < len(part):
            piece = part[skip : skip + CHUNK]
            if more or skip + len(piece) < len(part):
                piece = _whole(piece)
            if not piece:
                break
            yield offset + skip, piece
            skip += len(piece)


def _whole(piece: bytes) -> bytes:
    """Without a character at its end that has begun only."""
    for back in range(1, min(4, len(piece) + 1)):
        byte = piece[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return piece[:-back] if needs > back else piece
    return piece
