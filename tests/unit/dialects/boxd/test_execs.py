"""Commands: streams, stdin and its end, exit codes, terminals, and that who leaves ends what they began."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from roost.dialects.boxd.wire import boxd_pb2 as pb
from tests.unit.api.kit import until

from .conftest import Box


async def test_streams_and_exit_code(box: Box, vm: str) -> None:
    out = await box.run(vm, "echo out; echo err >&2; exit 7")
    assert out == (b"out\n", b"err\n", 7)


async def test_a_command_is_shell(box: Box, vm: str) -> None:
    assert await box.run(vm, "A='x y' sh -c 'echo \"$A\"' | tr x z && cd / && pwd") == (
        b"z y\n/\n",
        b"",
        0,
    )


async def test_a_signal_is_a_shells_exit_code(box: Box, vm: str) -> None:
    assert (await box.run(vm, "kill -9 $$"))[2] == 137


async def test_no_command(box: Box, vm: str) -> None:
    assert (await box.run(vm, "no-such-command-here"))[2] == 127


async def test_half_closing_is_the_end_of_stdin(box: Box, vm: str) -> None:
    assert await box.run(vm, "cat; echo over") == (b"over\n", b"", 0)
    assert await box.run(vm, "cat; echo over", stdin=b"given ") == (b"given over\n", b"", 0)


async def test_stdin_as_it_comes(box: Box, vm: str) -> None:
    call = box.exec()
    await call.write(pb.ExecChunk(vm_id=vm, command="while read line; do echo got $line; done"))
    for word in ("a", "b"):
        await asyncio.sleep(0.05)
        await call.write(pb.ExecChunk(data=f"{word}\n".encode(), stdin=True))
        assert (await call.read()).data == f"got {word}\n".encode()
    await call.write(pb.ExecChunk(window_change=True, cols=10, rows=10))  # of no terminal
    await call.done_writing()
    last = await call.read()
    assert (last.data, last.exit_code) == (b"", 0)
    assert await call.read() is grpc.aio.EOF


async def test_much_goes_both_ways(box: Box, vm: str) -> None:
    sent = bytes(range(256)) * 8192  # 2 MiB
    out, _, code = await box.run(vm, "cat", stdin=sent)
    assert (out == sent, code) == (True, 0)


async def test_who_leaves_ends_what_they_began(box: Box, vm: str, tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    call = box.exec()
    script = f"(while sleep 0.05; do date +%N > {mark}; done) & echo begun; wait"
    await call.write(pb.ExecChunk(vm_id=vm, command=script))
    assert (await call.read()).data == b"begun\n"
    await until(mark.exists)
    call.cancel()
    await until(lambda: not box.served.executions.running)
    before = mark.read_bytes()
    await asyncio.sleep(0.3)
    assert mark.read_bytes() == before


async def test_a_deadline_ends_it_too(box: Box, vm: str) -> None:
    call = box.exec(timeout=0.5)
    await call.write(pb.ExecChunk(vm_id=vm, command="sleep 60"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: not box.served.executions.running)


async def test_a_terminal(box: Box, vm: str) -> None:
    call = box.exec()
    command = "stty size; read line; echo said $line; stty size; exit 3"
    await call.write(pb.ExecChunk(vm_id=vm, command=command, tty=True, cols=100, rows=30))
    seen = b""
    while b"30 100" not in seen:
        seen += (await call.read()).data
    await call.write(pb.ExecChunk(window_change=True, cols=120, rows=40))
    await call.write(pb.ExecChunk(data=b"hello\n", stdin=True))
    code = None
    while chunk := await call.read():
        seen += chunk.data
        code = chunk.exit_code
    assert b"said hello" in seen
    assert b"40 120" in seen
    assert code == 3
    assert not [t for t in await box.served.services.terminals.list("tenant-a", vm) if t.alive]


async def test_what_a_terminals_command_leaves_behind_lives(
    box: Box, vm: str, tmp_path: Path
) -> None:
    mark = tmp_path / "alive"
    script = f"trap '' HUP; (sleep 0.3; touch {mark}) & echo begun"
    out, _, code = await box.run(vm, script, tty=True)
    assert (out, code) == (b"begun\r\n", 0)
    await until(mark.exists)


async def test_the_end_of_typing_is_a_terminals_end_of_file(box: Box, vm: str) -> None:
    out, _, code = await box.run(vm, "cat; echo over", tty=True)
    assert b"over" in out
    assert code == 0


async def test_who_leaves_a_terminal_hangs_up(box: Box, vm: str) -> None:
    call = box.exec()
    await call.write(pb.ExecChunk(vm_id=vm, command="echo begun; sleep 60", tty=True))
    assert b"begun" in (await call.read()).data
    call.cancel()

    async with asyncio.timeout(10):
        while any(t.alive for t in await box.served.services.terminals.list("tenant-a", vm)):
            await asyncio.sleep(0.05)


async def test_the_first_chunk_names_the_machine(box: Box) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.run("", "true")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await box.run("nobody", "true")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
