"""What this host's processors can."""

from __future__ import annotations

import functools
from pathlib import Path

_KEYS = ("flags", "Features")  # x86, arm


@functools.cache
def features() -> frozenset[str]:
    """By the kernel's names; of the first processor, as all of a host are told alike."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in _KEYS:
            return frozenset(value.split())
    return frozenset()
