"""The engine's ``Network``: a pool of slots made ahead, those in use, and their sweeping.

A slot's inner address is the driver's business once a machine started in it: gVisor takes it off the
namespace while the machine runs, and putting it back then would set the host's kernel up as a second
owner of the same address. So ``reattach`` renews rules and remakes what is lost, and drivers put the
address back before each start.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from roost.drivers.interface import NetworkSlot
from roost.egress.interface import Decision, Egress, Intercept
from roost.egress.policy import Policy, private_ranges
from roost.errors import (
    CapacityError,
    InternalError,
    NotFoundError,
    RoostError,
    UnavailableError,
)
from roost.host import files, idmaps, netns
from roost.network import plumbing, ranges, rules, tried
from roost.network.addresses import Plan, Slot
from roost.network.interface import SlotCounts
from roost.settings import Settings

T = TypeVar("T")
log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 60.0  # how long a new address of the host may go unprotected
_NUMBERS_AGAIN_S = 30.0  # the same of numbers of users
_RETRY_S = 5.0
# After the last slot was taken, while there are more: a machine that is being made has the processors to itself.
REFILL_AFTER_S = 1.0


_OPEN = rules.policy(Policy())


@dataclass(frozen=True, slots=True)
class _Rule:
    """What holds for a machine's slot."""

    machine_id: str
    policy: Policy
    intercept: tuple[Intercept, ...]


class SlotNetwork:
    """See ``roost.network.interface.Network``. ``egress``: whom names are asked of, and opened, closed and purged with
    this; without one no name is resolved or proven."""

    def __init__(self, settings: Settings, egress: Egress | None = None) -> None:
        self.plan = Plan(settings.network_cidr, settings.run_dir, settings.uid_base)
        self._egress = egress
        self._private = private_ranges(settings.egress_private)
        self._tables = plumbing.Tables(self.plan, self._private)
        self._pool_size = settings.network_pool
        self._record = settings.run_dir / "network.json"
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="network")
        # Beside the making of slots, for those whom somebody waits for.
        self._quick = ThreadPoolExecutor(2, thread_name_prefix="network-quick")
        self._used: dict[str, int] = {}
        self._reserved: set[int] = set()  # every index in use, pooled, being made or unmade
        # Daemons that share a range by mistake or in tests begin apart from each other.
        self._next = int(self.plan.tag, 16) % self.plan.capacity
        self._foreign: set[int] = set()
        self._uid_base = settings.uid_base
        self._others: set[int] = set()  # indices of whose numbers somebody else has any
        self._unseen: set[int] = set()  # given back since that was looked at
        self._asked_at = -_NUMBERS_AGAIN_S
        self._looking = asyncio.Lock()
        self._pool: deque[Slot] = deque()
        self._making: set[asyncio.Task[Slot]] = set()
        self._fresh: dict[
            int, str
        ] = {}  # index -> text of the policy that stands in a frame of ours
        self._attached: set[int] = set()
        self._told: dict[int, _Rule] = {}
        self._untold: set[int] = set()  # slots of which the process has not heard yet
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._going: dict[str, asyncio.Task[None]] = {}
        self._taken_at = -REFILL_AFTER_S
        self._view: plumbing.HostView | None = None
        self._looked_at = -_LOOK_AGAIN_S

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args))

    async def _soon(self, function: Callable[..., T], *args: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._quick, functools.partial(function, *args))

    # --- life ----------------------------------------------------------------------------------

    async def open(self, in_use: Mapping[str, int]) -> None:
        self._used = {m: i for m, i in in_use.items() if 0 <= i < self.plan.capacity}
        self._reserved = set(self._used.values())
        await self._run(self._prepare_host)
        if self._egress is not None:
            self._egress.on_restart(self._attach_all)
            await self._egress.open()
            self._attached = await self._egress.slots()
        await self._protect()
        left = await self._run(plumbing.present, self.plan) - self._reserved
        self._reserved |= left
        away = left | (self._attached - self._reserved)
        await asyncio.gather(*(self._demolish(self.plan.slot(i)) for i in sorted(away)))
        lost = self._reserved - self._attached
        await asyncio.gather(*(self._attach_lost(i) for i in sorted(lost)))
        self._task = asyncio.create_task(self._keep(), name="network-pool")
        self._wanted.set()

    def _prepare_host(self) -> None:
        netns.prepare()
        was = plumbing.forward_on_host()
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._record.exists():
            files.write_json(self._record, {"ip_forward": was}, durable=False)

    async def _protect(self) -> None:
        """Loads the host's rules where they are not there yet or the host's addresses changed."""
        view = await self._run(plumbing.look_at_host, self.plan)
        if view == self._view:
            self._looked_at = time.monotonic()
            return
        reach = ranges.reach(self._private, self.plan, view.addresses | view.networks)
        await self._run(self._tables.host, reach)
        if self._egress is not None:
            await self._egress.reach(reach)
        self._view, self._looked_at = view, time.monotonic()

    async def close(self) -> None:
        await self._make_no_more()
        pooled = list(self._pool)
        self._pool.clear()
        await asyncio.gather(*(self._demolish(slot) for slot in pooled), return_exceptions=True)
        await asyncio.gather(*self._going.values(), return_exceptions=True)
        if self._egress is not None:
            await self._egress.close()
        await self._run(self._tables.close)

    async def _make_no_more(self) -> None:
        """What is half made is made to its end, and in the pool: unmade beside its making, a part of it would stay."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await asyncio.gather(*self._making, return_exceptions=True)

    async def purge(self) -> None:
        await self._make_no_more()
        self._pool.clear()
        self._used.clear()
        self._told.clear()
        if self._egress is not None:
            await self._egress.purge()
            self._attached.clear()
        for index in await self._run(plumbing.present, self.plan):
            await self._demolish(self.plan.slot(index))
        await self._run(self._purge_host)

    def _purge_host(self) -> None:
        self._tables.drop_host()
        record = files.read_json(self._record)
        if record is not None and record.get("ip_forward") == "0" and not netns.names("rst"):
            plumbing.stop_forwarding()
        self._record.unlink(missing_ok=True)

    # --- slots ---------------------------------------------------------------------------------

    async def take(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        if machine_id in self._used:
            return await self.reattach(machine_id, self._used[machine_id], policy, intercept)
        if ready := self._ready():
            slot = ready[0]
            self._pool.remove(slot)
        else:
            slot = await self._make_shielded()
        self._used[machine_id] = slot.index
        self._taken_at = time.monotonic()
        self._wanted.set()
        try:
            await self._enforce(slot, _Rule(machine_id, policy, tuple(intercept)))
        except BaseException:
            await asyncio.shield(self._releasing(machine_id))
            raise
        return slot.public()

    async def reattach(
        self, machine_id: str, index: int, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> NetworkSlot:
        if not 0 <= index < self.plan.capacity:
            raise InternalError(f"Slot {index} is not in {self.plan.network}.")
        holder = next((m for m, i in self._used.items() if i == index), machine_id)
        if holder != machine_id or (index in self._reserved and machine_id not in self._used):
            raise InternalError(f"Slot {index} is not held by machine {machine_id}.")
        slot = self.plan.slot(index)
        self._reserved.add(index)
        self._used[machine_id] = index
        if not await self._run(plumbing.stands, slot):
            await self._raze(slot)
            try:
                await self._build(slot)
            except (UnavailableError, plumbing.TakenError) as exc:  # no rules hold here either way
                raise InternalError(f"Slot {index} could not be made anew: {exc}") from exc
        elif index not in self._attached:
            with contextlib.suppress(UnavailableError):  # the rules first; then it is told
                await self._attach(slot)
        await self._enforce(slot, _Rule(machine_id, policy, tuple(intercept)))
        return slot.public()

    async def apply(
        self, machine_id: str, policy: Policy, intercept: Sequence[Intercept] = ()
    ) -> None:
        index = self._used.get(machine_id)
        if index is not None:
            await self._enforce(self.plan.slot(index), _Rule(machine_id, policy, tuple(intercept)))

    async def _enforce(self, slot: Slot, rule: _Rule) -> None:
        """Rules and proxy at once: a connection needs both where it needs the proxy, so in between nothing passes that
        neither policy allows."""
        async with self._turns[slot.index]:
            if self._used.get(rule.machine_id) == slot.index:  # not released meanwhile
                await self._put(slot, rule)

    async def _put(self, slot: Slot, rule: _Rule) -> None:
        self._told[slot.index] = rule
        led = {port for each in rule.intercept for port in each.ports}
        text = rules.policy(rule.policy, led)
        both = []
        if self._fresh.get(slot.index) != text:
            both.append(self._load(slot, text))
        if self._egress is not None:
            both.append(
                self._egress.apply(slot.index, rule.machine_id, rule.policy, rule.intercept)
            )
        done = await asyncio.gather(*both, return_exceptions=True)
        if any(isinstance(each, UnavailableError) for each in done):
            self._untold.add(slot.index)
            self._wanted.set()
        for failed in sorted(done, key=lambda each: isinstance(each, UnavailableError)):
            if isinstance(failed, OSError):
                raise InternalError(
                    f"The egress policy could not be put in place: {failed}.", retryable=True
                ) from failed
            if failed is not None:
                raise failed

    async def _load(self, slot: Slot, text: str) -> None:
        load = self._tables.apply if slot.index in self._fresh else self._tables.renew
        self._fresh.pop(slot.index, None)
        await self._soon(load, slot, text)
        self._fresh[slot.index] = text

    async def decisions(self, machine_id: str) -> list[Decision]:
        index = self._used.get(machine_id)
        if index is None:
            return []
        listed = await self._run(self._tables.listed, self.plan.slot(index))
        found = tried.read(listed, time.time())
        if self._egress is not None:
            found += await self._egress.decisions(index)
        return sorted(found, key=lambda each: each.last_at)

    async def connection(self, machine_id: str) -> socket.socket:
        index = self._used.get(machine_id)
        if index is None:
            raise NotFoundError(f"Machine {machine_id} has no network now.")
        try:
            return await self._soon(plumbing.connection, self.plan.slot(index))
        except FileNotFoundError as exc:
            raise NotFoundError(f"The network of machine {machine_id} is gone.") from exc

    def counts(self) -> SlotCounts:
        free = self.plan.capacity - len(self._reserved | self._others)
        return SlotCounts(used=len(self._used), ready=len(self._ready()), free=free)

    async def egress(self, machine_ids: Iterable[str]) -> dict[str, int]:
        slots = {m: self.plan.slot(self._used[m]) for m in machine_ids if m in self._used}
        return await self._run(_egress, slots)

    async def release(self, machine_id: str) -> None:
        await asyncio.shield(self._releasing(machine_id))

    def _releasing(self, machine_id: str) -> asyncio.Task[None]:
        """One for all who ask, and to its end: an index that is free again may be taken at once."""
        task = self._going.get(machine_id)
        if task is None:
            task = self._going[machine_id] = asyncio.create_task(self._release(machine_id))
            task.add_done_callback(lambda _: self._going.pop(machine_id, None))
        return task

    async def _release(self, machine_id: str) -> None:
        index = self._used.get(machine_id)
        if index is None:
            return
        await self._demolish(self.plan.slot(index))
        self._unseen.add(index)
        self._used.pop(machine_id, None)

    # --- making --------------------------------------------------------------------------------

    async def _reserve(self) -> int:
        await self._look_for_others()
        while (index := self._free()) in self._unseen:
            await self._look_for_others(again=True)
        self._reserved.add(index)
        self._next = index + 1
        return index

    def _free(self) -> int:
        for step in range(self.plan.capacity):
            index = (self._next + step) % self.plan.capacity
            if index not in self._reserved and index not in self._others:
                return index
        others = (
            f" The users of {len(self._others)} of them are somebody else's (`roost doctor`; ROOST_UID_BASE)."
            if self._others
            else ""
        )
        raise CapacityError(
            f"All {self.plan.capacity} network slots of {self.plan.network} are in use. Destroy or sleep "
            f"machines, or set a larger ROOST_NETWORK_CIDR.{others}",
            details={"slots": self.plan.capacity},
        )

    def _ready(self) -> list[Slot]:
        """Of the pool; others stay there while somebody has a number of their users."""
        return [slot for slot in self._pool if slot.index not in self._others]

    async def _look_for_others(self, again: bool = False) -> None:
        """Who has numbers of users that the next machine would have."""
        async with self._looking:
            young = time.monotonic() - self._asked_at < _NUMBERS_AGAIN_S
            if young and not (again and self._unseen):
                return
            ours, unseen = self._ours(), set(self._unseen)
            found = await self._run(idmaps.others, self._uid_base)
            found &= set(range(self.plan.capacity))
            self._others = found - ours - self._ours()  # what was begun meanwhile neither
            self._unseen -= unseen
            self._asked_at = time.monotonic()

    def _ours(self) -> set[int]:
        """In which programs of ours run, or may just now."""
        return self._reserved - self._foreign - {slot.index for slot in self._pool}

    async def _make(self) -> Slot:
        while True:
            slot = self.plan.slot(await self._reserve())
            try:
                await self._build(slot)
                return slot
            except plumbing.TakenError:
                self._foreign.add(slot.index)  # and stays reserved until it is looked at again
            except BaseException:
                self._reserved.discard(slot.index)
                raise

    async def _make_shielded(self) -> Slot:
        """A thread cannot be stopped half-way: where the caller goes away, the slot goes to the pool."""
        task = asyncio.create_task(self._make())
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._to_pool)
            raise

    def _to_pool(self, task: asyncio.Task[Slot]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._pool.append(task.result())

    async def _build(self, slot: Slot) -> None:
        mtu = self._view.mtu if self._view else 1500
        try:
            await self._run(plumbing.build, slot, self._tables, mtu)
            self._fresh[slot.index] = _OPEN
            try:
                await self._attach(slot)
            except BaseException:
                await self._raze(slot)
                raise
        except plumbing.TakenError:
            raise
        except OSError as exc:
            raise InternalError(
                f"A network slot could not be made: {exc}.", retryable=True
            ) from exc

    async def _attach(self, slot: Slot) -> None:
        """Where there is nothing to listen in, there is nobody to answer: whoever needs the slot makes it anew."""
        if self._egress is None:
            return
        try:
            listeners = await self._run(plumbing.listen, slot)
        except FileNotFoundError:
            return
        self._attached.add(slot.index)
        try:
            await self._egress.attach(slot.index, listeners)
        finally:
            for sock in (listeners.dns_udp, listeners.dns_tcp, listeners.proxy):
                sock.close()

    async def _attach_lost(self, index: int) -> None:
        """At the daemon's start, which one slot must not prevent: ``reattach`` tries again."""
        try:
            await self._attach(self.plan.slot(index))
        except (OSError, RoostError) as exc:
            self._attached.discard(index)
            log.warning("network_attach", slot=index, error=str(exc))

    async def _attach_all(self) -> None:
        """To a process that knows nothing, or not all: raises what went wrong, and is then asked again."""
        assert self._egress is not None
        known = await self._egress.slots()
        self._untold.clear()
        failed: list[Exception] = []
        for index in sorted(self._attached):
            if index not in self._attached:  # it went meanwhile
                continue
            try:
                if index not in known:
                    await self._attach(self.plan.slot(index))
                if index not in self._reserved:
                    await self._detach(index)
                elif (rule := self._told.get(index)) is not None:
                    await self._egress.apply(index, rule.machine_id, rule.policy, rule.intercept)
            except (OSError, RoostError) as exc:  # and the others all the same
                log.warning("network_attach", slot=index, error=str(exc))
                failed.append(exc)
                self._untold.add(index)
        if failed:
            raise failed[0]

    async def _detach(self, index: int) -> None:
        self._told.pop(index, None)
        self._untold.discard(index)
        if index in self._attached and self._egress is not None:
            self._attached.discard(index)
            try:
                await self._egress.detach(index)
            except (OSError, RoostError) as exc:  # a process that is gone has let go
                log.warning("network_detach", slot=index, error=str(exc))

    async def _raze(self, slot: Slot) -> None:
        await self._detach(slot.index)
        self._fresh.pop(slot.index, None)
        await self._run(plumbing.demolish, slot, self._tables)
        await self._detach(slot.index)  # where a new process was given it meanwhile

    async def _demolish(self, slot: Slot) -> None:
        await self._raze(slot)
        self._reserved.discard(slot.index)

    async def _keep(self) -> None:
        """Fills the pool when it is asked to, and looks at the host's addresses now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if self._untold else _LOOK_AGAIN_S):
                    await self._wanted.wait()
            self._wanted.clear()
            if self._untold and self._egress is not None:
                try:
                    await self._attach_all()
                except (OSError, RoostError) as exc:
                    log.warning("network_untold", error=str(exc))
            self._reserved -= self._foreign
            self._foreign.clear()
            try:
                if time.monotonic() - self._looked_at >= _LOOK_AGAIN_S:
                    await self._protect()
                await self._look_for_others()
                while len(ready := self._ready()) < self._pool_size:
                    if (busy := self._taken_at + REFILL_AFTER_S - time.monotonic()) > 0 and ready:
                        await asyncio.sleep(busy)
                    else:
                        self._pool.append(await self._make_shielded())
            except CapacityError:
                continue  # the next release leaves an index; nobody waits for the pool
            except Exception as exc:
                log.warning("network_pool", error=str(exc))
                await asyncio.sleep(_RETRY_S)
                self._wanted.set()


def _egress(slots: Mapping[str, Slot]) -> dict[str, int]:
    found = {}
    for machine_id, slot in slots.items():
        try:
            found[machine_id] = plumbing.egress(slot)
        except OSError as exc:  # the host lost it, or it was made before anything was counted
            log.info("network_counter", machine_id=machine_id, error=str(exc))
    return found
