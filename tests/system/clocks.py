"""Clocks of machines."""

from __future__ import annotations

import time

from roost import Machine


def is_right(machine: Machine) -> bool:
    """Whether it is read between the question and the answer, but for a second, however long that takes. Awake first:
    in the time that a waking takes a clock that is behind would hide."""
    machine.wake()
    asked = time.time()
    told = float(machine.exec("date +%s.%N").check().stdout)
    return asked - 1 < told < time.time() + 1
