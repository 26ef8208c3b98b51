"""Where and as whom programs run that do not say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Isolation
from roost.services import launching
from roost.services.models import Live


def live(isolation: Isolation, **config: Any) -> Live:
    capabilities = FakeDriver(isolation=isolation).capabilities()
    machine = SimpleNamespace(capabilities=capabilities, env={}, run_as=config.pop("run_as", None))
    return cast("Live", SimpleNamespace(machine=machine, config=config, told={}))


@pytest.mark.parametrize("isolation", [Isolation.CONTAINER, Isolation.MICROVM])
def test_as_the_template_says(isolation: Isolation) -> None:
    at = live(isolation, user="ann", workdir="/root")
    assert launching.user(at, None) == "ann"
    assert launching.user(at, "bob") == "bob"
    assert launching.directory(at, None, None) == "/root"
    assert launching.directory(at, None, "bob") == ""
    assert launching.directory_of_start(at) == "/root"


def test_as_whom_the_machine_says_before_the_template() -> None:
    at = live(Isolation.CONTAINER, user="ann", workdir="/app", run_as="user")
    assert launching.user(at, None) == "user"
    assert launching.user(at, "root") == "root"
    assert launching.directory(at, None, None) == ""
    assert (launching.user_of_start(at), launching.directory_of_start(at)) == ("ann", "/app")


@pytest.mark.parametrize("isolation", [Isolation.WORKSPACE, Isolation.USER])
def test_as_the_one_user_there_is_in_its_home(isolation: Isolation) -> None:
    at = live(isolation, user="root", workdir="/root/app")
    assert launching.user(at, None) == ""
    assert launching.user(at, "root") == "root", "its agent says why not"
    assert launching.directory(at, None, None) == ""
    assert launching.directory(at, "/srv", None) == "/srv"
    assert launching.directory_of_start(at) == ""
    assert launching.directory_of_start(live(isolation, workdir="/app")) == "/app"
    assert launching.directory_of_start(live(isolation, workdir="/rootless")) == "/rootless"
