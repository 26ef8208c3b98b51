"""What this service has and Roost has not: answered as such, never as missing."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from roost.dialects.serving import not_served

_INSTEAD = {
    "artifacts of executions": "Read the files from the machine.",
    "log streams of executions": "Ask for their output, or their events.",
    "machines that resize themselves": "Update memory_mib.",
}


class Absent:
    def __init__(self, what: str) -> None:
        self._what = what

    async def serve(self, request: Request) -> Response:
        raise not_served(self._what, _INSTEAD[self._what])
