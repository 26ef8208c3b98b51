"""One sandbox for all tests of a module: what is spoken inside it changes nothing of it that they look at."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.foreign import NodeWorker, Raised

from .conftest import Sdk

INSIDE = """
import io, threading
from e2b import (
    AuthenticationException, CommandExitException, FileNotFoundException, InvalidArgumentException,
    NotFoundException, PtySize, SandboxException, TimeoutException,
)
from e2b.sandbox.filesystem.filesystem import FileType
"""


@pytest.fixture(scope="module")
def box(sdk: Sdk, rung: str) -> Iterator[Sdk]:
    """The client, with a sandbox called ``box``."""
    sdk.worker.run(INSIDE)
    sdk.run("box = ~Sandbox.create(timeout=1200, **OPTS)")
    try:
        yield sdk
    finally:
        with contextlib.suppress(Raised):
            sdk.run("~box.kill()")


@pytest.fixture(scope="module")
def node_box(node: NodeWorker) -> Iterator[NodeWorker]:
    """The client, with a sandbox called ``g.box``."""
    node.run("g.box = await e2b.Sandbox.create({ timeoutMs: 1200000, ...g.opts })")
    try:
        yield node
    finally:
        with contextlib.suppress(Raised):
            node.run("await g.box.kill()")


def refused(ask: Callable[[], Any], kind: str) -> Raised:
    with pytest.raises(Raised) as found:
        ask()
    assert kind in found.value.kinds, found.value
    return found.value


def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


FEED = """
async def feed(of, pid, pieces):
    pipe = of.stream_input(pid)
    for each in pieces:
        await pipe.send(each)
    await pipe.close()
"""


def fed(box: Sdk, of: str, pid: str, *pieces: str) -> None:
    """By a stream of input, which one client is given and the other opens."""
    if box.awaited:
        box.worker.run(FEED)
        box.run(f"~feed({of}, {pid}, PIECES)", PIECES=pieces)
    else:
        box.run(f"{of}.stream_input({pid}, PIECES)", PIECES=pieces)
