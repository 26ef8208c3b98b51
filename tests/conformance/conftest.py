"""The real clients of other services against a real daemon: the one of the system tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.conftest import Daemon

from .foreign import Worker, environment

KEY_FORMS = {"dedalus": "dsk", "pandastack": "pds", "boxd": "bxk", "e2b": "e2b"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.system)


def key_in_form(daemon: Daemon, dialect: str) -> str:
    """The daemon's own key as a user of ``dialect`` writes it: one secret, any prefix."""
    return f"{KEY_FORMS[dialect]}_{daemon.key.rpartition('_')[2]}"


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[str, Mapping[str, str]], Worker]]:
    """Makes a worker in the environment of a name; all are closed at the end."""
    made: list[Worker] = []

    def make(name: str, env: Mapping[str, str]) -> Worker:
        made.append(Worker(environment(name), env))
        return made[-1]

    yield make
    for each in made:
        each.close()
