"""Server-sent events whose errors are PandaStack's, and text out of bytes that come in pieces."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator

from roost.dialects.pandastack import errors
from roost.errors import RoostError
from roost.gateway import access, respond
from roost.gateway.app import Caller

LINE = 64 * 1024  # characters of a line; what goes on is another one
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def events(made: AsyncGenerator[bytes, None], caller: Caller) -> respond.Streamed:
    return respond.Streamed(
        _guarded(made, caller),
        200,
        _HEADERS,
        "text/event-stream",
        keep_alive=b": keep-alive\n\n",
        farewell=respond.event("error", {"error": "The daemon is stopping; connect again."}),
    )


async def _guarded(
    made: AsyncGenerator[bytes, None], caller: Caller
) -> AsyncGenerator[bytes, None]:
    try:
        async for each in made:
            yield each
    except RoostError as failure:
        told = access.told(failure, caller.principal)
        yield respond.event("error", {"error": errors.text(told)})
    except Exception as failure:
        said = respond.unexpected(failure, caller.request_id)
        yield respond.event("error", {"error": said.message})
    finally:
        await made.aclose()


class Text:
    """One stream's bytes as text: a character cut in two waits for its rest."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


class Lines:
    """Text as lines. What never ends one is not kept for it: it comes in pieces."""

    def __init__(self) -> None:
        self._begun = ""

    def take(self, text: str) -> list[str]:
        *lines, self._begun = (self._begun + text).split("\n")
        if len(self._begun) >= LINE:
            lines.append(self.rest())
        return lines

    def rest(self) -> str:
        begun, self._begun = self._begun, ""
        return begun
