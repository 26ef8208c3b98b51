"""Servers in machines that say what they should not, and helpers that are not there."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from roost.errors import RoostError, error
from roost.services import asking, helpers, inner
from tests.unit.services.door import Doors, Started, saying, serving
from tests.unit.services.door import helpers as made

HELPER = helpers.Helper("thing", 1, "/ready", "/bin/thing", "things", "BROWSER_DOWN")


async def ask(answer: bytes, limit: int = 1000) -> inner.Answer:
    doors: Any = Doors()
    async with serving(saying(answer)) as doors.port:
        return await inner.Inner(doors).call("t", "m", 1, "GET", "/x", limit=limit, timeout_s=20.0)


async def code(answer: bytes, **how: int) -> str:
    with pytest.raises(RoostError) as caught:
        (await ask(answer, **how)).json()
    return caught.value.code


async def test_an_answer_is_read_whole() -> None:
    found = await ask(
        b"HTTP/1.1 201 Made\r\nContent-Type: Text/X; a=b\r\nContent-Length: 2\r\n\r\nokmore"
    )
    assert (found.status, found.kind, found.body) == (201, "text/x", b"ok")
    assert (await ask(b"HTTP/1.0 200 OK\r\n\r\nto the end")).body == b"to the end"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: " + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\n\r\nno json",
        b"HTTP/1.1 200 OK\r\n\r\n\xff",
    ],
)
async def test_what_is_of_no_use_is_refused(answer: bytes) -> None:
    assert await code(answer) == "PORT_BAD_ANSWER"


async def test_json_may_not_be_deeper_than_it_can_be_read() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert await code(b"HTTP/1.1 200 OK\r\n\r\n" + deep, limit=300_000) == "PORT_BAD_ANSWER"


@pytest.mark.parametrize("part", [b"{}", b"[]", b'""', b'{"a":0}'])
def test_json_may_not_be_of_many_parts(part: bytes) -> None:
    """32 MiB of it, which is what a page may say at once, were 800 MiB of the daemon's memory."""
    said = b"[" + b",".join([part] * 2_500_000) + b"]"
    tracemalloc.start()
    with pytest.raises(RoostError) as caught:
        inner.parse(said)
    assert caught.value.code == "PORT_BAD_ANSWER"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    text = json.dumps({"data": "," * 1_000_000, "n": [*range(500_000)]}).encode()
    assert len(inner.parse(text)["n"]) == 500_000


async def test_silence_has_an_end() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    doors: Any = Doors()
    async with serving(silent) as doors.port:
        with pytest.raises(RoostError) as caught:
            await inner.Inner(doors).call("t", "m", 1, "GET", "/", limit=10, timeout_s=0.1)
        assert caught.value.code == "TIMEOUT"
        with pytest.raises(RoostError) as caught:
            async for _ in inner.Inner(doors).lines("t", "m", 1, "POST", "/", limit=10, idle_s=0.1):
                pass
        assert caught.value.code == "TIMEOUT"


async def test_lines_come_as_they_are_said() -> None:
    doors: Any = Doors()
    said = b'HTTP/1.1 200 OK\r\n\r\n{"n": 1}\n\n{"n": 2}\n'
    async with serving(saying(said)) as doors.port:
        found = []
        with pytest.raises(RoostError) as caught:
            async for each in inner.Inner(doors).lines(
                "t", "m", 1, "POST", "/", limit=20, idle_s=2
            ):
                found.append(each["n"])
        assert found == [1, 2]
        assert caught.value.code == "AGENT_LOST", "it ended before it said so"


async def test_a_dead_helper_is_started_once_for_all_that_ask() -> None:
    doors = Doors()
    async with serving(saying(b"HTTP/1.1 200 OK\r\n\r\n{}")) as port:
        started = Started(lambda: setattr(doors, "port", port))
        h = made(doors, started)
        answers = await asyncio.gather(
            *(h.call("t", "m", HELPER, "GET", "/", limit=10, timeout_s=20.0) for _ in range(5))
        )
    assert [each.status for each in answers] == [200] * 5
    assert started.commands == [["/bin/thing"]]


async def test_a_machine_without_it_says_which_template_has_it() -> None:
    h = made(Doors(), Started(error("COMMAND_NOT_FOUND", "no such thing")))
    with pytest.raises(RoostError) as caught:
        await h.call("t", "m", HELPER, "GET", "/", limit=10, timeout_s=20.0)
    assert (caught.value.code, caught.value.retryable) == ("UNSUPPORTED", False)
    assert "template things" in caught.value.message


async def test_one_that_ends_at_once_is_told_with_its_execution() -> None:
    started = Started()
    started.exit_code = 1
    with pytest.raises(RoostError) as caught:
        await made(Doors(), started).call("t", "m", HELPER, "GET", "/", limit=10, timeout_s=20.0)
    assert caught.value.code == "BROWSER_DOWN"
    assert caught.value.details["execution_id"] == "e"


async def test_a_key_that_may_only_read_starts_nothing() -> None:
    started = Started()

    async def read() -> None:
        asking.only_reads()
        await made(Doors(), started).call("t", "m", HELPER, "GET", "/", limit=10, timeout_s=20.0)

    with pytest.raises(RoostError) as caught:
        await asyncio.create_task(read())
    assert caught.value.code == "BROWSER_DOWN"
    assert started.commands == []
