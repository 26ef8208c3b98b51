"""What a call costs more as a tool: exec of ``true`` over ``roost mcp``, stdio and HTTP, against the SDK's own exec
in the same machine; and in the shell of the adapters, which keeps its state."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from bench.report import Report
from roost import AsyncClient, AsyncMachine
from roost.client._config import resolve
from roost.tools._async._shell import AsyncShell

COMMAND = [sys.executable, "-m", "roost.cli", "mcp"]


def run(report: Report, n: int) -> None:
    asyncio.run(_run(report, max(n, 20)))


async def _run(report: Report, n: int) -> None:
    config = resolve()
    env = {**os.environ, "ROOST_URL": config.url, "ROOST_API_KEY": config.api_key}
    process = subprocess.Popen(
        [*COMMAND, "--http", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = json.loads("".join(process.stdout.readline() for _ in range(3)))["url"]
    try:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient())
            machine = await AsyncMachine.create(driver="runc", memory_mib=256, client=client)
            stack.push_async_callback(machine.destroy)
            headers = {"Authorization": f"Bearer {config.api_key}"}
            begun = time.perf_counter()
            how = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=env)
            stdio = await stack.enter_async_context(Client(stdio_client(how)))
            await stdio.list_tools()
            report.add(
                "roost mcp, start -> tools listed", "ms", [(time.perf_counter() - begun) * 1000]
            )
            transport = await stack.enter_async_context(httpx2.AsyncClient(headers=headers))
            http = await stack.enter_async_context(
                Client(streamable_http_client(url, http_client=transport))
            )
            shell = AsyncShell(machine)
            given = {"machine": machine.id, "command": "true"}
            ways: dict[str, Callable[[], Awaitable[object]]] = {
                "the SDK": lambda: machine.exec("true"),
                "a tool over stdio": lambda: stdio.call_tool("exec", given),
                "a tool over HTTP": lambda: http.call_tool("exec", given),
                "the shell of the adapters": lambda: shell.run("true"),
            }
            took: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(n + 2):
                for name, way in ways.items():
                    begun = time.perf_counter()
                    await way()
                    if turn >= 2:
                        took[name].append((time.perf_counter() - begun) * 1000)
            await shell.restart()
        for name, samples in took.items():
            raw = None if name == "the SDK" else took["the SDK"]
            report.add(f"exec true by {name}, runc", "ms", samples, raw)
    finally:
        process.terminate()
        process.wait(10)
