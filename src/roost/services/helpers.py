"""Servers that templates bring along: a browser, the helper of a display, the helper of kernels.

They listen on a machine's loopback and are started by the template. One that is dead (its machine woke from its disk,
somebody killed it) is started again here by the same program, once however many ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from roost.errors import RoostError, UnsupportedError, error
from roost.services import asking
from roost.services.executions import Executions, StartExecution
from roost.services.inner import Answer, Inner

START_S = 45.0
READY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Helper:
    what: str  # for people: "browser"
    port: int
    ready: str  # path that answers 200 once it can be used
    program: str  # starts it, and ends with it
    template: str  # that has it
    code: str  # of the error where it is not to be had
    also: tuple[int, ...] = ()  # ports of the template by which as much can be done

    def down(self, why: str, **details: Any) -> RoostError:
        return error(
            self.code,
            f"The {self.what} of this machine does not answer. {why}",
            details={"port": self.port, **details},
        )


def programs(*helpers: Helper) -> dict[int, str]:
    """What a list of tools must allow, by port: for ``Doors``."""
    return {port: each.program for each in helpers for port in (each.port, *each.also)}


class Helpers:
    def __init__(self, inner: Inner, executions: Executions) -> None:
        self.inner = inner
        self._executions = executions
        self._starting: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def call(
        self,
        tenant: str,
        machine_id: str,
        helper: Helper,
        method: str,
        path: str,
        body: Any = None,
        *,
        limit: int,
        timeout_s: float,
    ) -> Answer:
        """Its answer. Raises UNSUPPORTED where the machine has no such program, ``helper.code``, PORT_BAD_ANSWER, TIMEOUT and what wakes a machine raises."""
        started = False
        while True:
            try:
                return await self.inner.call(
                    tenant, machine_id, helper.port, method, path, body, limit=limit, timeout_s=timeout_s
                )  # fmt: skip
            except RoostError as failure:
                if failure.code != "PORT_CLOSED":
                    raise
                if started:
                    raise helper.down(_AGAIN) from failure
            await self.start(tenant, machine_id, helper)
            started = True

    async def lines(
        self,
        tenant: str,
        machine_id: str,
        helper: Helper,
        path: str,
        body: Any,
        *,
        limit: int,
        idle_s: float,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """As ``Inner.lines``; raises as ``call``."""
        for started in (False, True):
            said = self.inner.lines(
                tenant, machine_id, helper.port, "POST", path, body, limit=limit, idle_s=idle_s
            )
            try:
                async for each in said:
                    yield each
                return
            except RoostError as failure:
                if failure.code != "PORT_CLOSED":
                    raise
                if started:
                    raise helper.down(_AGAIN) from failure
            finally:
                await said.aclose()
            await self.start(tenant, machine_id, helper)

    async def start(self, tenant: str, machine_id: str, helper: Helper) -> None:
        """Ready when it returns. Raises UNSUPPORTED, ``helper.code``."""
        if not asking.may_change():
            raise helper.down("This key may only read: start it with one that may change machines.")
        key = (machine_id, helper.port)
        task = self._starting.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._start(tenant, machine_id, helper))
            self._starting[key] = task
            task.add_done_callback(lambda done: self._started(key, done))
        await asyncio.shield(task)

    def _started(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        self._starting.pop(key, None)
        if not task.cancelled():
            task.exception()  # taken: who asked may have gone

    async def _start(self, tenant: str, machine_id: str, helper: Helper) -> None:
        spec = StartExecution([helper.program], keep_awake=False)
        try:
            row = await self._executions.start(tenant, machine_id, spec)
        except RoostError as failure:
            if failure.code != "COMMAND_NOT_FOUND":
                raise
            raise UnsupportedError(
                f"This machine has no {helper.what}: make one from the template {helper.template}, or from your own on "
                f"top of it (it is started by {helper.program}).",
                details={
                    "template": helper.template,
                    "remedy": f"roost create --template {helper.template}",
                },
            ) from failure
        until = time.monotonic() + START_S
        while True:
            try:
                answer = await self.inner.call(
                    tenant, machine_id, helper.port, "GET", helper.ready, limit=READY_BYTES, timeout_s=5.0
                )  # fmt: skip
                if answer.status == 200:
                    return
            except RoostError as failure:
                if failure.code not in ("PORT_CLOSED", "PORT_BAD_ANSWER", "TIMEOUT"):
                    raise
            if time.monotonic() > until:
                raise helper.down(
                    f"It was started and is not ready after {START_S:g} s: see what the execution {row.id} says.",
                    execution_id=row.id,
                )
            row = await self._executions.get(tenant, machine_id, row.id)
            if row.ended_at is not None and row.exit_code != 0:
                raise helper.down(
                    f"It was started and ended at once: see what the execution {row.id} says.",
                    execution_id=row.id,
                )
            await asyncio.sleep(0.1)


_AGAIN = "It ended again just after it was started: look into the machine (roost ps, roost exec), or make it anew."
