"""Bodies of uploads, in pieces of a good size."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator

from starlette.requests import ClientDisconnect, Request

from roost.agent.calls import cut
from roost.errors import InvalidRequestError, TimeoutExpired

PIECE = 1024 * 1024
SMALL = 256 * 1024
IDLE_S = 120.0
FREE_BYTES = 64 * 2**20
MAX_RATIO = 200
_UNITS = 128 * 1024


async def pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """At most 1 MiB each, at least 256 KiB as a rule. Raises INVALID_BODY when the client goes away
    before the end, TIMEOUT when nothing comes for two minutes."""
    held: list[bytes] = []
    size = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                part = await anext(stream)
        except StopAsyncIteration:
            break
        except TimeoutError as failure:
            raise TimeoutExpired("The upload stalled for two minutes.") from failure
        except ClientDisconnect as failure:
            raise InvalidRequestError("The upload broke off.", code="INVALID_BODY") from failure
        if held and size + len(part) > PIECE:
            yield b"".join(held)
            held, size = [], 0
        if SMALL <= len(part) <= PIECE and not held:
            yield part
            continue
        for each in cut(part, PIECE):
            held.append(each)
            size += len(each)
            if size >= SMALL:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)


async def decoded(request: Request) -> AsyncGenerator[bytes, None]:
    """As ``pieces``, through ``Content-Encoding: gzip`` where the client says so. Raises INVALID_BODY for what is
    not gzip, PAYLOAD_TOO_LARGE for what unpacks to too many times its size."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        async for piece in pieces(request):
            yield piece
        return
    if encoding not in ("gzip", "x-gzip"):
        raise InvalidRequestError(
            "Content-Encoding: gzip or none.", details={"field": "Content-Encoding"}
        )
    taken = given = 0
    inflater = zlib.decompressobj(31)
    async for piece in pieces(request):
        taken += len(piece)
        rest = piece
        while rest:
            unit, rest = rest[:_UNITS], rest[_UNITS:]
            while unit or inflater.unconsumed_tail:
                if inflater.eof:  # another member follows
                    inflater = zlib.decompressobj(31)
                try:
                    out = await asyncio.to_thread(inflater.decompress, unit, PIECE)
                except zlib.error as failure:
                    raise InvalidRequestError(
                        "The body is not gzip.", code="INVALID_BODY"
                    ) from failure
                unit = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                given += len(out)
                if given > FREE_BYTES and given > taken * MAX_RATIO:
                    raise InvalidRequestError(
                        f"The body unpacks to more than {MAX_RATIO} times its size; send it as it is.",
                        code="PAYLOAD_TOO_LARGE",
                    )
                if out:
                    yield out
                elif not unit:
                    break
    if taken and not inflater.eof:
        raise InvalidRequestError("The gzip body ends too early.", code="INVALID_BODY")
