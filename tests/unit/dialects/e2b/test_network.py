"""E2B's lists of what may be reached, as policies of ours."""

from __future__ import annotations

from typing import Any

import pytest

from roost.dialects.e2b.control import network
from roost.dialects.e2b.control.bodies import Network
from roost.egress.policy import Mode
from roost.errors import RoostError


def policy(**asked: Any) -> Any:
    return network.policy(Network.model_validate(asked))


def test_what_is_said_and_what_it_means() -> None:
    assert policy() is None, "the host's default"
    assert policy(allow_internet_access=True).mode is Mode.OPEN
    assert policy(allow_internet_access=False).mode is Mode.OFF
    assert policy(denyOut=["0.0.0.0/0"]).mode is Mode.OFF
    some = policy(denyOut=["0.0.0.0/0"], allowOut=["api.example.com", "192.0.2.0/24"])
    assert some.mode is Mode.ALLOWLIST and [str(e) for e in some.allow] == [
        "api.example.com",
        "192.0.2.0/24",
    ]
    assert policy(denyOut=["0.0.0.0/0"], allowOut=["0.0.0.0/0"]).mode is Mode.OPEN
    assert policy(allowOut=["api.example.com"]).mode is Mode.OPEN, "nothing was denied"


def test_it_is_told_as_it_was_asked() -> None:
    some = policy(denyOut=["0.0.0.0/0"], allowOut=["api.example.com"])
    assert network.shape(some, False) == {
        "allowPublicTraffic": False,
        "allowOut": ["api.example.com"],
        "denyOut": ["0.0.0.0/0"],
    }
    assert network.shape(policy(allow_internet_access=False), True)["denyOut"] == ["0.0.0.0/0"]
    assert not network.internet(policy(allow_internet_access=False))


@pytest.mark.parametrize(
    "asked",
    [
        {"denyOut": ["8.8.8.8"]},
        {"rules": {"api.example.com": [{"transform": {"headers": {"a": "b"}}}]}},
        {"egressProxy": {"address": "proxy.example:1080"}},
        {"dnsServers": ["1.1.1.1"]},
        {"maskRequestHost": "${PORT}-x.example"},
        {"httpsPorts": [3000]},
    ],
)
def test_what_cannot_be_is_told(asked: dict[str, Any]) -> None:
    with pytest.raises(RoostError) as found:
        policy(**asked)
    assert found.value.code == "UNSUPPORTED" and "Roost does not serve" in found.value.message
