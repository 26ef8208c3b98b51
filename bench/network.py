"""Network slots: what a create waits for (a slot from the pool), what the pool waits for (a slot being made), and a
policy that changes under way. Beside each, the bare tools for the same: two namespaces, two veth pairs, the same rules by
``nft``. Needs root and no daemon; in a range of its own."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

from bench.report import Report, ms
from roost.egress.policy import Policy
from roost.network import SlotNetwork, ranges, rules
from roost.settings import Settings

OPEN = Policy.read("open")
LIST = Policy.read({"allow": ["packages.example", "*.mirror.example", "192.0.2.0/24:5432"]})


async def _ms(what: Awaitable[object]) -> float:
    began = time.perf_counter()
    await what
    return (time.perf_counter() - began) * 1e3


def _bare(network: SlotNetwork) -> float:
    """``ip`` and ``nft``, a process each, for one slot of an index that is not ours."""
    slot = network.plan.slot(0)
    text = rules.gateway(slot, ranges.refused((), network.plan)) + rules.policy(OPEN)
    one, two = "rbench-g", "rbench-m"
    inside = ["ip", "netns", "exec", one]
    script = [
        ["ip", "netns", "add", one],
        ["ip", "netns", "add", two],
        [*inside, "nft", "-f", "-"],
        ["ip", "link", "add", "rbench-h", "type", "veth", "peer", "name", "out", "netns", one],
        [
            "ip",
            "-n",
            one,
            "link",
            "add",
            "in",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            two,
        ],
        ["ip", "-n", one, "addr", "add", "10.0.0.1/30", "dev", "in"],
        ["ip", "-n", two, "addr", "add", "10.0.0.2/30", "dev", "eth0"],
        ["ip", "-n", one, "link", "set", "in", "up"],
        ["ip", "-n", two, "link", "set", "eth0", "up"],
        ["ip", "-n", two, "route", "add", "default", "via", "10.0.0.1"],
    ]

    def make() -> None:
        for argv in script:
            subprocess.run(argv, input=text, text=True, check=True)

    try:
        return ms(make)
    finally:
        for name in (one, two):
            subprocess.run(["ip", "netns", "del", name], check=False)


def _nft(network: SlotNetwork, index: int, policy: Policy) -> float:
    """The same change by a process of ``nft``."""
    name = network.plan.slot(index).gateway_netns
    argv = ["nsenter", f"--net=/run/netns/{name}", "nft", "-f", "-"]
    return ms(lambda: subprocess.run(argv, input=rules.policy(policy), text=True, check=True))


async def _run(report: Report, n: int) -> None:
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as base:
        settings = Settings(
            data_dir=Path(base),
            run_dir=Path(base, "run"),
            network_cidr="10.233.0.0/20",
            network_pool=n,
        )
        network = SlotNetwork(settings)
        await network.open({})
        try:
            await _measure(report, n, network)
        finally:
            await network.purge()
            await network.close()


async def _full(network: SlotNetwork, n: int) -> None:
    while len(network._pool) < n:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)


async def _measure(report: Report, n: int, network: SlotNetwork) -> None:
    for name, policy, bound in (("open", OPEN, 2.0), ("an allowlist", LIST, None)):
        await _full(network, n)
        took = [await _ms(network.take(f"m{i}", policy)) for i in range(n)]
        report.add(f"a slot from the pool, {name}", "ms", took, bound=bound)
        if policy is LIST:
            break
        for i in range(n):
            await network.release(f"m{i}")
    ours, theirs = [], []
    for i in range(n):
        policy = (OPEN, LIST)[i % 2]
        ours.append(await _ms(network.apply("m0", policy)))
        theirs.append(_nft(network, network._used["m0"], policy))
    report.add("a policy put in place, live", "ms", ours, theirs, bound=1.0)
    sockets = []
    for _ in range(n):
        began = time.perf_counter()
        (await network.connection("m0")).close()
        sockets.append((time.perf_counter() - began) * 1e3)
    report.add("a socket in the gateway's namespace", "ms", sockets)
    report.add("decisions read", "ms", [await _ms(network.decisions("m0")) for _ in range(n)])
    for i in range(n):
        await network.release(f"m{i}")
    await _full(network, n)
    for i in range(n):
        await network.take(f"p{i}", OPEN)
    network._pool_size = 0
    made, bare = [], []
    for i in range(n):
        made.append(await _ms(network.take(f"n{i}", OPEN)))
        bare.append(_bare(network))
    report.add("a slot made, its rules, links and addresses", "ms", made, bare, bound=1.0)


def run(report: Report, n: int) -> None:
    asyncio.run(_run(report, n))
