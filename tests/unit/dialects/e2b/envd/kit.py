"""What is spoken inside a sandbox, against the serving side whole and a real agent; who may is made up."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import Scope

from roost.api.v1.services import Services
from roost.dialects.e2b.envd.app import target
from roost.errors import AuthError, NotFoundError
from roost.gateway.dispatch import Target
from roost.services.models import Principal
from tests.unit.api.kit import TENANT


class Anybody:
    """Of ``Access``: lets in whoever names a machine, except with the token ``wrong``."""

    async def principal_of(self, scope: Scope) -> Principal:
        said = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if said.get(b"x-access-token") == "wrong":
            raise AuthError("unauthorized access, please provide a valid access token")
        machine_id = said.get(b"e2b-sandbox-id", "")
        if machine_id == "missing":
            raise NotFoundError(
                "gone", code="MACHINE_NOT_FOUND", details={"machine_id": machine_id}
            )
        return Principal(TENANT, machine_id, "e2b", machine_id=machine_id)


def dialect(services: Services) -> Target:
    access: Any = Anybody()
    return target(services, access)


def basic(user: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}


def frame(said: Any, flags: int = 0) -> bytes:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    return bytes((flags,)) + len(data).to_bytes(4, "big") + data


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Sandbox:
    """A client of one."""

    def __init__(self, url: str, machine_id: str) -> None:
        self.id = machine_id
        self.http = httpx.AsyncClient(
            base_url=url, headers={"e2b-sandbox-id": machine_id}, timeout=20, trust_env=False
        )

    async def call(self, method: str, said: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(
            method,
            content=json.dumps(said or {}),
            headers={"content-type": "application/json", **named},
        )

    async def ok(self, method: str, said: Any = None, **headers: str) -> Any:
        answer = await self.call(method, said, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stream(
        self, method: str, said: Any, body: bytes | None = None, **headers: str
    ) -> AsyncIterator[tuple[int, Any]]:
        """Frames: flags and what they say."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {"content-type": "application/connect+json", "connect-protocol-version": "1"}
        content = frame(said) if body is None else body
        async with self.http.stream(
            "POST", method, content=content, headers={**kind, **named}
        ) as answer:
            assert answer.status_code == 200, await answer.aread()
            held = b""
            async for part in answer.aiter_raw():
                held += part
                while len(held) >= 5 and len(held) >= 5 + int.from_bytes(held[1:5], "big"):
                    size = 5 + int.from_bytes(held[1:5], "big")
                    yield held[0], json.loads(held[5:size])
                    held = held[size:]

    async def all(self, method: str, said: Any, **kw: Any) -> list[tuple[int, Any]]:
        return [each async for each in self.stream(method, said, **kw)]


def command(text: str, **kw: Any) -> dict[str, Any]:
    return {"process": {"cmd": "/bin/sh", "args": ["-c", text], **kw.pop("process", {})}, **kw}


def printed(frames: list[tuple[int, Any]], stream: str = "stdout") -> bytes:
    data = [
        each["event"]["data"].get(stream, "")
        for flags, each in frames
        if not flags and "data" in each["event"]
    ]
    return b"".join(base64.b64decode(each) for each in data)


def end(frames: list[tuple[int, Any]]) -> Any:
    return next(
        each["event"]["end"] for flags, each in frames if not flags and "end" in each["event"]
    )
