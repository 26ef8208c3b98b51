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
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from roost.drivers.interface import NetworkSlot
from roost.errors import CapacityError, InternalError
from roost.host import files, netns
from roost.network import plumbing, resolver, rules
from roost.network.addresses import Plan, Slot
from roost.network.interface import SlotCounts
from roost.settings import Settings

T = TypeVar("T")
log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 60.0  # how long a new address of the host may go unprotected
_RETRY_S = 5.0
# After the last slot was taken, while there are more: a machine that is being made has the processors to itself.
REFILL_AFTER_S = 1.0


class SlotNetwork:
    """See ``roost.network.interface.Network``."""

    def __init__(self, settings: Settings) -> None:
        self.plan = Plan(settings.network_cidr, settings.run_dir)
        self._dns = settings.dns
        self._pool_size = settings.network_pool
        self._record = settings.run_dir / "network.json"
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="network")
        self._used: dict[str, int] = {}
        self._reserved: set[int] = set()  # every index in use, pooled, being made or unmade
        # Daemons that share a range by mistake or in tests begin apart from each other.
        self._next = int(self.plan.tag, 16) % self.plan.capacity
        self._foreign: set[int] = set()
        self._pool: deque[Slot] = deque()
        self._fresh_rules: set[int] = set()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._taken_at = -REFILL_AFTER_S
        self._resolver = ""
        self._view: plumbing.HostView | None = None

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args))

    # --- life ----------------------------------------------------------------------------------

    async def open(self, in_use: Mapping[str, int]) -> None:
        self._resolver = resolver.choose(self._dns)
        self._used = {m: i for m, i in in_use.items() if 0 <= i < self.plan.capacity}
        self._reserved = set(self._used.values())
        await self._run(self._prepare_host)
        left = await self._run(plumbing.present, self.plan) - self._reserved
        self._reserved |= left
        await asyncio.gather(*(self._demolish(self.plan.slot(i)) for i in sorted(left)))
        self._task = asyncio.create_task(self._keep(), name="network-pool")
        self._wanted.set()

    def _prepare_host(self) -> None:
        netns.prepare()
        was = plumbing.forward_on_host()
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._record.exists():
            files.write_json(self._record, {"ip_forward": was}, durable=False)
        self._protect()

    def _protect(self) -> None:
        """Loads the host's rules where they are not there yet or the host's addresses changed."""
        view = plumbing.look_at_host(self.plan)
        if view == self._view:
            return
        plumbing.load_rules(
            rules.host(
                self.plan,
                self._resolver,
                view.addresses | view.networks,
                resolver_is_local=self._resolver in view.addresses,
            )
        )
        self._view = view

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        pooled = list(self._pool)
        self._pool.clear()
        await asyncio.gather(*(self._demolish(slot) for slot in pooled), return_exceptions=True)

    async def purge(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._pool.clear()
        self._used.clear()
        for index in await self._run(plumbing.present, self.plan):
            await self._demolish(self.plan.slot(index))
        await self._run(self._purge_host)

    def _purge_host(self) -> None:
        plumbing.drop_host_table(self.plan)
        record = files.read_json(self._record)
        if record is not None and record.get("ip_forward") == "0" and not netns.names("rst"):
            plumbing.stop_forwarding()
        self._record.unlink(missing_ok=True)

    # --- slots ---------------------------------------------------------------------------------

    async def take(self, machine_id: str) -> NetworkSlot:
        if machine_id in self._used:
            return await self.reattach(machine_id, self._used[machine_id])
        slot = self._pool.popleft() if self._pool else await self._make_shielded()
        self._used[machine_id] = slot.index
        self._taken_at = time.monotonic()
        self._wanted.set()
        return slot.public()

    async def reattach(self, machine_id: str, index: int) -> NetworkSlot:
        if not 0 <= index < self.plan.capacity:
            raise InternalError(f"Slot {index} is not in {self.plan.network}.")
        holder = next((m for m, i in self._used.items() if i == index), machine_id)
        if holder != machine_id or (index in self._reserved and machine_id not in self._used):
            raise InternalError(f"Slot {index} is not held by machine {machine_id}.")
        slot = self.plan.slot(index)
        self._reserved.add(index)
        self._used[machine_id] = index
        if not await self._run(plumbing.stands, slot):
            await self._run(plumbing.demolish, slot)
            await self._build(slot)
        elif index not in self._fresh_rules:
            await self._run(plumbing.renew_rules, slot, self._resolver)
            self._fresh_rules.add(index)
        return slot.public()

    def counts(self) -> SlotCounts:
        free = self.plan.capacity - len(self._reserved)
        return SlotCounts(used=len(self._used), ready=len(self._pool), free=free)

    async def egress(self, machine_ids: Iterable[str]) -> dict[str, int]:
        slots = {m: self.plan.slot(self._used[m]) for m in machine_ids if m in self._used}
        return await self._run(_egress, slots)

    async def release(self, machine_id: str) -> None:
        index = self._used.get(machine_id)
        if index is None:
            return
        await self._demolish(self.plan.slot(index))
        self._used.pop(machine_id, None)

    # --- making --------------------------------------------------------------------------------

    def _reserve(self) -> int:
        for step in range(self.plan.capacity):
            index = (self._next + step) % self.plan.capacity
            if index not in self._reserved:
                self._reserved.add(index)
                self._next = index + 1
                return index
        raise CapacityError(
            f"All {self.plan.capacity} network slots of {self.plan.network} are in use. Destroy or sleep "
            "machines, or set a larger ROOST_NETWORK_CIDR.",
            details={"slots": self.plan.capacity},
        )

    async def _make(self) -> Slot:
        while True:
            slot = self.plan.slot(self._reserve())
            try:
                await self._build(slot)
                return slot
            except plumbing.AddressTakenError:
                self._foreign.add(slot.index)  # and stays reserved until it is looked at again
            except BaseException:
                self._reserved.discard(slot.index)
                raise

    async def _make_shielded(self) -> Slot:
        """A thread cannot be stopped half-way: where the caller goes away, the slot goes to the pool."""
        task = asyncio.create_task(self._make())
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
            await self._run(plumbing.build, slot, self._resolver, mtu)
        except OSError as exc:
            raise InternalError(
                f"A network slot could not be made: {exc}.", retryable=True
            ) from exc
        self._fresh_rules.add(slot.index)

    async def _demolish(self, slot: Slot) -> None:
        await self._run(plumbing.demolish, slot)
        self._fresh_rules.discard(slot.index)
        self._reserved.discard(slot.index)

    async def _keep(self) -> None:
        """Fills the pool when it is asked to, and looks at the host's addresses now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._wanted.wait()
            self._wanted.clear()
            self._reserved -= self._foreign
            self._foreign.clear()
            try:
                await self._run(self._protect)
                while len(self._pool) < self._pool_size:
                    if (
                        busy := self._taken_at + REFILL_AFTER_S - time.monotonic()
                    ) > 0 and self._pool:
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
