"""Names and addresses of slots follow from the instance and the index, and no two are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.errors import InvalidRequestError
from roost.network.addresses import MAX_SLOTS, Plan, instance_tag

PLAN = Plan("10.201.0.0/16", Path("/run/roost"))


def test_the_first_and_the_last_slot() -> None:
    first, last = PLAN.slot(0), PLAN.slot(MAX_SLOTS - 1)
    assert (first.host_side, first.gateway_side) == ("10.201.0.1", "10.201.0.2")
    assert (last.host_side, last.gateway_side) == ("10.201.255.253", "10.201.255.254")


@given(st.integers(0, MAX_SLOTS - 1))
def test_names_fit_the_kernel_and_lead_back(index: int) -> None:
    slot = PLAN.slot(index)
    assert len(slot.host_interface) <= 15
    for name in (slot.host_interface, slot.gateway_netns, slot.machine_netns):
        assert PLAN.index_of(name) == index


def test_what_is_not_ours_has_no_index() -> None:
    other = Plan("10.201.0.0/16", Path("/run/other"))
    for name in ("eth0", "docker0", other.slot(3).host_interface, "rst", f"{PLAN.prefix}h", ""):
        assert PLAN.index_of(name) is None


def test_every_machine_looks_the_same_from_inside() -> None:
    a, b = PLAN.slot(1).public(), PLAN.slot(2).public()
    assert (a.mac, a.address, a.gateway, a.interface) == (b.mac, b.address, b.gateway, b.interface)
    assert a.host_address != b.host_address
    assert a.netns != b.netns


def test_indices_outside_the_range_are_refused() -> None:
    small = Plan("192.168.7.0/28", Path("/run/roost"))
    assert small.capacity == 4
    for index in (-1, 4):
        with pytest.raises(ValueError):
            small.slot(index)


@pytest.mark.parametrize(
    "cidr", ["10.201.0.1/16", "10.0.0.0/8", "10.0.0.0/30", "x", "10.1.0.0/31", "::/64"]
)
def test_ranges_that_cannot_be_are_refused(cidr: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Plan(cidr, Path("/run/roost"))
    assert caught.value.code == "CONFIG_INVALID"


def test_tags_tell_instances_apart() -> None:
    assert instance_tag(Path("/run/roost")) == instance_tag(Path("/run/roost"))
    assert instance_tag(Path("/run/roost")) != instance_tag(Path("/run/roost2"))
