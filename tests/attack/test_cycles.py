"""F9 in short: many made and destroyed, and nothing more of them on the host or in the daemon than before. The long form
is ``scripts/bench cycles -n 10000``."""

from __future__ import annotations

import pytest

from bench import cycles
from tests.system.conftest import Daemon

from .record import case
from .rung import Rung

COUNT = {"qemu": 12}  # more than may come to be: one descriptor or thread of each would be told


@case("F9")
@pytest.mark.timeout(600)
def test_nothing_is_left_of_many(rung: Rung, led: Daemon) -> None:
    cycles.cycles(rung.name, cycles.AT_ONCE)
    daemon = led.pid, led.run_dir, led.data_dir
    before = cycles.at_rest(*daemon)
    cycles.cycles(rung.name, COUNT.get(rung.name, 40))
    assert cycles.grown(before, *daemon) == {}
