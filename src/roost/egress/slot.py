"""What holds for one machine: its policy, what it tried, the connections it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from roost.egress.interface import Intercept, Listeners
from roost.egress.ledger import Ledger
from roost.egress.policy import Entry, Mode, Policy, Reach

if TYPE_CHECKING:
    from roost.egress.proxy import Connection

MAX_CONNECTIONS = 1024
# One process serves all machines: none may keep it busy. A rate, and how much at once before it counts.
QUESTIONS = (100.0, 500.0)
CONNECTIONS = (200.0, 1000.0)
REQUESTS = (400.0, 1000.0)
MAX_UNANSWERED = 128


@dataclass(frozen=True, slots=True)
class Claim:
    """What a connection was let through for. ``proven``: it was dialled for ``name`` by our own resolution (or for an
    address); else the machine chose the address and what it said was merely heard. ``address`` "": not known."""

    port: int
    name: str | None = None
    address: str = ""
    proven: bool = True
    intercept: Intercept | None = None


class Bucket:
    """``at_once``, and ``per_s`` more every second."""

    def __init__(self, rate: tuple[float, float], clock: Callable[[], float]) -> None:
        self._per_s, self._at_once = rate
        self._clock = clock
        self._left = self._at_once
        self._looked = clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._looked) * self._per_s)
        self._looked = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def give(self) -> None:
        """Back, what was taken for nothing."""
        self._left = min(self._at_once, self._left + 1)


@dataclass(eq=False)
class Slot:
    """``policy`` None: nobody has it yet; nothing goes through."""

    index: int
    clock: Callable[[], float] = time.monotonic
    machine_id: str = ""
    policy: Policy | None = None
    listeners: Listeners | None = None
    ledger: Ledger = field(default_factory=Ledger)
    connections: set[Connection] = field(default_factory=set)
    unanswered: int = 0  # questions that are being looked up
    _given: tuple[Intercept, ...] = ()
    _intercept: tuple[tuple[Intercept, tuple[Entry, ...]], ...] = ()

    def __post_init__(self) -> None:
        self._questions = Bucket(QUESTIONS, self.clock)
        self.accepting = Bucket(CONNECTIONS, self.clock)
        self.requests = Bucket(REQUESTS, self.clock)

    def apply(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept], reach: Reach
    ) -> list[Connection]:
        """The connections it does not allow, which are being cut."""
        if machine_id != self.machine_id:
            self.ledger = Ledger()
        same, given = machine_id == self.machine_id, tuple(intercept) == self._given
        self.machine_id, self.policy, self._given = machine_id, policy, tuple(intercept)
        self._intercept = tuple(
            (each, tuple(Entry(name=name, ports=each.ports) for name in each.names))
            for each in intercept
        )

        def stays(claim: Claim | None) -> bool:
            # What was merely heard may say a name later on that goes another way now.
            return same and (
                claim is None or ((given or claim.proven) and self.holds(claim, reach))
            )

        return self._cut(stays)

    def cut(self, reach: Reach) -> list[Connection]:
        """Those whose addresses may not be spoken to any more."""
        return self._cut(lambda claim: claim is None or self.holds(claim, reach))

    def cut_all(self) -> list[Connection]:
        return self._cut(lambda _: False)

    def _cut(self, stays: Callable[[Claim | None], bool]) -> list[Connection]:
        found = [each for each in self.connections if not stays(each.claim)]
        for connection in found:
            connection.cut()
        return found

    def holds(self, claim: Claim, reach: Reach) -> bool:
        if self.policy is None or self.policy.mode is Mode.OFF:
            return False
        if claim.address and not reach.permits(claim.address):
            return False
        if claim.name is None or not claim.proven:
            return self.policy.allows_address(claim.address, claim.port)
        return (
            self.policy.allows_name(claim.name, claim.port)
            and self.way(claim.name, claim.port) == claim.intercept
        )

    def judge(self, name: str, port: int) -> str:
        """Why a name may not be reached, "" where it may."""
        if self.policy is None or self.policy.mode is Mode.OFF:
            return "off"
        return "" if self.policy.allows_name(name, port) else "not_allowed"

    def way(self, name: str, port: int) -> Intercept | None:
        for intercept, entries in self._intercept:
            if port in intercept.ports and any(each.covers_name(name) for each in entries):
                return intercept
        return None

    def intercepts(self, port: int) -> bool:
        """Whether any name on that port goes another way."""
        return any(port in intercept.ports for intercept, _ in self._intercept)

    def may_ask(self) -> bool:
        """Whether there is room for a question; it is dropped where there is none."""
        return self.unanswered < MAX_UNANSWERED and self._questions.take()
