"""E2B's streams: frames come out alike however they are cut, and what is none is refused in words."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from roost.dialects.e2b.envd import messages
from roost.dialects.e2b.envd.connect import Message, _messages, frame
from roost.dialects.e2b.envd.refusals import STATUS, Refused
from tests.fuzz.targets._pieces import cut

MESSAGES = [
    each
    for each in vars(messages).values()
    if isinstance(each, type) and issubclass(each, Message) and each is not Message
]
COVERS = ("roost.dialects.e2b.envd.connect", "roost.dialects.e2b.envd.messages")
SEEDS = (
    b"\x05\x00"
    + frame({"process": {"cmd": "/bin/sh", "args": ["-c", "x"], "envs": {"A": "b"}, "cwd": "/"}}),
    b"\x3c\x01" + frame({"selector": {"pid": 5}, "input": {"stdin": "aGk="}}) + frame({}),
    b"\x3c\x02" + frame({"pty": {"size": {"cols": 80, "rows": 24}}, "tag": None}),
    b"\x01\x00\x01\x00\x00\x00\x00",
    b"\x01\x00\x00\xff\xff\xff\xff",
)
WORDS = (
    b'"process": ',
    b'"selector": ',
    b'"pid": ',
    b'"tag": ',
    b'"input": ',
    b'"pty": ',
    b"\x00\x00\x00\x00",
)


class _Request:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)

    def stream(self) -> _Request:
        return self

    def __aiter__(self) -> _Request:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


async def _read(of: type[Message], pieces: list[bytes]) -> tuple[list[Message], str | None]:
    found: list[Message] = []
    request: Any = _Request(pieces)
    try:
        async with contextlib.aclosing(_messages(of, request)) as said:
            async for each in said:
                found.append(each)
    except Refused as refused:
        assert refused.code in STATUS
        refused.message.encode()
        return found, refused.code
    return found, None


_loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    if len(data) < 2:
        return
    of = MESSAGES[data[1] % len(MESSAGES)]
    pieces, whole = cut(data[:1] + data[2:])
    assert _loop.run_until_complete(_read(of, pieces)) == _loop.run_until_complete(
        _read(of, [whole])
    )
