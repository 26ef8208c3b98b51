"""Machines: their life, and a stream of it.

Calls wait for what they ask for, as long as this client's own patience (60 s) surely allows: then the machine is
answered as it is (202), and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from roost.api.v1.parse import if_match
from roost.dialects.dedalus import asked, shapes
from roost.dialects.serving import Json, Services, body, caller, key_id, tenant
from roost.gateway.respond import Events, event
from roost.services.models import UNSET, CreateMachine, Machine, PatchMachine

T = TypeVar("T")
PATIENCE_S = 30.0
_COMING = frozenset({"accepted", "placement_pending", "starting"})


class Machines:
    def __init__(self, services: Services) -> None:
        self._s = services

    async def create(self, request: Request) -> Response:
        said = await body(request, asked.CreateMachine)
        wanted = CreateMachine(
            template=said.template,
            vcpu=said.vcpu,
            memory_mib=said.memory_mib,
            storage_gib=said.storage_gib,
            isolation=said.isolation,
            driver=said.driver,
            autosleep_seconds=300 if said.autosleep is None else asked.autosleep(said.autosleep),
            created_by=key_id(request),
        )
        who = tenant(request)
        made = await self._s.machines.create(who, wanted, wait=False)
        caller(request).machine_id = made.id
        if made.phase in _COMING:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    made = await self._settled(who, made)
        return _answer(made, 202 if made.phase in _COMING else 200)

    async def _settled(self, who: str, made: Machine) -> Machine:
        found = await self._s.machines.states(who, made.id)
        async with contextlib.aclosing(found):
            async for each in found:
                made = each
                if each.phase not in _COMING:
                    break
        return made

    async def list(self, request: Request) -> Response:
        limit, cursor = asked.page(request)
        found = await self._s.machines.list(tenant(request), limit=limit, cursor=cursor)
        items = [shapes.machine(each) for each in found.items]
        return Json(shapes.page(items, found.next_cursor))

    async def retrieve(self, request: Request) -> Response:
        return _answer(await self._s.machines.get(tenant(request), _id(request)))

    async def update(self, request: Request) -> Response:
        said = await body(request, asked.UpdateMachine)
        patch = PatchMachine(
            vcpu=UNSET if said.vcpu is None else said.vcpu,
            memory_mib=UNSET if said.memory_mib is None else said.memory_mib,
            storage_gib=UNSET if said.storage_gib is None else said.storage_gib,
            autosleep_seconds=(
                UNSET if said.autosleep is None else asked.autosleep(said.autosleep)
            ),
        )
        return _answer(
            await self._s.machines.patch(tenant(request), _id(request), patch, if_match(request))
        )

    async def delete(self, request: Request) -> Response:
        revision = if_match(request)
        work = self._s.machines.delete(tenant(request), _id(request), True, revision)
        return await self._patiently(request, work)

    async def sleep(self, request: Request) -> Response:
        await self._check_revision(request)
        return await self._patiently(request, self._s.machines.sleep(tenant(request), _id(request)))

    async def wake(self, request: Request) -> Response:
        await self._check_revision(request)
        return await self._patiently(request, self._s.machines.wake(tenant(request), _id(request)))

    async def reboot(self, request: Request) -> Response:
        """``force`` is no different here: either way the disk is whole and the processes are gone."""
        work = self._s.machines.reboot(tenant(request), _id(request))
        return await self._patiently(request, work)

    async def watch(self, request: Request) -> Response:
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 16 else None
        states = await self._s.machines.states(tenant(request), _id(request), after)
        current = await self._s.machines.get(tenant(request), _id(request))
        found = _until_as_desired(states, current, after)
        return Events(found, caller(request).request_id, caller(request).principal)

    async def _check_revision(self, request: Request) -> None:
        """Older clients send ``If-Match`` with every change. Raises REVISION_MISMATCH."""
        revision = if_match(request)
        if revision is not None:
            await self._s.machines.patch(tenant(request), _id(request), PatchMachine(), revision)

    async def _patiently(self, request: Request, work: Coroutine[Any, Any, Machine]) -> Response:
        done = await within(PATIENCE_S, work)
        if done is not None:
            return _answer(done)
        return _answer(await self._s.machines.get(tenant(request), _id(request)), 202)


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T | None:
    """What it comes to; None where it takes longer, and goes on."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    if (await asyncio.wait({task}, timeout=seconds))[0]:
        return task.result()
    return None


async def _until_as_desired(
    states: AsyncGenerator[Machine, None], current: Machine, after: int | None
) -> AsyncGenerator[bytes, None]:
    """Ends once the machine is what its owner wants, or failed."""
    async with contextlib.aclosing(states):
        if current.revision == after and _is_as_desired(current):
            return
        async for each in states:
            yield event("status", shapes.machine(each), str(each.revision))
            if _is_as_desired(each):
                return


def _is_as_desired(machine: Machine) -> bool:
    return machine.phase in (machine.desired_state, "failed")


def _id(request: Request) -> str:
    return str(request.path_params["machine_id"])


def _answer(found: Machine, status: int = 200) -> Response:
    bind_contextvars(machine_id=found.id)
    return Json(shapes.machine(found), status, {"etag": f'"{found.revision}"'})
