from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from roost import Machine


class Host(Protocol):
    """What ``tests/system/conftest.py`` yields, as far as it is needed here."""

    url: str
    env: dict[str, str]


Roost = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def roost(daemon: Host) -> Roost:
    """``roost ...`` as a user types it; stdin is empty unless ``input=`` is given."""

    def run(*argv: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("timeout", 120)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            [sys.executable, "-m", "roost.cli", *map(str, argv)],
            env={**daemon.env, **options.pop("env", {})},
            capture_output=True,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def machine(daemon: Host) -> Iterator[Machine]:
    machine = Machine.ensure("cli-tests")
    yield machine
    machine.destroy()
