"""Which rung somebody's machine gets, and which is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from roost.drivers.fake import FakeDriver
from roost.drivers.interface import Capabilities, Isolation
from roost.engine import ladder
from roost.engine.ladder import Least, Profile
from roost.engine.rungs import Rungs
from roost.errors import RoostError

KINDS: dict[str, dict[str, object]] = {
    "vm": {"isolation": Isolation.MICROVM, "own_kernel": True, "accelerated": True},
    "slow": {"isolation": Isolation.MICROVM, "own_kernel": True, "accelerated": False},
    "kernel": {"isolation": Isolation.CONTAINER, "own_kernel": True},
    "container": {"isolation": Isolation.CONTAINER},
    "user": {"isolation": Isolation.USER},
    "workspace": {"isolation": Isolation.WORKSPACE},
}


def capabilities(kind: str) -> Capabilities:
    return replace(FakeDriver().capabilities(), **KINDS[kind])  # type: ignore[arg-type]


async def offer(*kinds: str, profile: Profile = Profile.INDIE) -> Rungs:
    drivers = {kind: FakeDriver(**KINDS[kind]) for kind in kinds}
    rungs = Rungs(drivers, kinds, profile)
    await rungs.probe()
    return rungs


@pytest.mark.parametrize(
    ("profile", "kinds", "best"),
    [
        (Profile.INDIE, ["vm", "container", "user", "workspace"], "vm"),
        (Profile.INDIE, ["slow", "container", "user", "workspace"], "container"),
        # An emulated microVM is slow, and still more than a user of the host's kernel.
        (Profile.INDIE, ["slow", "user", "workspace"], "slow"),
        (Profile.INDIE, ["workspace", "user", "container"], "container"),
        (Profile.INDIE, ["workspace", "user"], "user"),
        (Profile.INDIE, ["workspace"], "workspace"),
        (Profile.MANAGED, ["vm", "container", "user"], "container"),
        (Profile.MANAGED, ["slow", "vm", "user"], "vm"),
        (Profile.MANAGED, ["slow", "user", "workspace"], "slow"),
    ],
)
async def test_what_auto_takes(profile: Profile, kinds: list[str], best: str) -> None:
    rungs = await offer(*kinds, profile=profile)
    assert (rungs.default, rungs.choose("auto", None)[0]) == (best, best)


def test_who_is_held_to_what() -> None:
    indie, managed = Profile.INDIE, Profile.MANAGED
    assert ladder.least(indie, False, None).level == 0
    assert ladder.least(managed, False, None).level == 2
    assert ladder.least(managed, True, None).level == 0
    assert ladder.least(indie, False, "microvm").level == 3
    assert ladder.least(managed, True, "microvm").level == 3
    # A tenant is never held to less than the profile asks.
    assert ladder.least(managed, False, "workspace").level == 2


async def test_what_is_below_is_refused_with_the_reason() -> None:
    rungs = await offer("vm", "container", "user", "workspace")
    held = Least(2, "because")
    for asked in (("user", None), ("workspace", None), ("auto", "user"), ("user", "user")):
        with pytest.raises(RoostError) as caught:
            rungs.choose(*asked, held)
        assert caught.value.code == "RUNG_REFUSED"
        assert "because" in caught.value.message
        assert caught.value.details["least"] == "container"
    assert rungs.choose("container", None, held)[0] == "container"
    assert rungs.choose("auto", None, Least(3, "because"))[0] == "vm"


async def test_auto_takes_none_that_is_below() -> None:
    rungs = await offer("container", "user")
    with pytest.raises(RoostError) as caught:
        rungs.choose("auto", None, Least(3, "because"))
    assert caught.value.code == "RUNG_UNAVAILABLE"
    assert "container: because" in caught.value.message


def test_up_is_what_stands_on_more() -> None:
    ranks = [capabilities(kind).rank for kind in ("workspace", "user", "container", "kernel", "vm")]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
