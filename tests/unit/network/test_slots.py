"""Whom the pool, the rules and the egress process are told what; the kernel's part is played by ``Host``."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from roost.egress.interface import Decision, Intercept, Listeners
from roost.egress.policy import Policy, Reach
from roost.errors import CapacityError, InternalError, NotFoundError, UnavailableError
from roost.host import idmaps, netns
from roost.network import SlotNetwork, plumbing, rules
from roost.network.addresses import Plan, Slot
from roost.settings import Settings

OPEN, OFF = Policy.read("open"), Policy.read("off")
NAMES = Policy.read({"allow": ["python.example"]})


class _Socket:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Host:
    """What ``plumbing`` would make; tells the story in ``did``."""

    def __init__(self) -> None:
        self.standing: dict[int, str] = {}  # index -> policy text
        self.did: list[tuple[str, int]] = []
        self.given: list[Listeners] = []
        self.fails: set[str] = set()
        self.view = plumbing.HostView(1500, frozenset({"192.0.2.7"}), frozenset())
        self.others: set[int] = set()  # blocks of which somebody has a number
        self.looks = 0

    def look(self, base: int) -> set[int]:
        self.looks += 1
        return set(self.others)

    def note(self, what: str, slot: Slot) -> None:
        if what in self.fails:
            raise OSError(what)
        self.did.append((what, slot.index))

    def build(self, slot: Slot, tables: Any, mtu: int) -> None:
        self.note("build", slot)
        self.standing[slot.index] = rules.policy(OPEN)

    def demolish(self, slot: Slot, tables: Any) -> None:
        self.note("demolish", slot)
        self.standing.pop(slot.index, None)

    def listen(self, slot: Slot) -> Listeners:
        self.note("listen", slot)
        self.given.append(Listeners(_Socket(), _Socket(), _Socket()))  # type: ignore[arg-type]
        return self.given[-1]

    # --- Tables
    def host(self, reach: Reach) -> None:
        self.did.append(("host", -1))

    def drop_host(self) -> None:
        pass

    def apply(self, slot: Slot, text: str) -> None:
        self.note("rules", slot)
        self.standing[slot.index] = text

    def renew(self, slot: Slot, text: str) -> None:
        self.note("renew", slot)
        self.standing[slot.index] = text

    def listed(self, slot: Slot) -> list[dict[str, Any]]:
        return [{"counter": {"name": "refused", "packets": 2}}]

    def close(self) -> None:
        pass


class Process:
    """``Egress``, in memory."""

    def __init__(self) -> None:
        self.attached: set[int] = set()
        self.holds: dict[int, tuple[str, Policy, tuple[Intercept, ...]]] = {}
        self.told: list[Reach] = []
        self.again: Callable[[], Awaitable[None]] | None = None
        self.fails = False
        self.failure: Exception = InternalError("it is away")

    async def open(self) -> None:
        pass

    def on_restart(self, again: Callable[[], Awaitable[None]]) -> None:
        self.again = again

    async def reach(self, reach: Reach) -> None:
        self.told.append(reach)

    async def slots(self) -> set[int]:
        return set(self.attached)

    async def attach(self, slot: int, listeners: Listeners) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise self.failure
        self.attached.add(slot)

    async def detach(self, slot: int) -> None:
        self.attached.discard(slot)
        self.holds.pop(slot, None)

    async def apply(
        self, slot: int, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise self.failure
        assert slot in self.attached
        self.holds[slot] = (machine_id, policy, tuple(intercept))

    async def decisions(self, slot: int) -> list[Decision]:
        return [Decision("python.example", 443, "tcp", "tls", True, "", 1, 1.0, 1.0)]

    async def close(self) -> None:
        pass

    async def purge(self) -> None:
        self.attached.clear()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    for name in ("build", "demolish", "listen"):
        monkeypatch.setattr(plumbing, name, getattr(host, name))
    monkeypatch.setattr(plumbing, "Tables", lambda plan, private: host)
    monkeypatch.setattr(plumbing, "look_at_host", lambda plan: host.view)
    monkeypatch.setattr(plumbing, "present", lambda plan: set(host.standing))
    monkeypatch.setattr(plumbing, "stands", lambda slot: slot.index in host.standing)
    monkeypatch.setattr(idmaps, "others", host.look)
    monkeypatch.setattr(SlotNetwork, "_prepare_host", lambda self: None)
    return host


@pytest.fixture
def process() -> Process:
    return Process()


async def _filled(network: SlotNetwork, pool: int = 1) -> None:
    """Waits until it makes no more slots ahead."""
    for _ in range(2000):
        if len(network._pool) == pool:
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the pool was not filled")


@contextlib.asynccontextmanager
async def _opened(
    tmp_path: Path, process: Process | None, in_use: dict[str, int] | None = None, pool: int = 1
) -> AsyncIterator[SlotNetwork]:
    settings = Settings(run_dir=tmp_path, network_cidr="10.201.0.0/24", network_pool=pool)
    network = SlotNetwork(settings, process)
    await network.open(in_use or {})
    await _filled(network, pool)
    try:
        yield network
    finally:
        await network.close()


@pytest.fixture
async def network(host: Host, process: Process, tmp_path: Path) -> AsyncIterator[SlotNetwork]:
    async with _opened(tmp_path, process) as network:
        yield network


async def test_a_pooled_slot_has_listeners_and_no_policy(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    (pooled,) = network._pool
    assert process.attached == {pooled.index}
    assert process.holds == {}
    ours = host.given[0]
    assert all(each.closed for each in (ours.dns_udp, ours.dns_tcp, ours.proxy))  # type: ignore[attr-defined]


async def test_under_open_only_the_process_is_told(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    slot = await network.take("a", OPEN)
    assert process.holds[slot.index] == ("a", OPEN, ())
    assert ("rules", slot.index) not in host.did


async def test_another_policy_stands_before_the_slot_is_given(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    slot = await network.take("a", NAMES)
    assert host.standing[slot.index] == rules.policy(NAMES)
    assert process.holds[slot.index][1] == NAMES
    await network.apply("a", OFF)
    assert host.standing[slot.index] == rules.policy(OFF)
    assert process.holds[slot.index][1] == OFF
    await network.apply("nobody", OPEN)
    assert host.standing[slot.index] == rules.policy(OFF)


async def test_what_is_intercepted_is_led_to_the_proxy(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    one = Intercept(("api.example",), "unix:/x", ports=(443,))
    slot = await network.take("a", OPEN, [one])
    assert host.standing[slot.index] == rules.policy(OPEN, (443,))
    assert process.holds[slot.index][2] == (one,)


async def test_policies_are_put_in_place_in_their_order(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    slot = await network.take("a", OPEN)
    await asyncio.gather(*(network.apply("a", each) for each in (OFF, NAMES, OPEN, NAMES)))
    assert host.standing[slot.index] == rules.policy(NAMES)
    assert process.holds[slot.index][1] == NAMES


@pytest.mark.parametrize("part", ["rules", "process"])
async def test_a_slot_whose_policy_cannot_be_put_in_place_is_not_given(
    network: SlotNetwork, process: Process, host: Host, part: str
) -> None:
    (pooled,) = network._pool
    if part == "rules":
        host.fails.add("rules")
    else:
        process.fails = True
    with pytest.raises(InternalError):
        await network.take("a", NAMES)
    assert ("demolish", pooled.index) in host.did
    assert pooled.index not in process.attached
    assert network.counts().used == 0


async def test_a_failed_change_is_tried_anew(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    slot = await network.take("a", OPEN)
    host.fails.add("rules")
    with pytest.raises(InternalError) as caught:
        await network.apply("a", OFF)
    assert caught.value.retryable
    host.fails.clear()
    await network.apply("a", OFF)
    assert host.standing[slot.index] == rules.policy(OFF)


async def test_a_slot_nobody_can_answer_in_is_not_made(
    host: Host, process: Process, tmp_path: Path
) -> None:
    async with _opened(tmp_path, process, pool=0) as network:
        process.fails = True
        with pytest.raises(InternalError):
            await network.take("a", OPEN)
        assert host.standing == {}
        assert network.counts().free == 64


async def test_a_new_process_is_told_everything(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    slot = await network.take("a", NAMES)
    await _filled(network)  # one that is being made now says so by itself
    process.attached.clear()
    process.holds.clear()
    assert process.again is not None
    await process.again()
    assert process.holds == {slot.index: ("a", NAMES, ())}
    assert {each.index for each in network._pool} | {slot.index} == process.attached


async def test_a_new_process_is_told_the_rest_when_one_slot_failed(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    one, two = await network.take("a", NAMES), await network.take("b", OFF)
    process.attached = {one.index}
    process.holds.clear()
    host.fails.add("listen")
    assert process.again is not None
    with pytest.raises(OSError):
        await process.again()
    assert process.holds == {one.index: ("a", NAMES, ())}
    host.fails.clear()
    await process.again()
    assert process.holds[two.index] == ("b", OFF, ())


async def test_the_next_daemon_attaches_what_the_process_does_not_know(
    host: Host, process: Process, tmp_path: Path
) -> None:
    host.standing = {3: "", 4: "", 5: ""}
    process.attached = {3, 9}
    async with _opened(tmp_path, process, {"a": 3, "b": 4}, pool=0) as network:
        assert process.attached == {3, 4}
        assert ("listen", 3) not in host.did
        assert 5 not in host.standing, "nobody's"
        await network.reattach("a", 3, OFF)
        assert ("renew", 3) in host.did
        assert process.holds[3] == ("a", OFF, ())
        await network.reattach("a", 3, NAMES)
        assert host.did[-1] == ("rules", 3), "the frame is ours by now"


async def test_release_lets_go_of_both(network: SlotNetwork, process: Process, host: Host) -> None:
    slot = await network.take("a", OPEN)
    await asyncio.gather(network.release("a"), network.release("a"))
    assert host.did.count(("demolish", slot.index)) == 1
    assert slot.index not in process.attached | set(process.holds)
    assert await network.decisions("a") == []
    with pytest.raises(NotFoundError):
        await network.connection("a")


@pytest.mark.parametrize("how", ["close", "purge"])
async def test_a_slot_that_is_half_made_is_unmade_too(
    host: Host, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(slot: Slot, tables: Any, mtu: int) -> None:
        begun.set()
        assert go_on.wait(10)
        host.build(slot, tables, mtu)

    monkeypatch.setattr(plumbing, "build", slow)
    settings = Settings(run_dir=tmp_path, network_cidr="10.201.0.0/24", network_pool=1)
    network = SlotNetwork(settings, process)
    await network.open({})
    assert await asyncio.to_thread(begun.wait, 10)
    ending = asyncio.create_task(getattr(network, how)())
    await asyncio.sleep(0.1)
    go_on.set()
    await asyncio.wait_for(ending, 10)
    assert [what for what, _ in host.did].count("build") == 1 and not host.standing


async def test_decisions_of_both(network: SlotNetwork) -> None:
    await network.take("a", OPEN)
    assert [each.via for each in await network.decisions("a")] == ["tls", "packet"]


async def test_the_process_is_told_of_the_hosts_addresses(
    network: SlotNetwork, process: Process, host: Host
) -> None:
    assert not process.told[-1].permits("192.0.2.7")
    host.view = plumbing.HostView(1500, frozenset({"192.0.2.8"}), frozenset())
    await network._protect()
    assert process.told[-1].permits("192.0.2.7")
    assert not process.told[-1].permits("192.0.2.8")


async def test_without_a_process_there_are_rules_all_the_same(host: Host, tmp_path: Path) -> None:
    async with _opened(tmp_path, None) as network:
        slot = await network.take("a", OFF)
        assert host.standing[slot.index] == rules.policy(OFF)
        assert [each.via for each in await network.decisions("a")] == ["packet"]


async def test_there_is_room_for_16384_by_default(host: Host, tmp_path: Path) -> None:
    assert Plan(Settings().network_cidr, tmp_path).capacity == 16384
    async with _opened(tmp_path, None, pool=0) as network:
        for number in range(64):
            await network.take(str(number), OPEN)
        with pytest.raises(CapacityError):
            await network.take("one too many", OPEN)


async def test_what_another_daemon_has_is_passed_over(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its addresses, or its machines' numbers of users."""
    theirs: set[int] = set()

    def build(slot: Slot, tables: Any, mtu: int) -> None:
        if slot.index in theirs:
            raise plumbing.TakenError("in use")
        host.build(slot, tables, mtu)

    monkeypatch.setattr(plumbing, "build", build)
    async with _opened(tmp_path, None, pool=0) as network:
        first = (await network.take("a", OPEN)).index
        theirs |= {(first + 1) % 64, (first + 2) % 64}
        assert (await network.take("b", OPEN)).index == (first + 3) % 64
    theirs = {5}
    async with _opened(tmp_path, None, {"c": 5}, pool=0) as network:
        with pytest.raises(InternalError, match="made anew: in use"):
            await network.reattach("c", 5, OPEN)


async def test_a_block_of_which_somebody_has_a_number_is_passed_over(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the host's, who may not know of us. Our own machines' programs are no such."""
    host.standing = {7: ""}
    async with _opened(tmp_path, None, {"a": 7}, pool=0) as network:
        network._next = 3
        host.others = {3, 4, 7, 999}
        await network.reattach("a", 7, OPEN)
        assert (await network.take("b", OPEN)).index == 5
        host.others |= {5, 6}
        assert (await network.take("c", OPEN)).index == 6
        assert host.looks == 1, "it looks every now and then"
        assert network.counts().free == 64 - 3 - 2
        await network.release("a")
        network._next = 7  # as if all others had had their turn
        assert (await network.take("d", OPEN)).index == 8
        assert host.looks == 2, "and at one that a machine had"
        host.others = set(range(64))
        monkeypatch.setattr("roost.network.slots._NUMBERS_AGAIN_S", 0)
        with pytest.raises(CapacityError, match="61 of them are somebody else's"):
            await network.take("e", OPEN)
        assert ("build", 7) not in host.did


async def test_a_slot_made_ahead_is_left_while_somebody_has_a_number_of_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.network.slots._NUMBERS_AGAIN_S", 0)
    monkeypatch.setattr("roost.network.slots.REFILL_AFTER_S", 0)
    async with _opened(tmp_path, None) as network:
        (theirs,) = network._pool
        host.others = {theirs.index}
        network._wanted.set()
        await _filled(network, 2)
        assert network.counts().ready == 1
        first, second = await network.take("a", OPEN), await network.take("b", OPEN)
        assert theirs.index not in (first.index, second.index)
        await _filled(network, 2)
        host.others = set()
        network._wanted.set()
        async with asyncio.timeout(10):
            while network.counts().ready != 2:
                await asyncio.sleep(0.005)
        assert (await network.take("c", OPEN)).index == theirs.index


def test_another_daemons_numbers_are_told_by_its_namespaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slot = Plan("10.201.0.0/16", Path("/run/roost")).slot(3)
    ours, _, _ = slot.machine_netns.partition("-")
    begin = slot.users.first
    stand: dict[str, int | None] = {
        f"{ours}-m3": begin,
        f"{ours}-m4": begin,
        "rst0000-g3": None,
        "rst0000-m7": begin + idmaps.COUNT,
        "rst0000-m8": begin - idmaps.COUNT,
        "rst0000-m9": None,
    }

    def made_by(name: str) -> int | None:
        if name not in stand:
            raise FileNotFoundError(name)
        return stand[name]

    monkeypatch.setattr(netns, "names", lambda prefix: [*stand, "rst0000-m1"])
    monkeypatch.setattr(netns, "made_by", made_by)
    assert plumbing.sharer(slot) is None
    for shift in (0, idmaps.COUNT - 1, 1 - idmaps.COUNT):
        stand["rst0000-m8"] = begin + shift
        assert plumbing.sharer(slot) == "rst0000-m8"


async def test_one_broken_slot_does_not_prevent_the_start(
    host: Host, process: Process, tmp_path: Path
) -> None:
    host.standing = {3: "", 4: ""}
    host.fails.add("listen")
    async with _opened(tmp_path, process, {"a": 3, "b": 4}, pool=0) as network:
        host.fails.clear()
        await network.reattach("a", 3, OFF)
        assert process.holds[3] == ("a", OFF, ())


async def test_rules_hold_while_the_process_is_away_and_it_is_told_later(
    host: Host, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.network.slots._RETRY_S", 0.05)
    host.standing = {3: ""}
    process.fails, process.failure = True, UnavailableError("it is away")
    async with _opened(tmp_path, process, {"a": 3}, pool=0) as network:
        with pytest.raises(UnavailableError):
            await network.reattach("a", 3, OFF)
        assert host.standing[3] == rules.policy(OFF)
        process.fails = False
        async with asyncio.timeout(30):
            while process.holds.get(3) != ("a", OFF, ()):
                await asyncio.sleep(0.01)
        assert not network._untold


async def test_a_slot_that_cannot_be_made_anew_holds_nothing(
    host: Host, process: Process, tmp_path: Path
) -> None:
    async with _opened(tmp_path, process, {"a": 3}, pool=0) as network:
        process.fails, process.failure = True, UnavailableError("it is away")
        with pytest.raises(InternalError):
            await network.reattach("a", 3, OFF)
