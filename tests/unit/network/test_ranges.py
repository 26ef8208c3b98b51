"""What stays refused once the operator opened some: metadata, neighbours and the host always."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from roost.egress.policy import REFUSED, private_ranges
from roost.network import ranges
from roost.network.addresses import Plan
from roost.settings import Settings

PLAN = Plan("10.201.0.0/16", Path("/run/roost"))
_NETWORKS = st.builds(
    lambda bits, prefix: IPv4Network((bits, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(4, 32),
)


@given(st.lists(_NETWORKS, max_size=4), st.lists(_NETWORKS, max_size=4), st.integers(0, 2**32 - 1))
def test_a_difference_of_networks(
    networks: list[IPv4Network], holes: list[IPv4Network], at: int
) -> None:
    address = IPv4Address(at)
    left = ranges.without(networks, holes)
    expected = any(address in each for each in networks) and not any(
        address in each for each in holes
    )
    assert any(address in each for each in left) is expected


def test_a_part_is_opened_and_no_more() -> None:
    refused = ranges.refused([IPv4Network("10.0.0.0/8"), IPv4Network("192.168.4.0/24")], PLAN)

    def is_refused(address: str) -> bool:
        return any(IPv4Address(address) in each for each in refused)

    for closed in ("10.201.3.2", "10.0.0.1", "192.168.5.1", "169.254.169.254", "172.16.0.1"):
        assert is_refused(closed), closed
    for opened in ("10.0.0.4", "10.9.9.9", "192.168.4.77", "9.9.9.9"):
        assert not is_refused(opened), opened


def test_a_range_of_slots_that_is_public_is_refused_too() -> None:
    plan = Plan("203.0.113.0/24", Path("/run/roost"))
    assert IPv4Network("203.0.113.0/24") in ranges.refused((), plan)
    assert not ranges.reach((), plan, []).permits("203.0.113.9")


def test_what_may_be_dialled_is_what_the_rules_let_through() -> None:
    private = [IPv4Network("10.0.0.0/8"), IPv4Network("192.168.1.7/32")]
    reach = ranges.reach(private, PLAN, ["10.4.0.9", "10.4.0.0/16", "192.168.1.7", "192.168.1.8"])
    for opened in ("10.4.0.8", "192.168.1.7", "9.9.9.9"):
        assert reach.permits(opened), opened
    for closed in ("10.4.0.9", "10.201.0.2", "10.0.0.1", "192.168.1.8", "169.254.169.254"):
        assert not reach.permits(closed), closed


def test_the_setting() -> None:
    assert private_ranges(" 10.20.0.0/16, 192.168.1.7,10.20.0.0/16 ,") == (
        IPv4Network("10.20.0.0/16"),
        IPv4Network("192.168.1.7/32"),
    )
    assert Settings(egress_private="10.20.0.0/16").egress_private == "10.20.0.0/16"
    assert all(private_ranges(each) for each in REFUSED if each in ("10.0.0.0/8", "100.64.0.0/10"))


@pytest.mark.parametrize(
    "text",
    [
        *("169.254.169.254", "169.254.0.0/16", "127.0.0.1", "0.0.0.0/8", "224.0.0.0/4"),
        *("10.0.0.1/8", "9.9.9.9", "0.0.0.0/0", "fd00::/8", "lan"),
        ",".join(f"10.0.{i}.0/24" for i in range(65)),
    ],
)
def test_what_cannot_be_opened(text: str) -> None:
    with pytest.raises(ValueError):
        private_ranges(text)
    with pytest.raises(ValidationError):
        Settings(egress_private=text)
