"""Executions: begun and answered at once, then asked for."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from roost.clock import Clock
from roost.dialects.dedalus import asked, events, shapes
from roost.dialects.serving import Json, Services, body, tenant
from roost.errors import RoostError
from roost.services.executions import StartExecution


class Executions:
    def __init__(self, services: Services, clock: Clock) -> None:
        self._s = services
        self._clock = clock

    async def create(self, request: Request) -> Response:
        """One that cannot be started is an execution that failed, as its status and error_code say."""
        said = await body(request, asked.CreateExecution)
        spec = StartExecution(
            command=said.command,
            cwd=said.cwd,
            env=said.env,
            stdin=(said.stdin or "").encode(errors="surrogatepass"),
            timeout_ms=said.timeout_ms,
        )
        self._s.metrics.executions.labels("start").inc()
        who, machine_id = tenant(request), _machine(request)
        try:
            return Json(shapes.execution(await self._s.executions.start(who, machine_id, spec)))
        except RoostError as failure:
            failed = failure.details.get("execution_id")
            if not isinstance(failed, str) or failure.retryable:
                raise
            row = await self._s.executions.get(who, machine_id, failed)
            reason = {"error_code": failure.code, "error_message": failure.message}
            return Json({**shapes.execution(row), **reason})

    async def list(self, request: Request) -> Response:
        limit, cursor = asked.page(request)
        found = await self._s.executions.list(
            tenant(request), _machine(request), limit=limit, cursor=cursor
        )
        items = [shapes.execution(each) for each in found.items]
        return Json(shapes.page(items, found.next_cursor))

    async def retrieve(self, request: Request) -> Response:
        row = await self._s.executions.get(tenant(request), *_which(request))
        return Json(shapes.execution(row))

    async def delete(self, request: Request) -> Response:
        row = await self._s.executions.cancel(tenant(request), *_which(request))
        return Json(shapes.execution(row))

    async def output(self, request: Request) -> Response:
        row = await self._s.executions.output(tenant(request), *_which(request))
        return Json(shapes.output(row))

    async def events(self, request: Request) -> Response:
        """While it runs there is always a ``next_cursor``: to ask with later."""
        limit, cursor = asked.page(request)
        machine_id, execution_id = _which(request)
        place = events.Place() if cursor is None else events.Place.read(cursor)
        row = await self._s.executions.output(tenant(request), machine_id, execution_id)
        found, after = events.events(row, place, limit, self._clock.now())
        return Json(shapes.page(found, None if after is None else str(after)))


def _machine(request: Request) -> str:
    return str(request.path_params["machine_id"])


def _which(request: Request) -> tuple[str, str]:
    return _machine(request), str(request.path_params["execution_id"])
