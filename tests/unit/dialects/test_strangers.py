"""Every route of every dialect, found from the dialects themselves, against callers it is not for (cases 42 and 43).

The native API's own sweep is ``tests/unit/api/test_gate.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import grpc
import pytest
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from roost import dialects, ids
from roost.dialects import boxd
from roost.dialects.boxd.service import methods
from roost.dialects.e2b import app as e2b_app
from roost.drivers.fake import FakeDriver
from roost.gateway.dispatch import Target
from roost.services.models import Role
from tests.unit.api.kit import OTHER, TENANT, Served, serving
from tests.unit.engine.kit import daemon, small

NAMES = [target.name for target in dialects.targets(MagicMock())]
# Paths that ask for no key by design: what they take is proven by the call itself, or says nothing of anybody.
OPEN = {("boxd", "POST", "/api/v1/auth/token"), ("e2b-envd", "GET", "/health"), ("e2b-envd-host", "GET", "/health")}  # fmt: skip
MISSING = ids.new()


@dataclass(frozen=True, slots=True)
class Asked:
    target: str
    method: str  # or WEBSOCKET
    path: str
    host: str | None = None

    @property
    def names(self) -> list[str]:
        return [name.partition(":")[0] for name in re.findall(r"{([^}]+)}", self.path)]

    def filled(self, values: dict[str, str]) -> str:
        return re.sub(
            r"{([^}]+)}", lambda found: values.get(found[1].partition(":")[0], MISSING), self.path
        )


def routes(served: Served) -> Iterator[tuple[Target, Asked]]:
    for target in dialects.targets(served.services):
        if target.name == "pandastack-sandboxes":  # the app of "pandastack", without a prefix
            continue
        host = target.hosts[0].replace("*", MISSING) if target.hosts else None
        for method, path in _of(target.app):
            yield target, Asked(target.name, method, path, host)


def _of(app: Any, at: str = "") -> Iterator[tuple[str, str]]:
    for route in app.routes:
        path = at + route.path
        if isinstance(route, Mount):
            yield from _of(route, path)
        elif isinstance(route, WebSocketRoute):
            yield "WEBSOCKET", path
        else:
            assert isinstance(route, Route), route
            for method in sorted((route.methods or set()) - {"HEAD"}):  # it goes with GET
                yield method, path


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    makers: Any = [lambda s, n=n: dialects.targets(s)[n] for n in range(len(NAMES))]
    driver = FakeDriver(memory_snapshot=True, egress_enforced=True)
    async with daemon(tmp_path, memory=True, driver=driver) as engine:
        async with serving(tmp_path, None, engine=engine, dialects=makers) as found:
            e2b_app.previews(found.previews)
            anybody: Any = found
            async with found.client(None) as anybody.anybody:
                yield found


def written(target: Target, key: str | None) -> dict[str, str]:
    """The key as that dialect's clients write it."""
    if key is None:
        return {}
    if target.prefixes:
        key = f"{target.prefixes[0]}_{key.rpartition('_')[2]}"
    return {"x-api-key": key}


async def call(
    served: Any, target: Target, asked: Asked, key: str | None, values: dict[str, str]
) -> tuple[int, bytes]:
    headers = written(target, key)
    if asked.host is not None:
        headers["host"] = asked.host.replace(MISSING, values.get("machine_id", MISSING))
    if asked.target == "e2b-envd" or asked.target == "e2b-kernel":
        headers["e2b-sandbox-id"] = values.get("machine_id", MISSING)
    if asked.method == "WEBSOCKET":
        url = f"ws://127.0.0.1:{served.port}{asked.filled(values)}"
        try:
            async with connect(url, additional_headers=headers):
                return 101, b""
        except InvalidStatus as refused:
            return refused.response.status_code, refused.response.body or b""
    kind = "application/json"
    if asked.path.startswith(("/process.", "/filesystem.")):
        streams = asked.path.endswith(("/Start", "/Connect", "/StreamInput", "/WatchDir"))
        kind = "application/connect+json" if streams else kind
    body = b"\0\0\0\0\x02{}" if "connect" in kind else b"{}"
    request = served.anybody.build_request(
        asked.method,
        asked.filled(values),
        content=None if asked.method in ("GET", "DELETE") else body,
        headers={**headers, "content-type": kind},
        params={"path": "/x"} if "/fs" in asked.path or "volumecontent" in asked.path else None,
    )
    answer = await served.anybody.send(request, stream=True)
    try:
        endless = "stream" in answer.headers.get("content-type", "") or "connect" in kind
        endless = endless and answer.status_code == 200
        return answer.status_code, b"" if endless else await answer.aread()
    finally:
        await answer.aclose()


async def test_no_route_serves_a_stranger(served: Served) -> None:
    mine = (await served.machines.create(TENANT, small())).id
    revoked = await served.add_key(TENANT)
    await served.keys.revoke(TENANT, (await served.keys.authenticate(revoked)).key_id)
    soon = datetime.now(UTC) + timedelta(hours=1)
    tokens = [
        await served.add_token(mine, Role.MACHINE, expires_at=soon),
        await served.add_token(mine, Role.PREVIEW, port=80, expires_at=soon),
    ]
    tried = set()
    for target, asked in routes(served):
        tried.add(asked.target)
        for key in (None, "roost_" + "0" * 64, revoked, *tokens):
            status, said = await call(served, target, asked, key, {"machine_id": mine, "id": mine})
            if (asked.target, asked.method, asked.path) in OPEN:
                assert status < 500, (asked, said)
            else:
                assert status in (401, 403), (asked, key, status, said[:300])
    assert tried == set(NAMES) - {"pandastack-sandboxes"}
    assert [m.id for m in (await served.machines.list(TENANT)).items] == [mine]
    assert (await served.machines.get(TENANT, mine)).phase == "running"


async def test_what_is_anothers_answers_as_what_is_not_there(served: Served) -> None:
    theirs = (await served.machines.create(OTHER, small(name="theirs", key="their-key"))).id
    kept = await served.services.snapshots.create(OTHER, theirs, "their-snapshot")
    volume = await served.services.volumes.create(OTHER, "their-volume", 1)
    own = (await served.machines.create(TENANT, small())).id
    everywhere = {"machine_id": theirs, "id": theirs, "snapshot": kept.id, "name": "their-volume"}
    nowhere = {"machine_id": MISSING, "id": MISSING, "snapshot": MISSING, "name": "their-volumes"}
    refused = 0
    for target, asked in routes(served):
        uses = set(asked.names) & set(everywhere)
        # There E2B's clients are told whether a sandbox runs before they have proven anything (its id has 130 random bits).
        if not uses or asked.target.startswith(("e2b-envd", "e2b-kernel")):
            continue
        found = everywhere
        if asked.target in ("e2b", "e2b-volumes") and asked.path.startswith(
            ("/volume", "/volumec")
        ):
            found = {**everywhere, "id": volume.id}
        answers = []
        for values in (found, nowhere):
            status, said = await call(served, target, asked, served.key, values)
            for each in sorted((*values.values(), MISSING), key=len, reverse=True):
                said = said.replace(each.encode(), b"*")
            answers.append((status, anonymous(said)))
        assert answers[0] == answers[1], asked
        refused += not 200 <= answers[0][0] < 300
    assert refused > 60  # the rest are lists, empty both times
    for machine, tenant in ((theirs, OTHER), (own, TENANT)):
        assert (await served.machines.get(tenant, machine)).phase == "running"
    assert (await served.services.snapshots.get(OTHER, kept.id)).id == kept.id
    assert (await served.services.volumes.get(OTHER, volume.id)).id == volume.id


def anonymous(said: bytes) -> Any:
    """Without what numbers a request."""
    try:
        value = json.loads(said)
    except ValueError:
        return re.sub(rb"[0-9a-z]{26}", b"*", said)
    return re.sub(
        r'"(request_id|requestId|trace_id)": "[^"]*"', "*", json.dumps(value, sort_keys=True)
    )


async def test_no_call_of_grpc_serves_a_stranger(served: Served) -> None:
    mine = (await served.machines.create(TENANT, small())).id
    revoked = await served.add_key(TENANT)
    await served.keys.revoke(TENANT, (await served.keys.authenticate(revoked)).key_id)
    tokens = [
        await served.add_token(mine, Role.MACHINE),
        await served.add_token(mine, Role.PREVIEW, port=80),
    ]
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        for method in methods(served.services):
            path = f"/{boxd.SERVICE}/{method.name}"
            for key in (None, "roost_" + "0" * 64, revoked, *tokens):
                metadata = [("authorization", f"Bearer {key}")] if key else []
                ask = channel.stream_stream(path, None, None)
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    call = ask(iter([method.request().SerializeToString()]), metadata=metadata)
                    async for _ in call:
                        pass
                assert failed.value.code() in refused, (method.name, key, failed.value.details())
    assert [m.id for m in (await served.machines.list(TENANT)).items] == [mine]
