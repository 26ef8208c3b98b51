"""One build, from its first instruction to a sealed image.

    plan: every instruction's key     the deepest layer that is there     the steps behind it, one layer each     seal

Everything that can be wrong with the Dockerfile and its context is found before a machine is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from roost.drivers.interface import Size
from roost.engine.engine import Engine
from roost.errors import ForbiddenError, LimitError, MachineError, RoostError
from roost.services.bases import Bases, is_foreign
from roost.services.build_log import BuildLog, Output
from roost.services.images import Use
from roost.services.layers import Layers
from roost.services.steps import StepFailed, Steps
from roost.services.workshop import BuildRoom, BuildWorkshop, Place
from roost.storage.interface import Image
from roost.templates import copying, keys
from roost.templates.base import Base, Foreign
from roost.templates.context import Context
from roost.templates.copying import Copied
from roost.templates.dockerfile import Dockerfile, Instruction
from roost.templates.plan import Copy, Plan, Step
from roost.templates.roosttoml import RoostToml

# (image of the last layer, digest of its content, config): with our agent, and named by all of it
Seal = Callable[[Image, str, Mapping[str, Any]], Awaitable[Image]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is to be built. Values of secrets and credentials are in memory alone."""

    dockerfile: Dockerfile
    beside: RoostToml | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    no_cache: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    image: Image
    config: Mapping[str, Any]
    parent_id: str | None


@dataclass(frozen=True, slots=True)
class Keeper:
    """Who gets the machine of a step that failed."""

    tenant: str
    key_id: str | None
    name: str


@dataclass(slots=True)
class _Planned:
    number: int  # from 1
    instruction: Instruction
    step: Step | None
    key: str = ""
    copied: Copied | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class Building:
    """``told``: called with (step, steps, cached) whenever one of them changes."""

    def __init__(
        self,
        engine: Engine,
        layers: Layers,
        bases: Bases,
        seal: Seal,
        recipe: Recipe,
        place: Place,
        context: Context | None,
        log: BuildLog,
        told: Callable[[int, int, int], None],
        use: Use,
        keeper: Keeper | None = None,
    ) -> None:
        self._engine = engine
        self._layers = layers
        self._bases = bases
        self._seal = seal
        self._recipe = recipe
        self._place = place
        self._context = context
        self._log = log
        self._told = told
        self._use = use
        self._keeper = keeper
        self._cached = 0
        self.config: dict[str, Any] = {}  # as far as it came
        self.machine_id: str | None = None  # kept after a failure

    async def run(self) -> Built:
        """Raises TEMPLATE_BUILD_FAILED (details: step, line, command, exit_code, output, machine_id), and what stands
        in the way before a step: DOCKERFILE_INVALID, INVALID_STATE, UNSUPPORTED, ..."""
        workshop = BuildWorkshop(
            self._engine, self._layers, self._place, self._log.output(0), self._use
        )
        try:
            return await self._run(workshop)
        finally:
            workshop.output.end()
            await workshop.close()

    async def _run(self, workshop: BuildWorkshop) -> Built:
        plan = Plan(self._recipe.dockerfile, self._recipe.args)
        instructions = plan.dockerfile.instructions
        base: Base | None = None
        planned: list[_Planned] = []
        for number, each in enumerate(instructions, 1):
            if each.keyword == "FROM":
                base = await self._begin(plan, each, number, workshop)
                key = keys.of_base(base.content)
                planned.append(_Planned(number, each, None))
                continue
            item = _Planned(number, each, await asyncio.to_thread(plan.take, each))
            if item.step is not None:
                item.copied = await self._gathered(item)
                key = await self._key(key, item)
                item.key = key
            item.env = dict(plan.state.env)
            planned.append(item)
        assert base is not None
        if plan.unused:
            names = ", ".join(plan.unused)
            self._log.text(0, "note", f"no ARG names these arguments: {names[:500]}\n")
        self.config = plan.config(self._recipe.beside)
        image = await self._steps(workshop, base, planned)
        self.config = plan.config(self._recipe.beside)
        content = base.content if image is base.image else await self._layers.content(image)
        sealed = self._use(await self._seal(image, content, self.config))
        return Built(sealed, self.config, base.template_id)

    async def _begin(
        self, plan: Plan, each: Instruction, number: int, workshop: BuildWorkshop
    ) -> Base:
        total = len(plan.dockerfile.instructions)
        self._told(number, total, 0)
        begun = self._open(number, total, each, "running")
        reference = plan.reference(each)
        if is_foreign(reference):
            workshop.output = self._log.output(number)
            wanted = Foreign(
                reference, each.line, self._context, self._recipe.credentials, self._recipe.no_cache
            )
            base = await self._bases.foreign(wanted, workshop)
            workshop.output.end()
        else:
            base = await self._bases.find(self._place.tenant, reference, each.line, self._use)
        workshop.base = base.image
        plan.begin(base.config)
        gib = -(-base.image.size_bytes // (1 << 30)) or self._place.size.storage_gib
        self._place = replace(self._place, size=self._size(gib))
        workshop.place = self._place
        self._close(number, "done", begun)
        return base

    def _size(self, storage_gib: int) -> Size:
        """Of its disk at least what it begins from; more where machines of the template have more."""
        size = self._place.size
        beside = self._recipe.beside
        asked = beside.size.storage_gib if beside is not None and beside.size is not None else None
        return Size(size.vcpu, size.memory_mib, max(storage_gib, asked or 0))

    async def _gathered(self, item: _Planned) -> Copied | None:
        if not isinstance(item.step, Copy):
            return None
        line = item.instruction.line
        return await asyncio.to_thread(copying.gather, item.step, self._context, line)

    async def _key(self, below: str, item: _Planned) -> str:
        assert item.step is not None
        copied = None
        if item.copied is not None:
            copied = await asyncio.to_thread(copying.digest, item.copied, self._context)
        return keys.of_step(below, item.step, copied)

    # --- the steps ------------------------------------------------------------------------------

    async def _steps(self, workshop: BuildWorkshop, base: Base, planned: list[_Planned]) -> Image:
        total = len(planned)
        image, done = await self._deepest(workshop, base, planned)
        self._cached = sum(1 for each in planned[:done] if each.step is not None)
        for each in planned[:done]:
            if each.instruction.keyword != "FROM":
                self._open(each.number, total, each.instruction, "cached" if each.step else "done")
        self._told(done, total, self._cached)
        async with contextlib.AsyncExitStack() as stack:
            room: BuildRoom | None = None
            for each in planned[done:]:
                if each.instruction.keyword == "FROM":
                    continue
                if each.step is None:
                    self._open(each.number, total, each.instruction, "done")
                    continue
                begun = self._open(each.number, total, each.instruction, "running")
                self._told(each.number, total, self._cached)
                workshop.output = self._log.output(each.number)
                if room is None:
                    room = await self._opened(stack, workshop, image, each, total)
                image = await self._step(room, each, total, workshop.output)
                self._close(each.number, "done", begun)
        self._told(total, total, self._cached)
        return image

    async def _deepest(
        self, workshop: BuildWorkshop, base: Base, planned: list[_Planned]
    ) -> tuple[Image, int]:
        """The last layer that is there, and how many instructions it answers."""
        if not self._recipe.no_cache:
            for each in reversed(planned):
                if each.step is not None and (found := await workshop.find(each.key)) is not None:
                    return found, each.number
        return base.image, 0

    async def _opened(
        self,
        stack: contextlib.AsyncExitStack,
        workshop: BuildWorkshop,
        image: Image,
        each: _Planned,
        total: int,
    ) -> BuildRoom:
        try:
            return await stack.enter_async_context(workshop.room(image))
        except RoostError as failure:
            failure.details.pop("machine_id", None)  # nobody's, and gone
            if failure.code in ("MACHINE_FAILED", "AGENT_LOST", "TIMEOUT"):
                raise self._failed(
                    each, total, f"its machine did not start: {failure.message}", None, ""
                ) from failure
            raise

    async def _step(self, room: BuildRoom, each: _Planned, total: int, output: Output) -> Image:
        step = each.step
        assert step is not None
        timeout_s = self._engine.settings.build_step_timeout_s
        steps = Steps(self._context, self._recipe.secrets, timeout_s)
        try:
            # Of what a step takes itself; RUN has the same limit inside.
            async with asyncio.timeout(timeout_s + 60):
                await steps.do(room, step, each.copied, output)
            return await room.keep(each.key)
        except StepFailed as failure:
            failed = self._failed(each, total, failure.message, failure.code, output.tail)
            await self._look_into(room, each, failed)
            raise failed from failure
        except TimeoutError as failure:
            message = f"it did not end within {timeout_s:g} s"
            failed = self._failed(each, total, message, None, output.tail)
            await self._look_into(room, each, failed)
            raise failed from failure
        except RoostError as failure:
            output.end()
            message = failure.message
            if (ended := await room.why_ended()) is not None:
                message = f"its machine ended ({ended}). {_advice(ended)}"
            failed = self._failed(each, total, message, None, output.tail, cause=failure.code)
            if ended is None:
                await self._look_into(room, each, failed)
            raise failed from failure

    async def _look_into(self, room: BuildRoom, each: _Planned, failed: MachineError) -> None:
        if self._keeper is None:
            return
        keeper = self._keeper
        try:
            await room.hand_over(keeper.tenant, keeper.key_id, keeper.name, each.env)
        except (LimitError, ForbiddenError) as failure:
            self._log.text(each.number, "note", f"its machine is not kept: {failure.message}\n")
            return
        self.machine_id = failed.details["machine_id"] = room.machine_id
        failed.message += f" Its machine is {room.machine_id}: look into it, then delete it."

    def _failed(
        self,
        each: _Planned,
        total: int,
        why: str,
        code: int | None,
        tail: str,
        cause: str | None = None,
    ) -> MachineError:
        command = each.instruction.shown[:1000]
        details: dict[str, Any] = {
            "step": each.number,
            "steps": total,
            "line": each.instruction.line,
            "command": command,
            "exit_code": code,
            "output": tail,
        }
        if cause is not None:
            details["cause"] = cause
        return MachineError(
            f"Step {each.number} of {total} failed (line {each.instruction.line}, {command[:200]}): {why}.".replace(
                "..", "."
            ),
            code="TEMPLATE_BUILD_FAILED",
            details=details,
        )

    # --- telling --------------------------------------------------------------------------------

    def _open(self, number: int, total: int, each: Instruction, status: str) -> float:
        self._log.add(
            "step",
            step=number,
            steps=total,
            line=each.line,
            instruction=each.shown[:1000],
            status=status,
        )
        return time.monotonic()

    def _close(self, number: int, status: str, begun: float) -> None:
        ms = int((time.monotonic() - begun) * 1000)
        self._log.add("step", step=number, status=status, duration_ms=ms)


def _advice(reason: str) -> str:
    if "oom" in reason or "memory" in reason:
        return "It ran out of memory: ROOST_BUILD_MEMORY_MIB"
    return "See the output above"
