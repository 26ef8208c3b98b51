"""Diffs: what differs between the files of two machines of a tenant, both awake for it.

Each machine's agent lists its tree, in the same order, and the two lists are merged as they come; files whose times
differ and sizes do not are read where they are, and their digests compared. So what is in files leaves no machine, and
what is held here is bounded however large the trees. Other file systems (``/proc``, ``/dev``, what is mounted) and what
Roost itself writes into a machine (``OWN``) are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from roost.agent.client import AgentClient
from roost.agent.v1 import agent_pb2 as pb
from roost.errors import InvalidRequestError, RoostError
from roost.services import limits
from roost.services.differing import Change, Look, Merge, judge, time_ns
from roost.services.files import check_path
from roost.services.machines import Machines
from roost.services.models import Live

ITEMS = 1000
MAX_ITEMS = 10_000
ITEMS_BYTES = 16 << 20  # of their names and links: one may have 64 KiB
MAX_ENTRIES = 500_000  # of each machine
MAX_EXCLUDED = 50
TIME_S = 60.0
READ_BYTES = 1 << 30  # in each machine, to compare files that may be the same
_AT_ONCE = 500  # files compared with one call
_WINDOW = 2000
# The machine's own identity, and the agent: different in every machine, and nothing that anybody did.
OWN = (
    b"/.roost",
    b"/etc/hostname",
    b"/etc/hosts",
    b"/etc/machine-id",
    b"/var/lib/dbus/machine-id",
    *(
        b"/etc/ssh/ssh_host_%s_key%s" % (kind, end)
        for kind in (b"rsa", b"ecdsa", b"ed25519")
        for end in (b"", b".pub")
    ),
)
_KINDS = {
    pb.FILE_KIND_FILE: "file",
    pb.FILE_KIND_DIRECTORY: "directory",
    pb.FILE_KIND_SYMLINK: "symlink",
}


@dataclass(frozen=True, slots=True)
class Side:
    """The entry as one of the machines has it."""

    kind: str  # file | directory | symlink | other
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link_target: bytes | None


@dataclass(frozen=True, slots=True)
class Difference:
    path: bytes
    change: Change
    before: Side | None
    after: Side | None
    unsure: bool = False  # written to since, and too large to be read: it may hold the same


@dataclass(slots=True)
class Diff:
    """From ``machine_id`` to ``other``: "added" is what ``other`` alone has. ``items`` in order of path, the first so
    many; ``counts`` counts all. ``truncated``: why not all of the trees were compared (entries, time), or not all that
    differs is listed (items)."""

    machine_id: str
    other: str
    items: list[Difference] = field(default_factory=list)
    counts: dict[Change, int] = field(default_factory=lambda: dict.fromkeys(Change, 0))
    compared: int = 0
    truncated: str | None = None


class Diffs:
    def __init__(self, machines: Machines, time_s: float = TIME_S) -> None:
        self._machines = machines
        self._time_s = time_s

    async def diff(
        self,
        tenant: str,
        machine_id: str,
        other: str,
        path: bytes = b"/",
        exclude: Sequence[bytes] = (),
        limit: int = ITEMS,
    ) -> Diff:
        """Below ``path``, an absolute one in both; of a machine that is a directory of the host ``/`` is that. Wakes both.

        Raises VALIDATION_FAILED, MACHINE_NOT_FOUND, INVALID_PATH, FILE_NOT_FOUND (in both), UNSUPPORTED (an agent of
        before), and what waking and reading a machine raise."""
        if machine_id == other:
            raise limits.bad("other", "is another machine")
        if not 1 <= limit <= MAX_ITEMS:
            raise limits.bad("limit", f"is from 1 to {MAX_ITEMS}")
        if len(exclude) > MAX_EXCLUDED:
            raise limits.bad("exclude", f"are at most {MAX_EXCLUDED} paths")
        for each in (path, *exclude):
            check_path(each)
            _check_normal(each)
        homes = [await self._machines.home(tenant, each) for each in (machine_id, other)]
        tops = [b"" if home is None else os.fsencode(home) for home in homes]
        left_out = [*exclude, *(own for own in OWN if own != path)]
        try:
            return await self._diff(tenant, machine_id, other, tops, path, left_out, limit)
        except RoostError as failure:
            if failure.code != "AGENT_LOST":
                raise
        # Once more: a capture of one of them cuts what it was asked.
        return await self._diff(tenant, machine_id, other, tops, path, left_out, limit)

    async def _diff(
        self,
        tenant: str,
        machine_id: str,
        other: str,
        tops: Sequence[bytes],
        path: bytes,
        exclude: Sequence[bytes],
        limit: int,
    ) -> Diff:
        lives = await asyncio.gather(
            self._machines.awake(tenant, machine_id), self._machines.awake(tenant, other)
        )
        found = Diff(machine_id, other)
        with self._machines.using(machine_id), self._machines.using(other):
            comparison = _Comparison(found, lives, tops, path, exclude, limit)
            try:
                async with asyncio.timeout(self._time_s):
                    await comparison.run()
            except TimeoutError:
                found.truncated = "time"
                comparison.give_up()
        return found


class _Comparison:
    """One walk of both trees."""

    def __init__(
        self,
        found: Diff,
        lives: Sequence[Live],
        tops: Sequence[bytes],
        path: bytes,
        exclude: Sequence[bytes],
        limit: int,
    ) -> None:
        self._found = found
        self._agents: list[AgentClient] = [each.agent for each in lives]
        self._path = path
        self._tops = tops
        self._requests = [
            pb.SurveyRequest(
                path=_under(top, path),
                exclude=[_under(top, each) for each in exclude],
                max_entries=MAX_ENTRIES,
            )
            for top in tops
        ]
        self._limit = limit
        self._window: list[tuple[bytes, pb.TreeEntry | None, pb.TreeEntry | None, Change | Look]]
        self._window = []
        self._looks = 0
        self._left = READ_BYTES
        self._room = ITEMS_BYTES

    async def run(self) -> None:
        merge = Merge()
        missing: list[RoostError] = []
        async with contextlib.AsyncExitStack() as stack:
            both = zip(self._agents, self._requests, strict=True)
            surveys = [agent.survey(request) for agent, request in both]
            for survey in surveys:
                await stack.enter_async_context(contextlib.aclosing(survey))

            async def more(side: int) -> None:
                try:
                    reply = await _next(surveys[side])
                except RoostError as failure:
                    if failure.code != "FILE_NOT_FOUND":
                        raise
                    missing.append(failure)
                    reply = None
                if reply is None:
                    merge.end(side)
                    return
                merge.feed(side, reply.entries)
                if reply.cut:
                    merge.end(side, cut=True)

            while wants := merge.wants():
                # Both are waited for: one that is being read cannot be closed.
                done = await asyncio.gather(*map(more, wants), return_exceptions=True)
                if failures := [each for each in done if each is not None]:
                    raise failures[0]
                for before, after in merge.pairs():
                    self._take(before, after)
                    if self._looks >= _AT_ONCE or len(self._window) >= _WINDOW:
                        await self._settle()
        if len(missing) == len(self._agents):
            raise missing[0]
        await self._settle()
        if merge.cut:
            self._found.truncated = "entries"

    def _take(self, before: pb.TreeEntry | None, after: pb.TreeEntry | None) -> None:
        self._found.compared += 1
        told = judge(before, after)
        if told is None:
            return
        entry = before if before is not None else after
        assert entry is not None
        name = self._path.rstrip(b"/") + b"/" + entry.path if entry.path else self._path
        self._window.append((name, before, after, told))
        self._looks += isinstance(told, Look)

    async def _settle(self) -> None:
        """What is in the files that may be the same, and then all of the window."""
        looked = [each for each in self._window if isinstance(each[3], Look)]
        wanted: list[bytes] = []
        asked = 0
        for name, before, _, _ in looked:
            assert before is not None
            if before.size <= self._left:
                self._left -= before.size
                asked += before.size
                wanted.append(name)
        same: dict[bytes, bool] = {}
        if wanted:
            digests = []
            for agent, top in zip(self._agents, self._tops, strict=True):
                paths = [_under(top, each) for each in wanted]
                digests.append(agent.digest(pb.DigestRequest(paths=paths, max_bytes=asked)))
            mine, theirs = await asyncio.gather(*digests)
            for name, one, another in zip(wanted, mine, theirs, strict=True):
                if one and another:
                    same[name] = one == another
        self._tell(same)

    def give_up(self) -> None:
        """No time is left: what was not looked at is told as such."""
        self._tell({})

    def _tell(self, same: dict[bytes, bool]) -> None:
        window, self._window, self._looks = self._window, [], 0
        for name, before, after, told in window:
            change: Change | None
            unsure = False
            if isinstance(told, Look):
                unsure = name not in same
                change = told.otherwise if same.get(name) else Change.CHANGED
            else:
                change = told
            if change is None:
                continue
            self._found.counts[change] += 1
            sides = _side(before), _side(after)
            self._room -= len(name) + sum(len(s.link_target or b"") for s in sides if s is not None)
            if len(self._found.items) < self._limit and self._room >= 0:
                difference = Difference(name, change, *sides, unsure)
                self._found.items.append(difference)
            else:
                self._found.truncated = self._found.truncated or "items"


def _under(top: bytes, path: bytes) -> bytes:
    return path if not top else top + path.rstrip(b"/")


async def _next(survey: AsyncGenerator[pb.SurveyReply, None]) -> pb.SurveyReply | None:
    return await anext(survey, None)


def _side(said: pb.TreeEntry | None) -> Side | None:
    if said is None:
        return None
    kind = _KINDS.get(said.kind, "other")
    return Side(
        kind=kind,
        size=said.size,
        mode=said.mode & 0o7777,
        uid=said.uid,
        gid=said.gid,
        mtime_ns=time_ns(said.mtime_unix_ns),
        link_target=said.link_target if kind == "symlink" else None,
    )


def _check_normal(path: bytes) -> None:
    """What would name another entry than it says, or none. Raises INVALID_PATH."""
    names = path[1:].split(b"/") if path != b"/" else []
    if any(each in (b"", b".", b"..") for each in names):
        raise InvalidRequestError(
            "A path here has no empty, . or .. component and no slash at its end.",
            code="INVALID_PATH",
        )
