"""What a machine asks of its daemon: ``roost status`` inside against a plain exec, and what an idle machine costs for it.

The stream is held open for as long as a machine runs, so what counts is what it holds: memory of the daemon and of the
agent, with and without it, in machines that do nothing.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.report import Report, ms, paired
from roost import Machine
from roost.agent.client import AgentClient
from roost.agent.streams import InsideStream
from roost.drivers.tree import default_agent

STREAMS = 200
TOKEN = "bench"


def run(report: Report, n: int) -> None:
    for driver in ("gvisor", "runc", "qemu"):
        with Machine.create(driver=driver, memory_mib=256, autosleep="never") as m:
            m.exec("roost status", check=True)
            time.sleep(1)
            # Not more often than a machine may ask.
            asked, plain = paired(
                max(n, 20),
                lambda m=m: _paced(m, ["roost", "status"]),  # type: ignore[misc]
                lambda m=m: _paced(m, ["/run/roost/roost", "help"]),  # type: ignore[misc]
                block=5,
            )
        report.add(f"exec of roost status, {driver} (raw: of roost help)", "ms", asked, plain)
    daemon, agent = asyncio.run(_streams())
    report.add("an idle machine's stream, in the daemon", "KiB", [daemon])
    report.add("an idle machine's stream, in the agent", "KiB", [agent])


def _paced(m: Machine, command: list[str]) -> float:
    time.sleep(0.12)
    return ms(lambda: m.exec(command, check=True))


async def _streams() -> tuple[float, float]:
    """KiB of each end: a client process's, of agents that it has greeted already, and one agent's."""
    with tempfile.TemporaryDirectory() as name:
        agents = [_agent(Path(name), number) for number in range(STREAMS)]
        try:
            clients = [
                AgentClient(f"unix:{name}/{number}.sock", TOKEN) for number in range(STREAMS)
            ]
            for client in clients:
                await client.wait_ready(30)
            await asyncio.sleep(1)
            before, of_agents = _rss("self"), sum(_rss(str(a.pid)) for a in agents)
            streams = [client.inside() for client in clients]
            reading = [asyncio.ensure_future(_read(stream)) for stream in streams]
            await asyncio.sleep(3)
            after, then = _rss("self"), sum(_rss(str(a.pid)) for a in agents)
            for client in clients:
                await client.close()
            await asyncio.gather(*reading, return_exceptions=True)
            return (after - before) / STREAMS, (then - of_agents) / STREAMS
        finally:
            for each in agents:
                each.kill()
                each.wait()


async def _read(stream: InsideStream) -> None:
    while await stream.read() is not None:
        pass


def _agent(directory: Path, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            str(default_agent()),
            *("--listen", f"unix:{directory}/{number}.sock"),
            *("--inside", f"{directory}/{number}.inside"),
        ],
        env={"ROOST_AGENT_TOKEN": TOKEN, "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
    )


def _rss(pid: str) -> int:
    """KiB that are its own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    return int(lines["Private_Clean"]) + int(lines["Private_Dirty"])
