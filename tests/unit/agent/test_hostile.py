"""An agent that lies: every answer that cannot be true is a typed error, never a crash or a growing heap."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import RoostError
from tests.attack.record import case

pytestmark = case(29)

EID = "e" * 26
Frame = pb.OutputFrame
Shown = pb.TerminalOutput


@contextlib.asynccontextmanager
async def lying(tmp_path: Path, **answers: Any) -> AsyncIterator[AgentClient]:
    """``answers``: method -> raw bytes or message (unary), a list of them (stream), or a tuple (both ways)."""

    def handler(answer: Any) -> Any:
        async def one(request: bytes, context: Any) -> bytes:
            if isinstance(answer, Exception):
                raise answer
            if callable(answer):
                await answer(context)
            return raw(answer)

        async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
            for each in answer:
                yield raw(each)

        async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            for each in answer:
                yield raw(each)

        if isinstance(answer, tuple):
            return grpc.stream_stream_rpc_method_handler(both)
        if isinstance(answer, list):
            return grpc.unary_stream_rpc_method_handler(many)
        return grpc.unary_unary_rpc_method_handler(one)

    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    methods = {name: handler(answer) for name, answer in answers.items()}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("roost.agent.v1.Agent", methods),)
    )
    server.add_insecure_port(f"unix:{tmp_path}/l.sock")
    await server.start()
    client = AgentClient(f"unix:{tmp_path}/l.sock", "t")
    try:
        yield client
    finally:
        await client.close()
        await server.stop(0)


def raw(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


async def refused(call: Any) -> str:
    with pytest.raises(RoostError) as found:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return found.value.code


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(stream=1, offset=5, data=b"x")],
        [Frame(stream=1, offset=0, data=b"xx"), Frame(stream=1, offset=1, data=b"x")],
        [Frame(stream=7, offset=0, data=b"x")],  # type: ignore[arg-type]
        [Frame(stream=1, offset=0, dropped=(1 << 64) - 1, data=b"x")],
        [
            Frame(stream=1, offset=1 << 62, dropped=1 << 62, data=b"x"),
            Frame(stream=1, offset=(1 << 62) + 8, dropped=7, data=b"x"),
            Frame(exit=pb.Execution(execution_id=EID)),
        ],
        [Frame(stream=1, offset=0, data=bytes(2 << 20))],
        [Frame(exit=pb.Execution(execution_id="another"))],
        [Frame(stream=1, offset=0, data=b"x")],  # and no end
        [b"\xff\xff\xff"],
    ],
)
async def test_frames_that_cannot_be(tmp_path: Path, frames: list[Any]) -> None:
    async with lying(tmp_path, Attach=frames) as client:
        assert await refused(client.attach(EID)) == "MACHINE_FAILED"


@pytest.mark.parametrize(
    "answer",
    [
        pb.ExecutionResult(execution=pb.Execution(execution_id="another")),
        pb.ExecutionResult(),
        pb.ExecutionResult(execution=pb.Execution(execution_id=EID, stdout_bytes=(1 << 64) - 1)),
        pb.ExecutionResult(execution=pb.Execution(execution_id=EID, ended_at_unix_ms=1 << 62)),
        b"\x0a\xff\xff\xff\xff\x7f",  # a length past the end
        b"\x0a\x04\x0a\x02\xff\xfe",  # text that is not UTF-8
        b"\x0a" + b"\x02\x0a" * 300,  # nesting
    ],
)
async def test_results_that_cannot_be(tmp_path: Path, answer: Any) -> None:
    async with lying(tmp_path, Wait=answer) as client:
        assert await refused(client.wait(EID)) == "MACHINE_FAILED"


@pytest.mark.parametrize(
    "frames",
    [
        (Shown(offset=(1 << 64) - 1, data=b"x"),),
        (Shown(dropped=(1 << 64) - 1),),
        (Shown(offset=7, data=b"xx"), Shown(offset=8, data=b"x")),
    ],
)
async def test_shown_that_cannot_be(tmp_path: Path, frames: tuple[Shown, ...]) -> None:
    async with lying(tmp_path, AttachTerminal=frames) as client:
        stream = client.attach_terminal("t" * 26)
        await stream.open()

        async def read() -> None:
            while await stream.read() is not None:
                pass

        assert await refused(read()) == "MACHINE_FAILED"
        stream.close()


async def test_an_agent_that_knows_of_no_offsets_is_heard(tmp_path: Path) -> None:
    frames = (Shown(data=b"ab"), Shown(data=b"c", dropped=5), Shown(offset=9, data=b"d"))
    async with lying(tmp_path, AttachTerminal=frames) as client:
        stream = client.attach_terminal("t" * 26)
        await stream.open()
        heard = b""
        while (frame := await stream.read()) is not None:
            heard += frame.data
        assert heard == b"abcd"
        stream.close()


async def test_too_large_a_message_is_not_taken(tmp_path: Path) -> None:
    answer = pb.ExecutionResult(execution=pb.Execution(execution_id=EID), stdout=bytes(64 << 20))
    async with lying(tmp_path, Wait=answer) as client:
        assert await refused(client.wait(EID)) == "MACHINE_FAILED"


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [pb.ReadFileChunk(data=b"x")],
        [pb.ReadFileChunk(info=pb.FileInfo(), length=3), pb.ReadFileChunk(data=b"toolong")],
        [pb.ReadFileChunk(info=pb.FileInfo(), length=3), pb.ReadFileChunk(data=b"x")],
        [pb.ReadFileChunk(info=pb.FileInfo(size=(1 << 64) - 1), length=1)],
        [pb.ReadFileChunk(info=pb.FileInfo(), length=1, data=b"xx")],
    ],
)
async def test_files_that_cannot_be(tmp_path: Path, chunks: list[Any]) -> None:
    async with lying(tmp_path, ReadFile=chunks) as client:

        async def read() -> None:
            _, body = await client.read_file(b"/f")
            async for _ in body:
                pass

        assert await refused(read()) == "MACHINE_FAILED"


async def test_lists_that_never_end(tmp_path: Path) -> None:
    async with lying(tmp_path, ListDir=pb.ListDirReply(more=True)) as client:
        assert await refused(client.list_dir(b"/", 10, b"")) == "MACHINE_FAILED"
    many = pb.ListDirReply(entries=[pb.FileInfo(name=b"x")] * 11)
    async with lying(tmp_path, ListDir=many) as client:
        assert await refused(client.list_dir(b"/", 10, b"")) == "MACHINE_FAILED"


def ends(code: grpc.StatusCode, text: str, **trailing: str) -> Callable[[Any], Any]:
    async def end(context: Any) -> None:
        context.set_trailing_metadata(
            tuple((name.replace("_", "-"), value) for name, value in trailing.items())
        )
        await context.abort(code, text)

    return end


async def test_statuses(tmp_path: Path) -> None:
    status = grpc.StatusCode
    for end, code in (
        (ends(status.RESOURCE_EXHAUSTED, "full", roost_code="NO_SPACE"), "MACHINE_DISK_FULL"),
        (ends(status.NOT_FOUND, "no", roost_code="FILE_NOT_FOUND"), "FILE_NOT_FOUND"),
        (ends(status.NOT_FOUND, "no", roost_code="AUTH_INVALID"), "MACHINE_FAILED"),
        (ends(status.NOT_FOUND, "no", roost_code="no such code"), "MACHINE_FAILED"),
        (ends(status.UNIMPLEMENTED, "no"), "UNSUPPORTED"),
        (ends(status.UNAVAILABLE, "no"), "AGENT_LOST"),
        (ends(status.CANCELLED, "no"), "AGENT_LOST"),
        (ends(status.UNAUTHENTICATED, "no"), "AGENT_LOST"),
        (RuntimeError("boom"), "AGENT_LOST"),
    ):
        async with lying(tmp_path, Stat=end) as client:
            assert await refused(client.stat(b"/")) == code


async def test_messages_are_made_harmless(tmp_path: Path) -> None:
    text = "a\x1b[31m\nb" + "x" * 5000
    end = ends(grpc.StatusCode.NOT_FOUND, text, roost_code="FILE_NOT_FOUND")
    async with lying(tmp_path, Stat=end) as client:
        with pytest.raises(RoostError) as found:
            await client.stat(b"/")
    assert "\x1b" not in found.value.message and "\n" not in found.value.message
    assert len(found.value.message) <= 500


async def test_another_contract_is_refused(tmp_path: Path) -> None:
    async with lying(tmp_path, Hello=pb.HelloReply(contract_major=2)) as client:
        assert await refused(client.wait_ready(5)) == "MACHINE_FAILED"
        with pytest.raises(RoostError) as later:  # and nothing else is asked of it
            await client.stat(b"/")
        assert later.value.details == {"contract": 2, "wanted": 1}
