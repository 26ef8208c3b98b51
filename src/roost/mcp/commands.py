"""Commands in machines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from pydantic import Field

from roost import AsyncExecution, ExecExit, ExecTimeout, RoostError
from roost.mcp import shapes
from roost.mcp.tool import Call, MachineName, meant, tool
from roost.tools._text import Clip

PROGRESS_S = 10.0
OUTPUT = 20_000
MOST = 200_000
LEFT_OUT = (
    "Output was left out. Ask for more with max_output, or run it with its output in a file and read that "
    "with read_file."
)
MaxOutput = Annotated[
    int, Field(description="Bytes of stdout and of stderr that are shown", ge=1000, le=MOST)
]
ExecutionId = Annotated[str, Field(description="As exec said it", min_length=1, max_length=64)]


@tool("exec", "Run a command", destroys=True, world=True)
async def exec_(
    call: Call,
    machine: MachineName,
    command: Annotated[str, Field(description="Run by /bin/sh -c", min_length=1)],
    cwd: Annotated[str, Field(description="Absolute; empty: the template's")] = "",
    env: Annotated[dict[str, str] | None, Field(description="On top of the machine's")] = None,
    user: Annotated[str, Field(description="Who runs it; empty: the template's, mostly root")] = "",
    stdin: Annotated[str, Field(description="What it reads")] = "",
    timeout_seconds: Annotated[
        float, Field(description="All it started is killed then", gt=0, le=86400)
    ] = 120,
    background: Annotated[
        bool, Field(description="Return at once; exec_output shows how it goes on")
    ] = False,
    max_output: MaxOutput = OUTPUT,
) -> shapes.Output:
    """Runs a command in a machine and returns what it wrote and its exit code. A sleeping machine is woken. Each command
    is a process of its own: directories and variables do not carry over."""
    target = await meant(call, machine)
    if background:
        started = await target.executions.start(
            command, cwd=cwd or None, env=env, user=user or None, stdin=stdin or None
        )
        told = "It runs in the background: exec_output shows it, exec_stop ends it."
        return _output(started.id, started.status, None, Clip(), Clip(), None, told)
    out, err = Clip(max_output), Clip(max_output)
    stream = target.exec_stream(
        command,
        cwd=cwd or None,
        env=env,
        user=user or None,
        stdin=stdin or None,
        timeout=timeout_seconds,
    )
    hint: str | None = None
    beginning = asyncio.ensure_future(stream.start())
    try:
        execution = await asyncio.shield(beginning)
        async with _progress(call):
            async for chunk in stream:
                (out if chunk.stream == "stdout" else err).feed(chunk.data)
    except ExecTimeout:
        hint = f"Its {timeout_seconds:g} s ran out and all it started was killed: more timeout_seconds, or background."
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True), contextlib.suppress(RoostError):
            await (await beginning).kill()  # also what is given up while it begins
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()
    ended = stream.exit
    assert ended is not None
    return _output(execution.id, ended.status, ended, out, err, ended.duration_ms, hint)


@tool("exec_output", "Output of a command", reads=True)
async def exec_output(
    call: Call,
    machine: MachineName,
    execution_id: ExecutionId,
    wait_seconds: Annotated[
        float, Field(description="How long to wait for its end first", ge=0, le=300)
    ] = 0,
    max_output: MaxOutput = OUTPUT,
) -> shapes.Output:
    """What a command has written so far, and how it ended if it has. Of each stream the first and the last 512 KiB are
    kept."""
    target = await meant(call, machine)
    execution = await target.executions.get(execution_id)
    if wait_seconds and execution.running:
        async with _progress(call):
            with contextlib.suppress(RoostError):  # of a time that ran out: it is shown as it is
                await execution.wait(wait_seconds)
    return await _shown(execution, max_output)


@tool("exec_stop", "Stop a command", destroys=True, again=True)
async def exec_stop(call: Call, machine: MachineName, execution_id: ExecutionId) -> shapes.Output:
    """Kills a command and all it started; returns what it wrote."""
    target = await meant(call, machine)
    execution = await (await target.executions.get(execution_id)).kill()
    return await _shown(execution, OUTPUT)


async def _shown(execution: AsyncExecution, limit: int) -> shapes.Output:
    done = await execution.output()
    out, err = Clip(limit), Clip(limit)
    out.feed(done.stdout_bytes)
    err.feed(done.stderr_bytes)
    hint = "Some of what it wrote is not kept." if done.truncated else None
    ended = None if execution.running else execution.exit
    duration = ended.duration_ms if ended else None
    return _output(execution.id, execution.status, ended, out, err, duration, hint)


def _output(
    execution_id: str,
    status: str,
    ended: ExecExit | None,
    out: Clip,
    err: Clip,
    duration_ms: int | None,
    hint: str | None,
) -> shapes.Output:
    if hint is None and (out.cut or err.cut):
        hint = LEFT_OUT
    return shapes.Output(
        execution_id=execution_id,
        status=status,
        exit_code=None if ended is None else ended.exit_code,
        stdout=out.text(),
        stderr=err.text(),
        stdout_left_out=out.cut,
        stderr_left_out=err.cut,
        duration_ms=duration_ms,
        hint=hint,
    )


@contextlib.asynccontextmanager
async def _progress(call: Call) -> AsyncIterator[None]:
    """Tells a host that asked for it every few seconds that it still goes on."""
    begun = time.monotonic()

    async def tell() -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            passed = time.monotonic() - begun
            await call.report_progress(passed, message=f"running for {passed:.0f} s")

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
