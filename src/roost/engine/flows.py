"""What happens to machines, as lists of steps.

    create   place (disk || slot) -> boot || sync -> agent         undone when it fails
    wake     place ((disk) || slot) -> boot || sync -> agent       undone when it fails: asleep again, or failed
    freeze   freeze                                                undone when it fails: runs on
    thaw     thaw                                                  undone when it fails: frozen again
    sleep    hush (keeps memory where it can) -> remove -> release finishes
    reap     remove -> release                                     finishes; of a machine that died
    destroy  remove -> clear (disk || slot)                        finishes

The token a machine's agent knows belongs to one ``generation`` (start) of it and is made where it is needed; it is
in no row and no log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from roost.agent.v1 import agent_pb2 as pb
from roost.clock import Clock
from roost.drivers.interface import Capture, Handle, Isolation, NetworkSlot, Root, StartSpec, Volume
from roost.engine import metering
from roost.engine.identity import HostIdentity, linux_machine_id
from roost.engine.journal import Context, Interrupted, Plan, Stage, Step
from roost.engine.lifecycle import (
    DestroyAsked,
    Destroyed,
    Failed,
    Phase,
    Placing,
    Running,
    SleepUndone,
    Slept,
    Starting,
    Tier,
    WakeUndone,
)
from roost.engine.machine import Machine, MemoryImage
from roost.engine.ports import Agents, Boundary, NoBoundary
from roost.engine.rungs import Rungs
from roost.engine.transitions import advance, load
from roost.errors import (
    CapacityError,
    InternalError,
    MachineError,
    NotFoundError,
    RoostError,
    discreet,
)
from roost.network.interface import Network
from roost.storage import packing
from roost.storage.interface import Image, Storage
from roost.store import Store, machines, operations, ports, snapshots, volumes
from roost.store.schema import templates

log = logging.getLogger(__name__)
GRACE_S = 5.0
HUSH_S = 8.0
SETTLE_GRACE_S = 0.5  # of one that is to be gone
SETTLE_S = 5.0
SYNC_S = 10.0
TREE_S = 3600.0  # to pack or unpack what a directory had
GONE: dict[str, Any] = {"handle": None, "slot_index": None}


@dataclass(frozen=True, slots=True)
class Parts:
    """What flows act on."""

    store: Store
    clock: Clock
    rungs: Rungs
    network: Network
    storage: Storage
    agents: Agents
    identity: HostIdentity
    agent_timeout_s: float
    boundary: Boundary = field(default_factory=NoBoundary)


class Start:
    """One start of a machine: what its steps share while they run."""

    def __init__(
        self, parts: Parts, machine: Machine, config: Mapping[str, Any], fresh_disk: bool
    ) -> None:
        self.parts = parts
        self.machine = machine
        self.config = config
        self.fresh_disk = fresh_disk  # it has no disk yet: this start clones one
        self.generation = machine.generation + 1
        self.slot: NetworkSlot | None = None
        self.handle: Handle | None = None
        self.failure: Exception | None = None  # known before its first step, which raises it
        image = machine.memory_image
        self.spent = image is not None and image.used and not fresh_disk  # its disk has moved on
        self.image = None if self.spent else image
        self.tried = False  # to go on from it: the disk may have moved on
        self.lost: str | None = None  # why it did not
        self.invalid: str | None = (
            None  # the snapshot whose memory is damaged or of another version
        )

    @property
    def token(self) -> str:
        return self.parts.identity.agent_token(self.machine.id, self.generation)

    @property
    def linux_id(self) -> str:
        return linux_machine_id(self.machine.id)

    async def clone(self, context: Context) -> None:
        if self.failure is not None:
            raise self.failure
        if self.machine.snapshot_id is not None:
            await self.parts.storage.clone_snapshot(self.machine.snapshot_id, self.machine.id)
            return
        if not self.machine.capabilities.disk_image:
            await self.parts.storage.make_home(self.machine.id)
            return
        image = await image_of(self.parts.storage, self.machine.image_digest)
        await self.parts.storage.clone(image, self.machine.id, self.machine.storage_gib)

    async def sync(self, context: Context) -> None:
        """While it boots: the machine is not acknowledged before, and until then a crash undoes it."""
        if self.fresh_disk:
            await self.parts.storage.sync_disk(self.machine.id)

    async def unclone(self, context: Context) -> None:
        await self.parts.storage.delete(context.machine_id)

    async def take(self, context: Context) -> None:
        if self.machine.capabilities.own_network:
            intercepts = await self.parts.boundary.intercepts(context.machine_id)
            self.slot = await self.parts.network.take(
                context.machine_id, self.machine.egress, intercepts
            )

    async def release(self, context: Context) -> None:
        await self.parts.network.release(context.machine_id)

    async def boot(self, context: Context) -> None:
        machine = self.machine
        self.parts.rungs.require(machine.driver)  # it may be refused since this was begun
        env = {**dict(self.config.get("env") or {}), **machine.env}
        spec = StartSpec(
            machine_id=machine.id,
            hostname=machine.hostname,
            size=machine.size,
            root=self._root(),
            slot=self.slot,
            agent_token=self.token,
            linux_id=self.linux_id,
            env=env,
            no_new_privs=bool(self.config.get("no_new_privs", False)),
            unrestricted=machine.unrestricted,
            volumes=tuple(
                Volume(self.parts.storage.volume(each.volume_id), each.path, each.read_only)
                for each in machine.volumes
            ),
        )
        driver = self.parts.rungs.driver(machine.driver)
        if self.image is not None:
            known = replace(spec, agent_token=self._known)
            try:
                self.handle = await driver.restore(known, self._capture(self.image))
                return
            except RoostError as error:
                if error.code not in ("SNAPSHOT_INVALID", "MACHINE_FAILED"):
                    raise
                log.warning("machine %s boots: its memory is lost: %s", machine.id, error)
                if error.code == "SNAPSHOT_INVALID":
                    self.invalid = self.image.snapshot_id
                self.lost, self.image = f"{error.code}: {error.message}", None
        self.handle = await driver.start(spec)

    def _root(self) -> Root:
        storage, machine = self.parts.storage, self.machine
        if machine.capabilities.disk_image:
            return Root(image=storage.disk(machine.id))
        return Root(directory=storage.home(machine.id))

    def _capture(self, image: MemoryImage) -> Capture:
        storage = self.parts.storage
        if image.snapshot_id is None:
            directory = storage.memory(self.machine.id)
        else:
            directory = storage.snapshot(image.snapshot_id).memory
        self.tried = True
        return Capture(directory, image.manifest)

    async def unboot(self, context: Context) -> None:
        self.parts.agents.drop(context.machine_id)
        await self.parts.rungs.driver(self.machine.driver).remove(context.machine_id)

    async def greet(self, context: Context) -> None:
        """Nobody's first command runs before the machine has entropy, a clock and a name of its own. An agent that
        comes from a capture knows the machine of that; one of a kernel of its own knows none."""
        assert self.handle is not None
        machine, known = self.machine, self._known
        agent = self.parts.agents.get(machine.id, self.handle.agent_target, known)
        await agent.wait_ready(self.parts.agent_timeout_s)
        calls: list[Coroutine[Any, Any, Any]] = []
        if machine.capabilities.own_clock or self.image is not None:
            calls.append(agent.reseed(secrets.token_bytes(64)))
        if machine.capabilities.own_clock:
            calls.append(agent.set_clock(int(self.parts.clock.now().timestamp() * 1e9)))
        if calls:
            await asyncio.gather(*calls)
        renewal = self._renewal(known != self.token)
        if renewal != pb.RenewIdentityRequest():
            await agent.renew_identity(renewal)
        if known != self.token:
            self.parts.agents.renewed(machine.id, self.token)
        await self.parts.boundary.greeted(machine.id, agent, machine.capabilities.one_user)

    async def unpack(self, context: Context) -> None:
        """What it had when it was a directory, into its home; nobody was told yet that it runs. Done again where this
        start is undone."""
        assert self.handle is not None
        machine = self.machine
        agent = self.parts.agents.get(machine.id, self.handle.agent_target, self.token)
        as_user = (
            machine.capabilities.isolation is Isolation.USER
        )  # who owns nothing but what it makes
        home, owner = ("/home/user", "") if as_user else ("/root", "0:0")
        header = pb.TarInHeader(path=home.encode(), owner=owner)
        await agent.tar_in(header, packing.pieces(self.parts.storage.tree(machine.id)))
        with contextlib.suppress(
            RoostError
        ):  # the tar is deleted next: its copy is not in memory alone
            await agent.sync()

    def _renewal(self, stranger: bool) -> pb.RenewIdentityRequest:
        assert self.handle is not None
        machine = self.machine
        if self.image is not None:
            another = self.image.token_of[0] != machine.id
            named = another
        else:
            another = self.fresh_disk and not self.handle.identity_on_disk
            named = another or stranger
        return pb.RenewIdentityRequest(
            hostname=machine.hostname if named else "",
            # Also after a boot: what the start before wrote may have gone with an end that nobody expected.
            machine_id=self.linux_id if named else "",
            renew_ssh_host_keys=another,
            new_token=self.token if stranger else "",
        )

    @property
    def _known(self) -> str:
        """The token that the agent demands when it comes up."""
        if self.image is not None:
            return self.parts.identity.agent_token(*self.image.token_of)
        return self.parts.rungs.driver(self.machine.driver).first_token or self.token

    # --- rows -----------------------------------------------------------------------------------

    def began_boot(self, connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        if self.slot is not None:
            context.data["slot"] = self.slot.index
        values: dict[str, Any] = {
            "slot_index": self.slot.index if self.slot else None,
            "generation": self.generation,
            "disk_ready": True,
        }
        if (
            self.image is not None
        ):  # before it runs: a crash must not bring old memory to a newer disk
            values["memory_image"] = replace(self.image, used=True).to_json()
        if self.machine.phase == Phase.WAKING:
            values["last_progress_at"] = context.now
            machines.update(connection, context.machine_id, values)
        else:
            advance(connection, context.machine_id, Starting(), context.now, values)

    def began_greet(self, connection: sa.Connection, context: Context) -> None:
        assert self.handle is not None
        machines.update(
            connection,
            context.machine_id,
            {"handle": self.handle.to_json(), "last_progress_at": context.now},
        )

    def runs(self, connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        context.change = advance(
            connection,
            context.machine_id,
            Running(),
            context.now,
            {"last_activity_at": context.now, "memory_image": None, "brings_tree": False},
        )
        self.set_aside(connection)
        if self.lost is None and self.spent:
            self.lost = "a start before this one ran on from its memory and did not get to its end"
        if self.lost is not None:
            message = f"it started from its disk: {self.lost}"
            machines.record(connection, context.machine_id, context.now, "memory_lost", message)

    def set_aside(self, connection: sa.Connection) -> None:
        if self.invalid is not None:
            snapshots.set_aside(connection, self.invalid, self.lost or "")

    def memory_after(self) -> dict[str, Any]:
        """The row's, once this start is undone: still good where nothing ran on the disk, or that is gone."""
        image = self.machine.memory_image
        if image is None or self.lost is not None:
            return {"memory_image": None}
        used = (image.used or self.tried) and not self.fresh_disk
        return {"memory_image": replace(image, used=used).to_json()}

    def boot_and_greet(self) -> tuple[Stage, ...]:
        unpacked = Stage("tree", (Step("tree", self.unpack, timeout_s=TREE_S),))
        return (
            Stage(
                "boot",
                (Step("boot", self.boot, self.unboot), Step("sync", self.sync)),
                self.began_boot,
            ),
            Stage(
                "agent",
                (Step("agent", self.greet),),
                self.began_greet,
                interruptible=True,
                eager=True,
            ),
            *((unpacked,) if self.machine.brings_tree else ()),
        )


def create(start: Start) -> Plan:
    def placing(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        advance(connection, context.machine_id, Placing(), context.now)

    def undone(connection: sa.Connection, context: Context, error: RoostError) -> None:
        values = {**GONE, "disk_ready": False, **start.memory_after()}
        start.set_aside(connection)
        _failed(connection, context, error, values)

    place = (
        Step("disk", start.clone, start.unclone),
        Step("slot", start.take, start.release),
    )
    return Plan(
        "create",
        (Stage("place", place, placing), *start.boot_and_greet()),
        finishes=False,
        done=start.runs,
        undone=undone,
        stuck=stuck,
    )


def wake(start: Start) -> Plan:
    def undone(connection: sa.Connection, context: Context, error: RoostError) -> None:
        assert context.now is not None
        error = _kept(context, error)
        values = {**GONE, "disk_ready": not start.fresh_disk, **start.memory_after()}
        start.set_aside(connection)
        waking = load(connection, context.machine_id).phase == Phase.WAKING
        unlucky = isinstance(error, CapacityError | InternalError | Interrupted)
        unlucky = unlucky or error.code == "RUNG_UNAVAILABLE"
        if not (waking and unlucky):
            _failed(connection, context, error, values)
            return
        values["last_error"] = error.to_wire()
        before = context.data.get("failed_before")
        event = (
            WakeUndone(f"not woken: {error.code}", rests(values["memory_image"]))
            if before is None
            else Failed(before, True)
        )
        context.change = advance(connection, context.machine_id, event, context.now, values)

    steps = [Step("slot", start.take, start.release)]
    if start.fresh_disk:
        steps.insert(0, Step("disk", start.clone, start.unclone))
    return Plan(
        "wake",
        (Stage("place", tuple(steps)), *start.boot_and_greet()),
        finishes=False,
        done=start.runs,
        undone=undone,
        stuck=stuck,
    )


class End:
    """The ways a machine's processes end."""

    def __init__(
        self,
        parts: Parts,
        machine: Machine,
        hush: bool = True,
        keep_memory: bool = False,
        frozen: bool = False,
        settle: bool = False,
    ) -> None:
        """``settle``: what its programs wrote to its volumes is there when it has ended."""
        self.parts = parts
        self.machine = machine
        self._writes = any(not each.read_only for each in machine.volumes)
        self._settle = settle and self._writes and machine.handle is not None
        self._hush = hush and machine.handle is not None
        self._keep_memory = keep_memory
        self._frozen = frozen

    async def hush(self, context: Context) -> None:
        """Keeps memory where that is asked and can be. Else asks the processes to end and the disk to be
        synced; a machine that does not answer is ended anyway."""
        handle = self.machine.handle
        if not self._hush or handle is None:
            return
        if self._frozen:
            with _unless_gone():
                await self.parts.rungs.driver(self.machine.driver).thaw(handle)
        # Once it is lost its programs are being ended: where this step is repeated there is none left to keep.
        if self._keep_memory and "memory_lost" not in context.data:
            if self.machine.volumes:  # which outlive this memory
                await sync(self.parts, self.machine)
            if await self._hibernate(context, handle):
                return
        await self._shut_down(handle, GRACE_S)
        await self._unmounted(handle)

    async def _shut_down(self, handle: Handle, grace_s: float) -> None:
        token = self.parts.identity.agent_token(self.machine.id, self.machine.generation)
        agent = self.parts.agents.get(self.machine.id, handle.agent_target, token)
        try:
            async with asyncio.timeout(HUSH_S):
                await agent.shutdown(grace_s)
        except (RoostError, TimeoutError) as error:
            log.info("machine %s did not shut down by itself: %s", self.machine.id, error)

    async def _unmounted(self, handle: Handle) -> None:
        """Of a kernel of its own, which unmounts and then powers itself off: else who has its volumes next would have to
        repair them, which who only reads cannot."""
        if self._writes and self.machine.capabilities.raw_disk:
            driver = self.parts.rungs.driver(self.machine.driver)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(driver.wait(handle), SETTLE_S)

    async def _hibernate(self, context: Context, handle: Handle) -> bool:
        if "memory_image" in context.data:  # this step is being repeated
            return True
        machine = self.machine
        storage = self.parts.storage
        try:
            await storage.require(machine.memory_mib << 20)
            into = await storage.begin_memory(machine.id)
            self.parts.agents.drop(machine.id)
            # Within the step's own time: what takes longer sleeps without memory rather than not at all.
            async with asyncio.timeout(0.8 * self.parts.agent_timeout_s):
                capture = await self.parts.rungs.driver(machine.driver).hibernate(handle, into)
        except (RoostError, OSError, TimeoutError) as error:
            log.warning("machine %s sleeps without its memory: %s", machine.id, error)
            told = repr(error)
            if isinstance(error, RoostError):
                told = f"{error.code}: {discreet(error).message}"
            context.data["memory_lost"] = told[:400]
            await storage.delete_memory(machine.id)
            return False
        image = MemoryImage(capture.manifest, (machine.id, machine.generation))
        context.data["memory_image"] = image.to_json()
        return True

    async def remove(self, context: Context) -> None:
        handle, driver = self.machine.handle, self.parts.rungs.driver(self.machine.driver)
        if self._settle and handle is not None:
            self._settle = False  # once: this step may be repeated
            with contextlib.suppress(RoostError, OSError):
                await driver.thaw(handle)
            await self._shut_down(handle, SETTLE_GRACE_S)
            await self._unmounted(handle)
        self.parts.agents.drop(context.machine_id)
        await driver.remove(context.machine_id)

    async def release(self, context: Context) -> None:
        """What it sent is known no more after this."""
        sent = await self.parts.network.egress([context.machine_id])
        if context.machine_id in sent:
            context.data["egress"] = sent[context.machine_id]
        await self.parts.network.release(context.machine_id)

    def count(self, connection: sa.Connection, context: Context) -> None:
        """With the row that says it ended."""
        assert context.now is not None
        if (sent := context.data.get("egress")) is not None:
            generation = self.machine.generation
            metering.sent(connection, context.machine_id, generation, sent, context.now)

    async def delete(self, context: Context) -> None:
        await self.parts.storage.delete(context.machine_id)
        await self.parts.storage.delete_memory(context.machine_id)
        await self.parts.boundary.gone(context.machine_id)


class Still:
    """A machine that stands still with its memory resident, and goes on."""

    def __init__(self, parts: Parts, machine: Machine) -> None:
        self.parts = parts
        self.machine = machine

    async def freeze(self, context: Context) -> None:
        await self.parts.rungs.driver(self.machine.driver).freeze(self._handle)

    async def thaw(self, context: Context) -> None:
        """A clock of its own stood still as well."""
        machine = self.machine
        await self.parts.rungs.driver(machine.driver).thaw(self._handle)
        if machine.capabilities.own_clock:
            token = self.parts.identity.agent_token(machine.id, machine.generation)
            agent = self.parts.agents.get(machine.id, self._handle.agent_target, token)
            try:
                await agent.set_clock(self._now_ns())
            except RoostError as failure:
                if failure.code not in ("AGENT_LOST", "TIMEOUT"):
                    raise
                # A daemon that spoke with it went away while it stood still: what comes first then may be lost.
                log.info("the agent of %s is dialled anew: %s", machine.id, failure)
                await agent.wait_ready(self.parts.agent_timeout_s)
                await agent.set_clock(self._now_ns())

    def _now_ns(self) -> int:
        return int(self.parts.clock.now().timestamp() * 1e9)

    async def freeze_again(self, context: Context) -> None:
        with _unless_gone():
            await self.freeze(context)

    async def thaw_again(self, context: Context) -> None:
        with _unless_gone():
            await self.parts.rungs.driver(self.machine.driver).thaw(self._handle)

    @property
    def _handle(self) -> Handle:
        assert self.machine.handle is not None
        return self.machine.handle


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """A machine that has ended need not be stopped nor started; whoever watches it is told."""
    try:
        yield
    except MachineError as error:
        if error.code == "TIMEOUT":
            raise


def _in(connection: sa.Connection, context: Context, phase: Phase) -> bool:
    """Whether it is on that way, or stuck on it."""
    state = load(connection, context.machine_id).state
    return state.phase is phase or (state.phase is Phase.FAILED and not state.retryable)


def freeze(still: Still) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        if load(connection, context.machine_id).phase == Phase.STOPPING:
            event = Slept(Tier.FROZEN)
            context.change = advance(connection, context.machine_id, event, context.now)

    def undone(connection: sa.Connection, context: Context, error: RoostError) -> None:
        assert context.now is not None
        values = {"last_error": _kept(context, error).to_wire()}
        if _in(connection, context, Phase.STOPPING):
            event = SleepUndone()
            context.change = advance(connection, context.machine_id, event, context.now, values)

    stages = (Stage("freeze", (Step("freeze", still.freeze, still.thaw_again),)),)
    return Plan("freeze", stages, finishes=False, done=done, undone=undone, stuck=stuck)


def thaw(still: Still) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        if load(connection, context.machine_id).phase == Phase.WAKING:
            values = {"last_activity_at": context.now}
            context.change = advance(connection, context.machine_id, Running(), context.now, values)

    def undone(connection: sa.Connection, context: Context, error: RoostError) -> None:
        assert context.now is not None
        values = {"last_error": _kept(context, error).to_wire()}
        if _in(connection, context, Phase.WAKING):
            event = WakeUndone(f"not woken: {error.code}", Tier.FROZEN)
            context.change = advance(connection, context.machine_id, event, context.now, values)

    stages = (Stage("thaw", (Step("thaw", still.thaw, still.freeze_again),)),)
    return Plan("thaw", stages, finishes=False, done=done, undone=undone, stuck=stuck)


def rests(image: Mapping[str, Any] | None) -> Tier:
    """How a machine sleeps that has this memory image and no processes."""
    return Tier.STOPPED if image is None or image.get("used") else Tier.HIBERNATED


def sleep(end: End) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        end.count(connection, context)
        if load(connection, context.machine_id).phase in (Phase.STOPPING, Phase.FAILED):
            image = context.data.get("memory_image")
            values = {**GONE, "memory_image": image}
            event = Slept(rests(image))
            context.change = advance(connection, context.machine_id, event, context.now, values)
            if why := context.data.get("memory_lost"):
                message = f"it sleeps without its memory: {why}"
                machines.record(connection, context.machine_id, context.now, "memory_lost", message)
        else:  # it is being destroyed by now
            machines.update(connection, context.machine_id, GONE)

    stages = (
        Stage("hush", (Step("hush", end.hush),)),
        Stage("remove", (Step("remove", end.remove),)),
        Stage("release", (Step("release", end.release),)),
    )
    return Plan("sleep", stages, finishes=True, done=done, stuck=stuck)


def reap(end: End) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        end.count(connection, context)
        machines.update(connection, context.machine_id, GONE)

    stages = (
        Stage("remove", (Step("remove", end.remove),)),
        Stage("release", (Step("release", end.release),)),
    )
    return Plan("reap", stages, finishes=True, done=done, stuck=stuck)


def destroy(end: End) -> Plan:
    def done(connection: sa.Connection, context: Context) -> None:
        assert context.now is not None
        end.count(connection, context)
        phase = load(connection, context.machine_id).phase
        if phase == Phase.DESTROYED:  # another operation, stuck until now, was first
            return
        if phase == Phase.FAILED:  # it was stuck
            advance(connection, context.machine_id, DestroyAsked(), context.now)
        for state in operations.OPEN:  # whatever was left of them, nothing of the machine is
            operations.supersede(connection, context.machine_id, context.now, state)
        ports.forget(connection, context.machine_id)
        volumes.release(connection, context.machine_id)
        end.parts.boundary.erase(connection, context.machine_id)
        context.change = advance(
            connection,
            context.machine_id,
            Destroyed(),
            context.now,
            {**GONE, "disk_ready": False, "key": None, "expires_at": None},
        )

    stages = (
        Stage("remove", (Step("remove", end.remove),)),
        Stage("clear", (Step("disk", end.delete), Step("slot", end.release))),
    )
    return Plan("destroy", stages, finishes=True, done=done, stuck=stuck)


async def sync(parts: Parts, machine: Machine) -> None:
    """What its programs wrote lies on its disks, as far as its agent can see to that."""
    assert machine.handle is not None
    token = parts.identity.agent_token(machine.id, machine.generation)
    agent = parts.agents.get(machine.id, machine.handle.agent_target, token)
    try:
        async with asyncio.timeout(SYNC_S):
            await agent.sync()
    except (RoostError, TimeoutError) as error:
        log.info("machine %s did not sync its disks: %s", machine.id, error)


async def image_of(storage: Storage, digest: str) -> Image:
    if (image := await storage.image(digest)) is not None:
        return image
    raise NotFoundError(
        f"The image {digest[:20]}... this machine starts from is gone; create it anew.",
        code="TEMPLATE_NOT_FOUND",
    )


def config_of(connection: sa.Connection, template_id: str) -> dict[str, Any]:
    value = connection.execute(
        sa.select(templates.c.config).where(templates.c.id == template_id)
    ).scalar()
    return dict(value or {})


def _kept(context: Context, error: RoostError) -> RoostError:
    """As the machine's row, which its tenant reads, keeps it; the whole is in the log."""
    kept = discreet(error)
    if kept is not error:
        log.warning("machine %s: %s %s", context.machine_id, error.message, error.details)
    return kept


def _failed(
    connection: sa.Connection, context: Context, error: RoostError, values: dict[str, Any]
) -> None:
    """Failed with the reason; a machine that is being destroyed meanwhile stays so."""
    assert context.now is not None
    error = _kept(context, error)
    values = {**values, "last_error": error.to_wire()}
    if load(connection, context.machine_id).phase in (Phase.DESTROYING, Phase.DESTROYED):
        machines.update(connection, context.machine_id, values)
        return
    event = Failed(f"{error.code}: {error.message}"[:200], True)
    context.change = advance(connection, context.machine_id, event, context.now, values)


def stuck(connection: sa.Connection, context: Context, error: RoostError) -> None:
    """What could neither be done nor undone; delete or the daemon's next start tries again."""
    assert context.now is not None
    error = _kept(context, error)
    values = {"last_error": error.to_wire()}
    phase = load(connection, context.machine_id).phase
    if phase in (Phase.FAILED, Phase.DESTROYED, Phase.SLEEPING):
        machines.update(connection, context.machine_id, values)
        return
    event = Failed(f"stuck: {error.message}"[:200], False)
    context.change = advance(connection, context.machine_id, event, context.now, values)
