"""Rows: samples, their median, the raw tool's median of the same run, and the bound."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    name: str
    unit: str
    samples: list[float]
    raw: list[float] = field(default_factory=list)
    bound: float | None = None  # of the ratio if there is raw, else of the median
    at_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        return self.median / statistics.median(self.raw) if self.raw else None

    @property
    def met(self) -> bool | None:
        if self.bound is None:
            return None
        value = self.median if self.ratio is None else self.ratio
        return value >= self.bound if self.at_least else value <= self.bound

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "median": self.median, "ratio": self.ratio, "met": self.met}

    def __str__(self) -> str:
        raw = (
            f" raw {statistics.median(self.raw):8.1f}  ratio {self.ratio:.2f}"
            if self.raw
            else " " * 25
        )
        bound = (
            ""
            if self.bound is None
            else f"  bound {'>=' if self.at_least else '<='} {self.bound:g}"
        )
        met = {True: "  met", False: "  MISSED", None: ""}[self.met]
        low, high = min(self.samples), max(self.samples)
        return (
            f"{self.name:<52} {self.median:9.1f} {self.unit:<5} ({low:.1f}-{high:.1f}, n={len(self.samples)}){raw}"
            f"{bound}{met}"
        )


class Report:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        name: str,
        unit: str,
        samples: list[float],
        raw: list[float] | None = None,
        *,
        bound: float | None = None,
        at_least: bool = False,
    ) -> None:
        row = Row(name, unit, samples, raw or [], bound, at_least)
        self.rows.append(row)
        print(row, flush=True)


def ms(fn: Callable[[], object]) -> float:
    """Milliseconds one call takes."""
    begun = time.perf_counter()
    fn()
    return (time.perf_counter() - begun) * 1e3


def paired(
    n: int, ours: Callable[[], float], raw: Callable[[], float], *, block: int = 1
) -> tuple[list[float], list[float]]:
    """``n`` samples of each, ``block`` back to back in turns, so that a noisy minute hits both."""
    ours(), raw()  # warm
    mine: list[float] = []
    theirs: list[float] = []
    while len(mine) < n:
        mine += [ours() for _ in range(block)]
        theirs += [raw() for _ in range(block)]
    return mine, theirs
