"""Histories of calls, legal and illegal, one after another and at the same time, and what may come of them.

The rules are the same for a host in memory and for a real one; a ``Host`` makes the calls. Calls at the same time are
held to this: where each machine is afterwards, some of those calls done one after another would have brought it.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

KEYS = ("a", "b", "c")
KINDS = ("ensure", "sleep", "stop", "wake", "use", "delete", "snapshot", "rollback", "fork", "bad")
ABSENT, RUNNING, SLEEPING, FAILED = "absent", "running", "sleeping", "failed"
REFUSED = frozenset(
    {"MACHINE_NOT_FOUND", "INVALID_STATE", "MACHINE_FAILED", "VALIDATION_FAILED", "AGENT_LOST"}
)


@dataclass(frozen=True)
class Op:
    kind: str
    key: str


@dataclass(frozen=True)
class Seen:
    """A machine as it is found: its id, its phase, the mark on its disk where it was read."""

    id: str
    phase: str


class Host(ABC):
    """Calls return None, or the code of the error."""

    @abstractmethod
    def call(self, op: Op) -> str | None: ...

    @abstractmethod
    def together(self, ops: Sequence[Op], kill_after_s: float | None) -> list[str | None]:
        """At the same time; with ``kill_after_s`` the daemon is killed in the midst of it, and another started. What
        was cut off gives "CUT". Returns when nothing is under way any more."""

    @abstractmethod
    def restart(self) -> None:
        """kill -9, and another."""

    @abstractmethod
    def crash(self, key: str) -> None:
        """The machine's process ends; returns when that is known."""

    @abstractmethod
    def found(self) -> dict[str, Seen]:
        """The living, by key; more than one of a key is an AssertionError."""

    @abstractmethod
    def whole(self) -> None:
        """Raises where database and host do not agree, or anything is left over."""

    @abstractmethod
    def write(self, key: str, mark: int) -> None:
        """A mark on the machine's disk."""

    @abstractmethod
    def read(self, key: str) -> int | None:
        """The mark on it; 0 where there is none yet; None where this host has no disks to write on."""

    @abstractmethod
    def close(self) -> None: ...


def legal(op: str, phase: str, has_snapshot: bool) -> tuple[str, bool]:
    """The phase after it, and whether it is done or refused."""
    if op == "ensure":
        return RUNNING, True
    if op == "bad" or phase == ABSENT:
        return phase, False
    if op == "delete":
        return ABSENT, True
    if op == "wake":
        return RUNNING, True
    if phase == FAILED:
        return phase, False
    if op in ("sleep", "stop"):
        return SLEEPING, True
    if op == "use":
        return RUNNING, True
    if op == "rollback":
        return phase, has_snapshot
    return phase, True  # snapshot, fork


def reachable(ops: Iterable[str], phase: str, has_snapshot: bool) -> set[str]:
    """Of any of them, in any order."""
    found = {phase}
    ops = list(ops)
    for count in range(1, len(ops) + 1):
        for order in itertools.permutations(ops, count):
            now = phase
            for op in order:
                now, _ = legal(op, now, has_snapshot)
            found.add(now)
    return found


@dataclass
class Known:
    id: str = ""
    phase: str = ABSENT
    marks: set[int] = field(default_factory=lambda: {0})  # one of them is on the disk
    kept: set[int] | None = None  # of its newest snapshot


class Histories(RuleBasedStateMachine):
    """Give it a ``host``: a class that makes one."""

    def host(self) -> Host:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.on = self.host()
        self.known = {key: Known() for key in KEYS}
        self.next_mark = 0

    def teardown(self) -> None:
        self.on.close()

    @rule(op=st.builds(Op, st.sampled_from(KINDS), st.sampled_from(KEYS)))
    def one(self, op: Op) -> None:
        known = self.known[op.key]
        wanted, done = legal(op.kind, known.phase, known.kept is not None)
        error = self.on.call(op)
        assert (error is None) == done, (op, known, error)
        assert error is None or error in REFUSED, (op, error)
        self._look({op.key: {wanted}})
        known = self.known[op.key]
        if done and op.kind == "snapshot":
            known.kept = set(known.marks)
        elif done and op.kind == "rollback":
            assert known.kept is not None
            known.marks = set(known.kept)
        assert (known.phase == ABSENT) == (op.key not in self.on.found())

    @rule(
        ops=st.lists(
            st.builds(Op, st.sampled_from(KINDS), st.sampled_from(KEYS)), min_size=2, max_size=4
        ),
        kill_after_s=st.none() | st.floats(0.0, 0.4),
    )
    def many(self, ops: list[Op], kill_after_s: float | None) -> None:
        may: dict[str, set[str]] = {}
        for key in {op.key for op in ops}:
            known = self.known[key]
            kinds = [op.kind for op in ops if op.key == key]
            has = known.kept is not None or "snapshot" in kinds
            may[key] = reachable(kinds, known.phase, has)
            if kill_after_s is not None and may[key] - {ABSENT}:
                may[key].add(FAILED)  # with a reason
                if "rollback" in kinds and has:
                    may[key].add(SLEEPING)  # gone back, and cut off before it was woken
            if "snapshot" in kinds:
                known.kept = set(known.marks) | (known.kept or set())
            if "rollback" in kinds and known.kept is not None:
                known.marks |= known.kept
        for op, error in zip(ops, self.on.together(ops, kill_after_s), strict=True):
            cut = {"CUT", "INTERNAL", "SHUTTING_DOWN"} if kill_after_s is not None else set()
            assert error is None or error in REFUSED | cut, (op, error)
        self._look(may)

    @rule()
    def restart(self) -> None:
        self.on.restart()
        self._look({})

    @rule(key=st.sampled_from(KEYS))
    def crash(self, key: str) -> None:
        if self.known[key].phase == RUNNING:
            self.on.crash(key)
            self._look({key: {FAILED}})

    @rule(key=st.sampled_from(KEYS))
    def mark(self, key: str) -> None:
        """What is written stays, however it slept, woke or was gone back with."""
        known = self.known[key]
        if known.phase == RUNNING:
            found = self.on.read(key)
            assert found is None or found in known.marks, (found, known)
            self.next_mark += 1
            self.on.write(key, self.next_mark)
            known.marks = {self.next_mark}

    @invariant()
    def nothing_is_left_over(self) -> None:
        self.on.whole()

    def _look(self, may: dict[str, set[str]]) -> None:
        """Each machine is where one of the legal histories would have brought it; from there it goes on."""
        found = self.on.found()
        for key, known in self.known.items():
            seen = found.get(key)
            phase = ABSENT if seen is None else seen.phase
            assert phase in may.get(key, {known.phase}), (key, phase, may, known)
            if seen is None or seen.id != known.id:
                self.known[key] = Known(seen.id if seen else "", phase)
            known.phase = phase
