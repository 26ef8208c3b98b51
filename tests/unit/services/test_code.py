"""Code in kernels: runs whose connection breaks, outputs beyond all bounds, helpers that talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from roost.errors import RoostError
from roost.services import code as services
from roost.services.code import Began, Code, Ended, Raised, RunCode, Shown, Text
from tests.unit.services.door import Doors, helpers, serving

END = {"type": "end", "status": "ok", "execution_count": 1, "restarted": False}


class Machines:
    async def awake(self, tenant: str, machine_id: str) -> Any:
        machine = SimpleNamespace(env={"MINE": "1"})
        return SimpleNamespace(config={"env": {"ITS": "2"}}, machine=machine, told={})

    def runs(self, machine_id: str) -> bool:
        return True


class Kernel:
    """Plays the helper: each connection says its lines and ends."""

    def __init__(self, *connections: list[Any] | int) -> None:
        self.connections = list(connections)
        self.asked: list[tuple[str, Any]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        body = None
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                body = json.loads(await reader.readexactly(int(line.split(b":")[1])))
        self.asked.append((path, body))
        if path.endswith("interrupt"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            return
        lines = self.connections.pop(0)
        if isinstance(lines, int):
            writer.write(b"HTTP/1.1 %d No\r\n\r\n" % lines + self.refusal)
        else:
            writer.write(b'HTTP/1.1 200 OK\r\n\r\n{"type": "began"}\n')
            for line in lines:
                writer.write((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")
        await writer.drain()

    refusal = b"{}"


@contextlib.asynccontextmanager
async def code(kernel: Kernel) -> Any:
    doors = Doors()
    machines: Any = Machines()
    async with serving(kernel) as doors.port:
        yield Code(helpers(doors), machines)


def out(n: int, text: str, stream: str = "stdout") -> dict[str, Any]:
    return {"n": n, "type": stream, "text": text}


async def test_all_of_it_comes_in_turn() -> None:
    shown = {
        "n": 3,
        "type": "result",
        "main": True,
        "data": {"text/plain": "2", "image/png": "eA==", "no type": "x"},
    }
    raised = {"n": 4, "type": "error", "name": "E", "value": "v", "traceback": "t"}
    kernel = Kernel([out(1, "a"), out(2, "b", "stderr"), shown, raised, {"n": 5, **END}])
    async with code(kernel) as c:
        events = [each async for each in c.stream("t", "m", RunCode("1+1", timeout_s=5))]
    assert events == [
        Began(), Text("stdout", "a"), Text("stderr", "b"), Shown(True, {"text/plain": "2", "image/png": "eA=="}),
        Raised("E", "v", "t"), Ended("ok", 1, False),
    ]  # fmt: skip
    path, body = kernel.asked[0]
    assert path == "/run"
    assert body["env"] == {"ITS": "2", "MINE": "1"}
    assert (body["code"], body["context"], body["timeout_s"]) == ("1+1", "default", 5)


async def test_a_connection_that_breaks_is_made_again_where_it_was() -> None:
    """A capture cuts connections into its machine; the run does not notice."""
    kernel = Kernel([out(1, "a")], [out(1, "a"), out(2, "b")], [out(3, "c"), {"n": 4, **END}])
    async with code(kernel) as c:
        result = await c.run("t", "m", RunCode("x"))
    assert (result.stdout, result.ended.status) == ("abc", "ok")
    run = kernel.asked[0][1]["run"]
    assert [path for path, _ in kernel.asked[1:]] == [
        f"/runs/{run}?after=1",
        f"/runs/{run}?after=2",
    ]


async def test_one_that_breaks_again_and_again_is_given_up() -> None:
    async with code(Kernel(*[[] for _ in range(10)])) as c:
        with pytest.raises(RoostError) as caught:
            await c.run("t", "m", RunCode("x"))
    assert caught.value.code == "AGENT_LOST"


async def test_who_leaves_has_it_interrupted() -> None:
    kernel = Kernel([out(1, "a"), out(2, "b")])
    async with code(kernel) as c:
        events = c.stream("t", "m", RunCode("x"))
        assert await anext(events) == Began()
        await events.aclose()
        async with asyncio.timeout(30):
            while len(kernel.asked) < 2:
                await asyncio.sleep(0.01)
        run = kernel.asked[0][1]["run"]
        assert kernel.asked[1][0] == f"/runs/{run}/interrupt"


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "TEXT", 10)
    monkeypatch.setattr(services, "KEPT", 10)
    big = {"type": "result", "main": False, "data": {"text/plain": "x" * 8}}
    kernel = Kernel([out(1, "a" * 50), {"n": 2, **big}, {"n": 3, **big}, {"n": 4, **END}])
    async with code(kernel) as c:
        result = await c.run("t", "m", RunCode("x"))
    assert result.stdout == "a" * 10
    assert len(result.results) == 1
    assert result.truncated


@pytest.mark.parametrize("line", ["no json", "[]", "x" * 100_000])
async def test_nonsense_is_refused(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LINE", 50_000)
    async with code(Kernel([line])) as c:
        with pytest.raises(RoostError) as caught:
            await c.run("t", "m", RunCode("x"))
    assert caught.value.code == "PORT_BAD_ANSWER"


async def test_lines_of_no_known_form_are_left_out() -> None:
    odd: list[Any] = [
        {"n": 1, "type": "stdout"},
        {"n": 2, "type": "result", "data": []},
        {"n": "3"},
        {"n": 4, **END, "status": "<b>"},
    ]
    async with code(Kernel(odd)) as c:
        result = await c.run("t", "m", RunCode("x"))
    assert (result.stdout, result.results, result.ended.status) == ("", [], "died")


@pytest.mark.parametrize(
    ("said", "expected", "text"),
    [
        ({"error": "language", "known": ["python", "ba\x1bsh"]}, "VALIDATION_FAILED", "there are: python"),
        ({"error": "contexts"}, "LIMIT_EXCEEDED", "delete"),
        ({"error": "start"}, "KERNEL_DOWN", "did not come up"),
        ({"error": "?"}, "PORT_BAD_ANSWER", ""),
    ],
)  # fmt: skip
async def test_refusals_in_our_words(said: Any, expected: str, text: str) -> None:
    kernel = Kernel(422)
    kernel.refusal = json.dumps(said).encode()
    async with code(kernel) as c:
        with pytest.raises(RoostError) as caught:
            await c.run("t", "m", RunCode("x", language="r"))
    assert caught.value.code == expected
    assert text in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    "spec",
    [
        RunCode("x" * 1_000_001),
        RunCode("x", language="../x"),
        RunCode("x", context="-x"),
        RunCode("x", context="a" * 65),
        RunCode("x", timeout_s=0),
        RunCode("x", timeout_s=float("nan")),
    ],
)
async def test_what_cannot_be_is_refused(spec: RunCode) -> None:
    async with code(Kernel()) as c:
        with pytest.raises(RoostError) as caught:
            await c.run("t", "m", spec)
    assert caught.value.code == "VALIDATION_FAILED"
