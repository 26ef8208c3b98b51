from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.engine.reservations import Held, HostSize, admit, budget, check_size, could_fit
from roost.errors import CapacityError, InvalidRequestError, RoostError
from roost.settings import Settings

S = Settings(memory_overcommit=1.5, cpu_overcommit=8.0, memory_reserve_mib=512)


def test_the_sum_may_pass_the_host_by_the_factor_and_no_more() -> None:
    host = HostSize(2.0, 4608)
    assert budget(S, host).memory_mib == 6144
    assert budget(S, host).vcpu == 16
    admit(S, host, Held(15.9, 5120, 5), 0.1, 1024)
    with pytest.raises(CapacityError) as caught:
        admit(S, host, Held(0, 5121, 5), 1, 1024)
    assert caught.value.details["memory_mib"] == {"asked": 1024, "held": 5121, "limit": 6144}
    assert caught.value.retryable
    assert caught.value.details["short"] == "memory"
    with pytest.raises(CapacityError) as caught:
        admit(S, host, Held(15.95, 0, 5), 0.1, 64)
    assert caught.value.details["vcpu"]["limit"] == 16
    assert caught.value.details["short"] == "vcpu"


def test_what_is_kept_for_the_host_is_no_machines() -> None:
    with pytest.raises(CapacityError) as caught:
        admit(S, HostSize(2.0, 4608, 511), Held(0, 0, 0), 1, 64)
    assert caught.value.details["available_mib"] == 511
    assert caught.value.details["short"] == "available"
    admit(S, HostSize(2.0, 4608, 512), Held(0, 0, 0), 1, 64)


def test_whether_giving_up_would_do() -> None:
    def refused(host: HostSize, held: Held, vcpu: float, memory: int) -> dict[str, Any]:
        with pytest.raises(CapacityError) as caught:
            admit(S, host, held, vcpu, memory)
        return caught.value.details

    full = refused(HostSize(2.0, 4608), Held(15.5, 6000, 9), 1, 400)
    assert could_fit(full, 0.5, 256)
    assert not could_fit(full, 0.5, 255)
    assert not could_fit(full, 0.4, 4000)
    short = refused(HostSize(2.0, 4608, 400), Held(0, 0, 0), 1, 64)
    assert could_fit(short, 0, 112)
    assert not could_fit(short, 0, 111)


def test_bigger_than_the_host_is_the_callers_mistake() -> None:
    for vcpu, memory in ((2.1, 64), (1, 4609)):
        with pytest.raises(InvalidRequestError):
            check_size(HostSize(2.0, 4608), vcpu, memory)


@given(st.floats(0, 100), st.integers(0, 100_000), st.floats(0.1, 64), st.integers(64, 100_000))
def test_admitted_means_within_the_budget(
    held_vcpu: float, held_mib: int, vcpu: float, memory: int
) -> None:
    host = HostSize(8.0, 16_384)
    limit = budget(S, host)
    fits = (
        held_mib + memory <= limit.memory_mib
        and held_vcpu + vcpu <= limit.vcpu + 1e-9
        and vcpu <= 8
        and memory <= 16_384
    )
    try:
        admit(S, host, Held(held_vcpu, held_mib, 1), vcpu, memory)
    except RoostError:
        assert not fits
    else:
        assert fits


def test_the_host_is_measured() -> None:
    host = HostSize.measure()
    assert host.vcpu >= 1
    assert host.memory_mib > (host.available_mib or 0) > 0
