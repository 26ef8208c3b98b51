"""The few things that differ by nature between the async and the sync half. Written by hand in both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

sleep = time.sleep


class _Process:
    """Weakly referenceable."""


_PROCESS = _Process()


def in_thread(call: Callable[..., T], *args: object) -> T:
    return call(*args)


def from_iterator(source: Iterator[bytes]) -> Iterator[bytes]:
    return source


def scope() -> object:
    """What a default client belongs to: this process."""
    return _PROCESS
