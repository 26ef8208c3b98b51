"""What an exploration gives back: the same for the async and the sync half. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeVar

from roost.client._diff import Diff
from roost.client._types import CommandFailed, ExecExit, ExecResult, ExecTimeout
from roost.errors import RoostError

M = TypeVar("M")
_SHOWN = 60
_TAIL = 2000  # characters of output, in JSON


@dataclass(slots=True)
class Attempt:
    """One strategy and what came of it. Changes while the exploration runs."""

    index: int
    strategy: Any
    status: str = "waiting"  # forking, running, scoring, done, failed, stopped
    machine_id: str | None = None
    result: Any = None  # what ``run`` gave
    exit_code: int | None = None  # of a result that has one
    error: BaseException | None = None  # why there is no score
    score: float | None = None  # higher is better; None: it cannot win
    duration_s: float | None = None  # of ``run``
    diff: Diff | None = None  # of the parent's files to its own
    cpu_s: float | None = None  # that it used up to its score
    cost: Decimal | None = None  # by the host's prices, in their currency

    @property
    def ok(self) -> bool:
        return self.status == "done"

    def to_json(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy if _plain(self.strategy) else str(self.strategy),
            "status": self.status,
            "machine_id": self.machine_id,
            "score": self.score,
            "exit_code": self.exit_code,
            "duration_s": None if self.duration_s is None else round(self.duration_s, 3),
            "cpu_s": self.cpu_s,
            "cost": None if self.cost is None else str(self.cost),
            "error": _told(self.error),
            "diff": None
            if self.diff is None
            else {"counts": dict(self.diff.counts), "truncated": self.diff.truncated},
            "result": _result(self.result),
        }


@dataclass(frozen=True, slots=True)
class Explored(Generic[M]):
    """``winner``: the machine of ``best``; None where nothing could win, or nothing was kept. ``promoted``: it has its
    parent's place now."""

    attempts: tuple[Attempt, ...]
    best: Attempt | None
    winner: M | None
    promoted: bool
    duration_s: float

    def ranked(self) -> list[Attempt]:
        """Best first; those without a score last, in their order."""
        return sorted(self.attempts, key=lambda each: (-rank(each), each.index))

    def rows(self) -> list[Sequence[str]]:
        """For ``HEADERS``, best first."""
        return [row(each, each is self.best) for each in self.ranked()]

    def table(self) -> str:
        """As text."""
        lines = [HEADERS, *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADERS))]
        shown = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
        return "\n".join(line.rstrip() for line in shown)

    def to_json(self) -> dict[str, Any]:
        return {
            "winner": self.best.machine_id if self.best is not None and self.winner else None,
            "best": None if self.best is None else self.best.index,
            "promoted": self.promoted,
            "duration_s": round(self.duration_s, 3),
            "attempts": [each.to_json() for each in self.attempts],
        }


HEADERS: Sequence[str] = (
    "",
    "STRATEGY",
    "STATUS",
    "SCORE",
    "EXIT",
    "TIME",
    "CPU",
    "FILES",
    "ERROR",
)


def row(attempt: Attempt, best: bool = False) -> Sequence[str]:
    a = attempt
    return (
        "*" if best else "",
        one_line(a.strategy),
        a.status,
        "-" if a.score is None else f"{a.score:.4g}",
        "-" if a.exit_code is None else str(a.exit_code),
        "-" if a.duration_s is None else f"{a.duration_s:.2f} s",
        "-" if a.cpu_s is None else f"{a.cpu_s:.2f} s",
        "-" if a.diff is None else a.diff.summary(),
        "" if a.error is None else one_line(a.error),
    )


def rank(attempt: Attempt) -> float:
    return -math.inf if attempt.score is None else attempt.score


def beats(one: Attempt, other: Attempt | None) -> bool:
    """The earlier strategy where both are as good."""
    if one.score is None:
        return False
    return other is None or (-rank(one), one.index) < (-rank(other), other.index)


def exit_code(result: object) -> int | None:
    """Of what a command gave, an error of it, or a plain number."""
    if isinstance(result, CommandFailed):
        return result.exit.exit_code
    if isinstance(result, ExecTimeout):
        return result.result.exit_code
    if isinstance(result, ExecExit):
        return result.exit_code
    if isinstance(result, int) and not isinstance(result, bool):
        return result
    return None


def default_score(attempt: Attempt) -> float | None:
    """What ended with 0, or has no exit code; the shorter the better."""
    if attempt.exit_code not in (None, 0):
        return None
    return -(attempt.duration_s or 0.0)


def checked_score(said: object) -> float | None:
    """Raises TypeError, ValueError for what cannot be compared."""
    if said is None:
        return None
    if not isinstance(said, (int, float)):
        raise TypeError(f"score() gives a number or None, not {type(said).__name__}")
    if math.isnan(said):
        raise ValueError("score() gave NaN, which is not better or worse than anything")
    return float(said)


def one_line(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _told(failure: BaseException | None) -> Mapping[str, Any] | None:
    if failure is None:
        return None
    if isinstance(failure, RoostError):
        return {"code": failure.code, "message": failure.message}
    return {"code": type(failure).__name__, "message": str(failure)[:_TAIL]}


def _result(result: object) -> Any:
    if isinstance(result, ExecResult):
        return {"stdout": result.stdout[-_TAIL:], "stderr": result.stderr[-_TAIL:]}
    return result if _plain(result) else str(result)[:_TAIL]
