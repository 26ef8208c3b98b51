"""What differs between two trees: the merge against a plain comparison, and the service over made-up agents."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.agent.v1 import agent_pb2 as pb
from roost.errors import NotFoundError, RoostError, error
from roost.services import diffs
from roost.services.differing import Change, Look, Merge, judge, order
from roost.services.diffs import Diffs

FILE, DIRECTORY, LINK = pb.FILE_KIND_FILE, pb.FILE_KIND_DIRECTORY, pb.FILE_KIND_SYMLINK


def entry(path: bytes, kind: Any = FILE, size: int = 3, at: int = 1, **more: Any) -> pb.TreeEntry:
    values = {"mode": 0o644, "mtime_unix_ns": at, "ctime_unix_ns": at, **more}
    return pb.TreeEntry(path=path, kind=kind, size=size, **values)


names = st.lists(st.sampled_from([b"a", b"b", b"a-b", b"a.c", b"\xff"]), min_size=1, max_size=3)
trees = st.dictionaries(names.map(b"/".join), st.integers(1, 2), max_size=12)


@settings(max_examples=60)
@given(trees, trees, st.lists(st.integers(0, 1), min_size=40, max_size=40))
def test_two_listings_merge_as_two_mappings(
    one: dict[bytes, int], other: dict[bytes, int], turns: list[int]
) -> None:
    sides = [
        [entry(path, size=size) for path, size in sorted(tree.items(), key=lambda e: order(e[0]))]
        for tree in (one, other)
    ]
    merge = Merge()
    found: list[tuple[bytes, int | None, int | None]] = []
    while wants := merge.wants():
        side = turns.pop() if len(wants) == 2 and turns else wants[0]
        if sides[side]:
            merge.feed(side, [sides[side].pop(0)])
        else:
            merge.end(side)
        for a, b in merge.pairs():
            path = (a or b).path  # type: ignore[union-attr]
            found.append((path, a.size if a else None, b.size if b else None))
    every = sorted(one.keys() | other.keys(), key=order)
    assert found == [(path, one.get(path), other.get(path)) for path in every]
    assert not merge.cut


def test_nothing_is_said_of_what_a_listing_that_was_cut_does_not_reach() -> None:
    merge = Merge()
    merge.feed(0, [entry(b"a")])
    merge.end(0, cut=True)
    merge.feed(1, [entry(b"a"), entry(b"b")])
    merge.end(1)
    assert [a.path for a, _ in merge.pairs() if a] == [b"a"]
    assert merge.cut and not merge.wants()


def test_a_listing_out_of_order_is_a_lie() -> None:
    for entries in ([b"b", b"a"], [b"a", b"a"], [b"a.c", b"a/b"]):
        with pytest.raises(RoostError) as found:
            Merge().feed(0, [entry(each) for each in entries])
        assert found.value.code == "MACHINE_FAILED"


def test_what_is_looked_at_and_what_is_not() -> None:
    same = entry(b"a")
    for before, after, told in (
        (same, same, None),
        (None, same, Change.ADDED),
        (same, None, Change.REMOVED),
        (same, entry(b"a", size=4), Change.CHANGED),
        (same, entry(b"a", at=2), Look(None)),
        (same, entry(b"a", mtime_unix_ns=1, ctime_unix_ns=2), Look(None)),
        (same, entry(b"a", at=2, mode=0o600), Look(Change.MODE)),
        (same, entry(b"a", kind=DIRECTORY), Change.TYPE),
        (entry(b"a", size=0), entry(b"a", size=0, at=2), None),
        (entry(b"d", DIRECTORY), entry(b"d", DIRECTORY, size=9, at=2), None),
        (entry(b"d", DIRECTORY), entry(b"d", DIRECTORY, uid=1), Change.MODE),
        (entry(b"l", LINK, link_target=b"x"), entry(b"l", LINK, link_target=b"y"), Change.CHANGED),
        (entry(b"l", LINK, link_target=b"x"), entry(b"l", LINK, link_target=b"x", at=2), None),
        (entry(b"p", 4), entry(b"p", 4, device=7), Change.CHANGED),
    ):
        assert judge(before, after) == told


class Agent:
    """A tree in memory: path -> (entry, what is in it)."""

    def __init__(self, files: dict[bytes, tuple[pb.TreeEntry, bytes]]) -> None:
        self.files = files
        self.read: list[bytes] = []
        self.cut = False
        self.failures: list[RoostError] = []
        self.hang = False
        self.asked: list[pb.SurveyRequest] = []

    async def survey(self, request: pb.SurveyRequest) -> AsyncGenerator[pb.SurveyReply, None]:
        self.asked.append(request)
        if self.failures:
            raise self.failures.pop(0)
        entries = [self.files[path][0] for path in sorted(self.files, key=order)]
        for each in entries:
            yield pb.SurveyReply(entries=[each])
        if self.hang:
            await asyncio.Event().wait()
        if self.cut:
            yield pb.SurveyReply(cut=True)

    async def digest(self, request: pb.DigestRequest) -> Sequence[bytes]:
        self.read += request.paths
        return [
            hashlib.sha256(self.files[path.rpartition(b"/")[2]][1]).digest()
            for path in request.paths
        ]


class Machines:
    def __init__(self, **agents: Agent) -> None:
        self.agents = agents
        self.used: list[str] = []
        self.homes: dict[str, Path] = {}

    async def get(self, tenant: str, machine_id: str) -> None:
        if machine_id not in self.agents:
            raise NotFoundError("no", code="MACHINE_NOT_FOUND")

    async def home(self, tenant: str, machine_id: str) -> Path | None:
        await self.get(tenant, machine_id)
        return self.homes.get(machine_id)

    async def awake(self, tenant: str, machine_id: str) -> Any:
        return SimpleNamespace(agent=self.agents[machine_id])

    @contextlib.contextmanager
    def using(self, machine_id: str) -> Iterator[None]:
        self.used.append(machine_id)
        yield


def tree(**files: tuple[bytes, int]) -> dict[bytes, tuple[pb.TreeEntry, bytes]]:
    """Name -> (content, when it was written)."""
    return {
        name.encode(): (entry(name.encode(), size=len(data), at=at), data)
        for name, (data, at) in files.items()
    }


def served(a: Agent, b: Agent, **options: Any) -> Diffs:
    machines: Any = Machines(a=a, b=b)
    return Diffs(machines, **options)


async def test_files_are_read_only_where_their_times_differ() -> None:
    a = Agent(tree(same=(b"1", 1), touched=(b"2", 1), edited=(b"3", 1), gone=(b"4", 1)))
    b = Agent(tree(same=(b"1", 1), touched=(b"2", 2), edited=(b"5", 2), new=(b"6", 2)))
    found = await served(a, b).diff("t", "a", "b")
    assert [(d.path, d.change) for d in found.items] == [
        (b"/edited", Change.CHANGED),
        (b"/gone", Change.REMOVED),
        (b"/new", Change.ADDED),
    ]
    assert a.read == b.read == [b"/edited", b"/touched"]
    assert found.counts[Change.ADDED] == 1 and found.compared == 5 and found.truncated is None
    assert set(diffs.OWN) <= set(a.asked[0].exclude)
    own = await served(a, b).diff("t", "a", "b", path=b"/etc/hostname")
    assert own.machine_id == "a" and b"/etc/hostname" not in a.asked[1].exclude


async def test_directories_of_the_host_are_compared_from_themselves_on() -> None:
    a, b = Agent(tree(edited=(b"3", 1))), Agent(tree(edited=(b"5", 2)))
    machines: Any = Machines(a=a, b=b)
    machines.homes = {"a": Path("/homes/a"), "b": Path("/homes/b")}
    found = await Diffs(machines).diff("t", "a", "b")
    assert [(d.path, d.change) for d in found.items] == [(b"/edited", Change.CHANGED)]
    assert (a.asked[0].path, b.asked[0].path) == (b"/homes/a", b"/homes/b")
    assert (a.read, b.read) == ([b"/homes/a/edited"], [b"/homes/b/edited"])
    found = await Diffs(machines).diff("t", "a", "b", path=b"/deep", exclude=[b"/deep/x"])
    assert (a.asked[1].path, b.asked[1].exclude[0]) == (b"/homes/a/deep", b"/homes/b/deep/x")


async def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    a = Agent({})
    b = Agent(tree(**{f"f{n:03}": (b"x", 1) for n in range(50)}))
    found = await served(a, b).diff("t", "a", "b", limit=10)
    assert len(found.items) == 10 and found.counts[Change.ADDED] == 50
    assert found.truncated == "items"
    with monkeypatch.context() as patch:
        patch.setattr(diffs, "ITEMS_BYTES", 23)  # of names, which are as long as machines like
        found = await served(a, b).diff("t", "a", "b")
    assert (len(found.items), found.counts[Change.ADDED], found.truncated) == (4, 50, "items")
    b.cut = True
    assert (await served(Agent(tree(z=(b"", 1))), b).diff("t", "a", "b")).truncated == "entries"
    b.cut, b.hang = False, True
    found = await served(a, b, time_s=0.1).diff("t", "a", "b")
    assert found.truncated == "time"
    monkeypatch.setattr(diffs, "READ_BYTES", 1)
    a, b = Agent(tree(a=(b"1", 1), b=(b"22", 1))), Agent(tree(a=(b"1", 2), b=(b"22", 2)))
    (item,) = (await served(a, b).diff("t", "a", "b")).items
    assert item.path == b"/b" and item.unsure, "what was not read may be the same"


async def test_failures() -> None:
    a, b = Agent(tree(a=(b"1", 1))), Agent(tree(a=(b"2", 2)))
    a.failures = [error("AGENT_LOST", "a capture")]
    assert len((await served(a, b).diff("t", "a", "b")).items) == 1
    a.failures = [error("FILE_NOT_FOUND", "not here")]
    found = await served(a, b).diff("t", "a", "b", path=b"/only-there")
    assert [d.change for d in found.items] == [Change.ADDED]
    for failures, code in (
        ([error("FILE_NOT_FOUND", "no")], "FILE_NOT_FOUND"),
        ([error("UNSUPPORTED", "old")], "UNSUPPORTED"),
    ):
        a.failures, b.failures = list(failures), list(failures)
        with pytest.raises(RoostError) as caught:
            await served(a, b).diff("t", "a", "b")
        assert caught.value.code == code
    service = served(a, b)
    for asked, code in (
        ({"other": "a"}, "VALIDATION_FAILED"),
        ({"other": "c"}, "MACHINE_NOT_FOUND"),
        ({"limit": 0}, "VALIDATION_FAILED"),
        ({"path": b"relative"}, "INVALID_PATH"),
        ({"path": b"/a/../b"}, "INVALID_PATH"),
        ({"path": b"/a/"}, "INVALID_PATH"),
        ({"exclude": [b"/x"] * 51}, "VALIDATION_FAILED"),
        ({"exclude": [b"x"]}, "INVALID_PATH"),
    ):
        with pytest.raises(RoostError) as caught:
            await service.diff("t", "a", **{"other": "b", **asked})  # type: ignore[arg-type]
        assert caught.value.code == code, asked
