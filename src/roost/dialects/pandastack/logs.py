"""What a sandbox's template starts says, and what happened to the sandbox itself.

``stream``: stdout or stderr of what was started; both: these and the sandbox's own life.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from roost.api.v1.services import Services, caller, tenant
from roost.dialects.pandastack.sandboxes import present
from roost.dialects.pandastack.streams import Lines, Text, events
from roost.errors import InvalidRequestError, NotFoundError
from roost.gateway.respond import event, rfc3339
from roost.services.executions import Output
from roost.services.models import MachineEvent
from roost.services.starting import NAME

_STREAMS = ("both", "stdout", "stderr")


class Logs:
    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[BaseRoute]:
        return [Route("/v1/sandboxes/{id}/logs", self.logs, methods=["GET"])]

    async def logs(self, request: Request) -> Response:
        machine = await present(self._s, request)
        who = tenant(request)
        stream = request.query_params.get("stream", "both")
        if stream not in _STREAMS:
            raise InvalidRequestError(f"stream: one of {', '.join(_STREAMS)}.")
        if request.query_params.get("follow", "") in ("1", "true"):
            return events(self._follow(who, machine.id, stream), caller(request))
        lines = []
        if stream == "both":
            lines += [_line(each) for each in await self._s.machines.events(who, machine.id)]
        with contextlib.suppress(NotFoundError):  # nothing is started in it
            row = await self._s.executions.output(who, machine.id, NAME)
            for name, data in (("stdout", row.stdout), ("stderr", row.stderr)):
                if stream in ("both", name):
                    lines += (data or b"").decode(errors="replace").splitlines()
        return Response("".join(f"{each}\n" for each in lines), media_type="text/plain")

    async def _follow(self, who: str, machine_id: str, stream: str) -> AsyncGenerator[bytes, None]:
        """What was started is followed to its end; where nothing was, the sandbox's life to its."""
        if stream == "both":
            for each in await self._s.machines.events(who, machine_id):
                yield event("line", {"line": _line(each)})
        try:
            heard = await self._s.executions.stream(who, machine_id, NAME)
        except NotFoundError:
            async for piece in self._life(who, machine_id, stream):
                yield piece
            return
        texts = {"stdout": Text(), "stderr": Text()}
        lines = {"stdout": Lines(), "stderr": Lines()}
        async with contextlib.aclosing(heard):
            async for each_ in heard:
                if not isinstance(each_, Output) or stream not in ("both", each_.stream):
                    continue
                name = each_.stream
                for line in lines[name].take(texts[name].take(each_.data)):
                    yield event("line", {"line": line})
        for begun in lines.values():
            if rest := begun.rest():
                yield event("line", {"line": rest})

    async def _life(self, who: str, machine_id: str, stream: str) -> AsyncGenerator[bytes, None]:
        told = len(await self._s.machines.events(who, machine_id))
        states = await self._s.machines.states(who, machine_id)
        async with contextlib.aclosing(states):
            async for _ in states:
                found = await self._s.machines.events(who, machine_id)
                for each in found[told:]:
                    if stream == "both":
                        yield event("line", {"line": _line(each)})
                told = len(found)


def _line(each: MachineEvent) -> str:
    return f"{rfc3339(each.at)} {each.event}{f': {each.message}' if each.message else ''}"
