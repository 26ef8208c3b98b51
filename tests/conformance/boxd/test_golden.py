"""A program: prepare a machine, fork it for each task, suspend between turns, keep an instant before a destructive step,
and where it went wrong fork again and retry; the attempts stand side by side at their URLs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.foreign import Worker

from .conftest import V2, Client, opened

PROGRAM = Path(__file__).with_name("golden_and_retry.py")


@pytest.fixture
def boxd(client: Callable[..., Client]) -> Iterator[Client]:
    found = client(V2)
    yield found
    found.run(
        textwrap.dedent("""
        for m in boxd.machines.list(labels={"program": "golden"}): boxd.machines.delete(m.id)
        for s in boxd.snapshots.list():
            if s.name.startswith("attempt-"): boxd.snapshots.delete(s.name)
        """)
    )


def test_golden_and_fork_on_retry(boxd: Client, workers: Callable[..., Worker]) -> None:
    boxd.run(PROGRAM.read_text())
    said = boxd.value("main(boxd)", timeout=300)
    assert said["lost"] != 0  # the destructive step took the machine along
    assert said["turns"] == [1, 2]  # memory went on over a suspension
    pages = {name: opened(domain).text for name, domain in said["attempts"].items()}
    assert pages == {"attempt-1": "plan A: turn 2\n", "attempt-1-retry": "plan A: turn 2, retried\n", "attempt-2": "plan B: turn 1\n"}  # fmt: skip
    boxd.found("program: golden and fork on retry")
