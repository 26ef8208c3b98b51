"""Every route against every kind of caller; bodies, methods and errors; idempotency."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from roost.api.v1 import access
from roost.gateway import sessions
from roost.services.models import Role
from roost.store.idempotency import Idempotency
from roost.store.schema import idempotency as t
from tests.attack.record import case
from tests.unit.api.kit import OTHER, TENANT, Served, serving, until

M, E, T = "a" * 26, "b" * 26, "c" * 26
BODIES: dict[tuple[str, str], Any] = {
    ("post", "/v1/machines"): {},
    ("put", "/v1/machines/by-key/{key}"): {},
    ("patch", "/v1/machines/{machine_id}"): {},
    ("post", "/v1/machines/{machine_id}/executions"): {"command": "id"},
    ("post", "/v1/machines/{machine_id}/executions/stream"): {"command": "id"},
    ("post", "/v1/machines/{machine_id}/executions/{execution_id}/signal"): {"signal": 9},
    ("post", "/v1/machines/{machine_id}/terminals"): {},
    ("patch", "/v1/machines/{machine_id}/terminals/{terminal_id}"): {"width": 1, "height": 1},
    ("post", "/v1/machines/{machine_id}/files/mkdir"): {"path": "/x"},
    ("post", "/v1/machines/{machine_id}/files/move"): {"source": "/x", "destination": "/y"},
    ("patch", "/v1/machines/{machine_id}/files"): {"path": "/x"},
    ("put", "/v1/machines/{machine_id}/tools"): {"mode": "off"},
    ("put", "/v1/machines/{machine_id}/egress"): {"mode": "off"},
    ("patch", "/v1/machines/{machine_id}/egress"): {},
    ("post", "/v1/machines/{machine_id}/rollback"): {"snapshot": "s"},
    ("put", "/v1/machines/{machine_id}/secrets/{name}"): {
        "value": "a-value-of-some-length",
        "hosts": ["api.example.org"],
    },
    ("post", "/v1/keys"): {"name": "k"},
    ("post", "/v1/ssh-keys"): {"public_key": "ssh-ed25519 AAAA"},
    ("post", "/v1/machines/{machine_id}/tokens"): {"scope": "machine"},
    ("post", "/v1/machines/{machine_id}/ports"): {"port": 8000},
    ("patch", "/v1/machines/{machine_id}/ports/{port}"): {"visibility": "public"},
    ("post", "/v1/templates/{name}/tags"): {"name": "other"},
    ("post", "/v1/builds"): {"tags": ["x"], "dockerfile": "FROM base"},
    ("post", "/v1/machines/{machine_id}/browser/goto"): {"url": "https://example.org/"},
    ("post", "/v1/machines/{machine_id}/browser/eval"): {"expression": "1"},
    ("post", "/v1/machines/{machine_id}/browser/click"): {"selector": "a"},
    ("post", "/v1/machines/{machine_id}/browser/fill"): {"selector": "a", "text": "x"},
    ("post", "/v1/machines/{machine_id}/computer/move"): {"x": 1, "y": 1},
    ("post", "/v1/machines/{machine_id}/computer/drag"): {"x": 1, "y": 1, "to_x": 2, "to_y": 2},
    ("post", "/v1/machines/{machine_id}/computer/button"): {"down": True},
    ("post", "/v1/machines/{machine_id}/computer/scroll"): {"dy": 1},
    ("post", "/v1/machines/{machine_id}/computer/type"): {"text": "x"},
    ("post", "/v1/machines/{machine_id}/computer/key"): {"keys": "a"},
    ("post", "/v1/machines/{machine_id}/computer/focus"): {"window_id": 1},
    ("put", "/v1/machines/{machine_id}/computer/clipboard"): {"text": "x"},
    ("post", "/v1/machines/{machine_id}/code"): {"code": "1"},
    ("post", "/v1/machines/{machine_id}/code/stream"): {"code": "1"},
    ("post", "/v1/tenants"): {"name": "t"},
    ("patch", "/v1/tenants/{tenant_id}"): {"quotas": {"machines": 1}},
}
# What only an admin may ask for. A route that is new is everybody's until it stands here.
ADMINS = {
    ("get", "/metrics"),
    ("post", "/v1/templates/{name}/build"),
    ("get", "/v1/tenants"),
    ("post", "/v1/tenants"),
    ("get", "/v1/tenants/{tenant_id}"),
    ("patch", "/v1/tenants/{tenant_id}"),
    ("delete", "/v1/tenants/{tenant_id}"),
}
# What a machine token may ask for, of its own machine.
OWN = {("get", "/v1/machines/{machine_id}"), ("get", "/v1/machines/{machine_id}/status/stream")}
# What a runner may change: what happens inside machines.
USES = re.compile(
    r"/v1/machines/\{machine_id\}/((executions|terminals|files|browser|computer|code)(/.*)?|wake)"
)
ENDLESS = ("/stream", "/watch", "/build")


def routes(served: Served) -> list[tuple[str, str]]:
    paths = served.app.openapi()["paths"]
    return [
        (method, path)
        for path, operations in paths.items()
        for method in operations
        if path != "/healthz"
    ]


async def call(
    http: httpx.AsyncClient, method: str, path: str, machine: str = M, end: str = ""
) -> httpx.Response:
    url = (
        path.replace("{machine_id}", machine).replace("{execution_id}", E)
        .replace("{terminal_id}", T).replace("{key_id}", E).replace("{name}", "nope").replace("{snapshot}", "nope")
        .replace("{key}", "some-key").replace("{tenant_id}", "nope").replace("{token_id}", E)
        .replace("{port}", "8000").replace("{build_id}", E).replace("{context}", "default")
        .replace("{approval_id}", E)
    )  # fmt: skip
    params = (
        {"path": "/x"} if "/files" in path and method in ("get", "head", "put", "delete") else {}
    )
    if path.endswith("/diff"):
        params = {"other": E}
    return await http.request(method, url + end, params=params, json=BODIES.get((method, path)))


@case(42)
async def test_no_route_serves_a_stranger(bare: Served) -> None:
    revoked = await bare.add_key(TENANT)
    await bare.keys.revoke(TENANT, (await bare.keys.authenticate(revoked)).key_id)
    soon = datetime.now(UTC) + timedelta(hours=1)
    expired = await bare.add_key(TENANT, expires_at=soon)
    mine = bare.machine()
    tokens = [
        await bare.add_token(mine, Role.MACHINE, expires_at=soon),
        await bare.add_token(mine, Role.PREVIEW, port=80, expires_at=soon),
    ]
    for key in (expired, *tokens):
        await bare.keys.authenticate(key)  # and so remembered
    bare.later(timedelta(hours=1))
    good = bare.key
    for key, headers, code in (
        (None, {}, "AUTH_REQUIRED"),
        (revoked, {}, "AUTH_INVALID"),
        (expired, {}, "AUTH_INVALID"),
        (tokens[0], {}, "AUTH_INVALID"),
        (tokens[1], {}, "AUTH_INVALID"),
        ("nonsense", {}, "AUTH_INVALID"),
        (None, {"authorization": f"Basic {good}"}, "AUTH_INVALID"),
        (None, {"cookie": f"key={good}"}, "AUTH_REQUIRED"),
        (None, {"sec-websocket-protocol": f"roost.key.{good}"}, "AUTH_REQUIRED"),
    ):
        async with bare.client(key) as http:
            http.headers.update(headers)
            for method, path in routes(bare):
                answer = await call(http, method, path)
                assert answer.status_code == 401, (method, path, answer.text)
                if method != "head":
                    assert answer.json()["error_code"] == code, (method, path)
    assert list(bare.machines.machines) == [mine]


async def test_no_socket_serves_a_stranger(bare: Served) -> None:
    """Sockets stand in no OpenAPI document: they are found in the app."""
    mine, theirs = bare.machine(), bare.machine(OTHER)
    keys = [
        (None, mine, 401),
        ("nonsense", mine, 401),
        (await bare.add_token(mine, Role.MACHINE), mine, 403),
        (await bare.add_token(mine, Role.PREVIEW, port=80), mine, 403),
        (await bare.add_key(TENANT, Role.READ_ONLY), mine, 403),
        (bare.key, theirs, 404),
        (bare.key, M, 404),
    ]
    tried = 0
    for path in [r.path for r in bare.app.routes if isinstance(r, WebSocketRoute)]:
        told = []
        for key, machine, status in keys:
            url = path.replace("{machine_id}", machine).replace("{port}", "8000")
            url = f"ws://127.0.0.1:{bare.port}" + re.sub(r"{[a-z_]+}", E, url)
            headers = {"authorization": f"Bearer {key}"} if key else {}
            with pytest.raises(InvalidStatus) as refused:
                async with connect(url, additional_headers=headers):
                    pass
            answer = refused.value.response
            assert answer.status_code == status, (path, key, answer.body)
            if status == 404:
                told.append(re.sub(rb"[0-9a-z]{26}", b"*", answer.body or b""))
        assert told[0] == told[1]
        tried += 1
    assert tried >= 3


@case(42)
@pytest.mark.parametrize(
    "role", [Role.TENANT, Role.RUNNER, Role.READ_ONLY, Role.MACHINE, Role.PREVIEW]
)
async def test_no_route_serves_a_role_it_is_not_for(bare: Served, role: Role) -> None:
    """Every route x every role below admin: 403 where it is not theirs, and nothing else that changes."""
    mine = bare.machine()
    if role in (Role.TENANT, Role.RUNNER, Role.READ_ONLY):
        key = await bare.add_key(TENANT, role)
    else:
        key = await bare.add_token(mine, role, port=80 if role is Role.PREVIEW else None)
    before = dict(bare.machines.machines)
    allowed = 0
    async with bare.client(key) as http:
        for method, path in routes(bare):
            reads = method in ("get", "head")
            may = {
                Role.TENANT: (method, path) not in ADMINS,
                Role.RUNNER: (reads or USES.fullmatch(path)) and (method, path) not in ADMINS,
                Role.READ_ONLY: reads and (method, path) not in ADMINS,
                Role.MACHINE: (method, path) in OWN,
                Role.PREVIEW: False,
            }[role]
            if may and (not reads or path.endswith(ENDLESS)):
                continue
            answer = await call(http, method, path, mine)
            assert (answer.status_code != 403) == bool(may), (method, path, answer.text)
            allowed += bool(may)
            if not may and method != "head":
                assert answer.json()["error_code"] == "FORBIDDEN"
            if may and role is Role.MACHINE:
                assert answer.json()["machine_id"] == mine
    assert bare.machines.machines == before
    assert allowed >= {Role.TENANT: 15, Role.READ_ONLY: 15, Role.MACHINE: 1}.get(role, 0)


@case(44)
@pytest.mark.parametrize("end", ["%0A", "%00", "%0D", "%09", "%7F", "%C2%85", "/%0A"])
async def test_no_path_with_control_characters_is_served(bare: Served, end: str) -> None:
    """The routes' patterns end in "$", which matches before a final line end, too."""
    mine = bare.machine()
    keys = [bare.admin, bare.key, await bare.add_key(TENANT, Role.READ_ONLY)]
    keys += [await bare.add_token(mine, Role.MACHINE)]
    before = dict(bare.machines.machines)
    for key, status in [(None, 401), *((key, 404) for key in keys)]:
        async with bare.client(key) as http:
            for method, path in [*routes(bare), ("get", "/healthz")]:
                answer = await call(http, method, path, mine, end)
                assert answer.status_code == status, (method, path, answer.text)
    assert bare.machines.machines == before
    url = f"ws://127.0.0.1:{bare.port}/v1/machines/{mine}/terminals/{T}/stream{end}"
    for headers, status in (({}, 401), ({"authorization": f"Bearer {bare.key}"}, 404)):
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=headers)
        assert refused.value.response.status_code == status
    told = json.loads(refused.value.response.body)
    assert told["error_code"] == "NOT_FOUND"  # by the gateway: the app was not asked


@case(42)
async def test_what_is_the_admins_asks_for_one_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path the gateway took for everybody's."""
    monkeypatch.setattr(access, "admin", lambda method, path: False)
    async with serving(tmp_path, None) as bare:
        for method, path in sorted(ADMINS):
            answer = await call(bare.http, method, path)
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["error_code"] == "FORBIDDEN"


@case(42)
async def test_a_token_is_of_one_machine(bare: Served) -> None:
    """Another machine, its own tenant's, another's or none at all: the same answer."""
    mine, sibling, theirs = bare.machine(), bare.machine(), bare.machine(OTHER)
    key = await bare.add_token(mine, Role.MACHINE)
    told = []
    async with bare.client(key) as http:
        assert (await http.get(f"/v1/machines/{mine}")).status_code == 200
        assert (await http.head(f"/v1/machines/{mine}")).status_code != 200
        for other in (sibling, theirs, M):
            answer = await http.get(f"/v1/machines/{other}")
            body = answer.json()
            body["details"].pop("request_id")
            told.append((answer.status_code, body))
        for odd in (
            f"/v1/machines/{mine}/",
            f"/v1/machines//{mine}",
            f"/v1/machines/{mine}%2Flogs",
        ):
            assert (await http.get(odd)).status_code == 403, odd
    assert told[0][0] == 403 and told[0] == told[1] == told[2]


async def test_a_key_that_reads_wakes_nothing(served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    directory, file = str(tmp_path), str(tmp_path / "read")
    await served.http.put(f"/v1/machines/{mid}/files", params={"path": file}, content=b"abc")
    key = await served.add_key(TENANT, Role.READ_ONLY)
    paths = [("files", file), ("files/stat", directory), ("files/list", directory)]
    paths += [("files/tar", file), ("files/watch", directory)]
    async with served.client(key) as http:
        for path, name in paths[:4]:
            answer = await http.get(f"/v1/machines/{mid}/{path}", params={"path": name})
            assert answer.status_code == 200, (path, answer.text)
        await served.http.post(f"/v1/machines/{mid}/sleep")
        for path, name in paths:
            answer = await http.get(f"/v1/machines/{mid}/{path}", params={"path": name})
            assert (answer.status_code, answer.json()["error_code"]) == (403, "FORBIDDEN"), path
        assert (
            await http.head(f"/v1/machines/{mid}/files", params={"path": directory})
        ).status_code == 403
        assert (await http.get(f"/v1/machines/{mid}/terminals")).json()["items"] == []
        assert served.machines.machines[mid].phase == "sleeping"
        missing = await http.get(f"/v1/machines/{M}/files", params={"path": directory})
        assert missing.status_code == 404
    # Nor does that stay with the connection or the daemon.
    answer = await served.http.get(f"/v1/machines/{mid}/files/stat", params={"path": directory})
    assert answer.status_code == 200 and served.machines.machines[mid].phase == "running"


async def test_a_key_that_reads_gets_no_socket(served: Served) -> None:
    mid = served.machine()
    made = await served.http.post(f"/v1/machines/{mid}/terminals", json={"command": ["/bin/cat"]})
    url = f"ws://127.0.0.1:{served.port}/v1/machines/{mid}/terminals/{made.json()['terminal_id']}/stream"
    for role, status in ((Role.READ_ONLY, 403), (Role.TENANT, 101)):
        headers = {"authorization": f"Bearer {await served.add_key(TENANT, role)}"}
        try:
            async with connect(url, additional_headers=headers):
                found = 101
        except InvalidStatus as refused:
            found = refused.response.status_code
        assert found == status


async def test_what_is_open_ends_with_its_key(served: Served, tmp_path: Path) -> None:
    """A revoked or expired key ends its streams and sockets; what others have open goes on."""
    mid = served.machine()
    revoked = await served.add_key(TENANT)
    expiring = await served.add_key(TENANT, expires_at=datetime.now(UTC) + timedelta(seconds=6))
    made = await served.http.post(f"/v1/machines/{mid}/terminals", json={"command": ["/bin/cat"]})
    url = f"ws://127.0.0.1:{served.port}/v1/machines/{mid}/terminals/{made.json()['terminal_id']}/stream"

    begun: list[str] = []

    async def socket(key: str) -> int:
        async with connect(url, additional_headers={"authorization": f"Bearer {key}"}) as ws:
            begun.append("socket")
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await ws.recv()
        return closed.value.rcvd.code if closed.value.rcvd else 0

    async def stream(key: str) -> str:
        async with served.client(key) as http:
            params = {"path": str(tmp_path)}
            async with http.stream(
                "GET", f"/v1/machines/{mid}/files/watch", params=params
            ) as answer:
                assert answer.status_code == 200
                begun.append("stream")
                try:
                    async for _ in answer.aiter_raw():
                        pass
                except httpx.RemoteProtocolError:
                    return "cut"
        return "ended"

    over = asyncio.Event()

    async def upload(key: str) -> int:
        async def body() -> Any:
            yield b"begun"
            begun.append("upload")
            await over.wait()

        params = {"path": str(tmp_path / "revoked")}
        async with served.client(key) as http:
            put = await http.put(f"/v1/machines/{mid}/files", params=params, content=body())
        return put.status_code

    work = [asyncio.create_task(f(k)) for k in (revoked, expiring) for f in (socket, stream)]
    put = asyncio.create_task(upload(revoked))
    other = asyncio.create_task(stream(served.key))
    await until(lambda: len(begun) == 6 or any(task.done() for task in work))
    await asyncio.sleep(0.5)  # the upload has no answer before its end
    assert not any(task.done() for task in work[:2])
    await served.keys.revoke(TENANT, (await served.keys.authenticate(revoked)).key_id)
    assert await asyncio.wait_for(asyncio.gather(*work[:2]), 10) == [1011, "cut"]
    over.set()  # its end comes too late
    assert await asyncio.wait_for(put, 10) == 401
    missing = await served.http.get(
        f"/v1/machines/{mid}/files/stat", params={"path": str(tmp_path / "revoked")}
    )
    assert missing.status_code == 404
    assert await asyncio.wait_for(asyncio.gather(*work[2:]), 30) == [1011, "cut"]
    assert not other.done()
    other.cancel()


@case(4)
async def test_what_is_open_at_once_is_bounded(
    bare: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tenant, its tokens with it, and by token; the admin's tenant is not."""
    monkeypatch.setattr(sessions, "OF_TENANT", 4)
    monkeypatch.setattr(sessions, "OF_TOKEN", 2)
    token = await bare.add_token(bare.machine(), Role.MACHINE)
    mine = (await bare.keys.authenticate(token)).machine_id

    async def follow(key: str, path: str, stack: contextlib.AsyncExitStack) -> int:
        http = await stack.enter_async_context(bare.client(key))
        answer = await stack.enter_async_context(http.stream("GET", path))
        if answer.status_code == 429:
            told = json.loads(await answer.aread())
            assert (told["error_code"], told["retryable"]) == ("LIMIT_EXCEEDED", True)
        return answer.status_code

    async def states(*a: Any, **k: Any) -> Any:
        async def never() -> Any:
            await asyncio.Event().wait()
            yield

        return never()

    monkeypatch.setattr(bare.machines, "states", states)
    own = f"/v1/machines/{mine}/status/stream"
    async with contextlib.AsyncExitStack() as stack:
        assert [await follow(token, own, stack) for _ in range(3)] == [200, 200, 429]
        found = [await follow(bare.key, "/v1/audit/stream", stack) for _ in range(3)]
        assert found == [200, 200, 429]
        before = dict(bare.machines.machines)
        assert (await bare.http.post("/v1/machines", json={})).status_code == 429
        with pytest.raises(InvalidStatus) as refused:
            await connect(
                f"ws://127.0.0.1:{bare.port}/v1/machines/{mine}/terminals/{T}/stream",
                additional_headers={"authorization": f"Bearer {bare.key}"},
            )
        assert refused.value.response.status_code == 429
        assert bare.machines.machines == before
        assert await follow(bare.other_key, "/v1/audit/stream", stack) == 200
        found = [await follow(bare.admin, "/v1/audit/stream", stack) for _ in range(6)]
        assert found == [200] * 6
    async with asyncio.timeout(10):
        while (await bare.http.get("/v1/machines")).status_code == 429:
            await asyncio.sleep(0.05)
    await until(lambda: not bare.gateway.sessions._of_tenant)
    async with bare.client(bare.admin) as http:
        assert (await http.get("/v1/audit")).json()["items"] == []  # nor do they fill the log


@case(42, 43)
async def test_anothers_machine_answers_as_a_missing_one(bare: Served) -> None:
    theirs = bare.machine(OTHER)
    before = dict(bare.machines.machines)
    for method, path in routes(bare):
        if "{machine_id}" not in path:
            continue
        foreign = await call(bare.http, method, path, theirs)
        missing = await call(bare.http, method, path, M)
        assert foreign.status_code == missing.status_code == 404, (method, path, foreign.text)
        if method != "head":
            told = []
            for answer in (foreign, missing):
                body = answer.json()
                body["details"].pop("request_id")
                told.append(body)
            assert told[0] == told[1]
            assert told[0]["error_code"] == "MACHINE_NOT_FOUND"
    assert bare.machines.machines == before


async def test_open_paths_need_no_key(bare: Served) -> None:
    async with bare.client(None) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/docs")).status_code == 200
        document = (await http.get("/openapi.json")).json()
        assert "/v1/machines" in document["paths"]
        assert (await http.get("/metrics")).status_code == 401
        assert (await bare.http.get("/metrics")).status_code == 403
        assert (await http.get("/healthz/")).status_code == 401
        assert (await http.get("/../healthz")).status_code in (200, 401)


async def test_what_is_not_there(bare: Served) -> None:
    missing = await bare.http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "NOT_FOUND")
    wrong = await bare.http.put("/v1/machines")
    assert (wrong.status_code, wrong.json()["error_code"]) == (405, "METHOD_NOT_ALLOWED")
    assert "GET" in wrong.headers["allow"] or "POST" in wrong.headers["allow"]
    assert (await bare.http.request("BREW", "/v1/machines")).status_code in (400, 405)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "INVALID_BODY"),
        (b"\xff\xfe", 400, "INVALID_BODY"),
        ('{"vcpu": 1}'.encode("utf-16"), 400, "INVALID_BODY"),
        ('{"vcpu": 1}'.encode("utf-32-be"), 400, "INVALID_BODY"),
        (b"[" * 100_000, 400, "INVALID_BODY"),
        (b'{"vcpu": ' + b"9" * 10_000 + b"}", 400, "INVALID_BODY"),
        (b'{"vcpu": 1e999}', 422, "VALIDATION_FAILED"),
        (b'{"vcpu": NaN}', 422, "VALIDATION_FAILED"),
        (b'{"memory_mib": ' + b"9" * 400 + b"}", 201, None),
        (b'{"name": "\\ud800"}', 422, "VALIDATION_FAILED"),
        (b'{"env": {"A": "\\ud800"}}', 422, "VALIDATION_FAILED"),
        (b'{"labels": {"\\ud800": "x"}}', 422, "VALIDATION_FAILED"),
        (b'{"nonsense": 1}', 422, "VALIDATION_FAILED"),
        (b'{"vcpu": "1"}', 422, "VALIDATION_FAILED"),
        (b'{"autosleep": true}', 422, "VALIDATION_FAILED"),
        (b'{"autosleep": "5 parsecs"}', 422, "VALIDATION_FAILED"),
        (b"[]", 422, "VALIDATION_FAILED"),
        (b"null", 422, "VALIDATION_FAILED"),
        (b"", 422, "VALIDATION_FAILED"),
        (b'{"template": "nope"}', 404, "TEMPLATE_NOT_FOUND"),
        (b'{"env": {"A": "' + b"x" * (4 << 20) + b'"}}', 413, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_bodies(bare: Served, body: bytes, status: int, code: str | None) -> None:
    answer = await bare.http.post(
        "/v1/machines", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text[:300]
    if code is not None:
        wire = answer.json()
        assert wire["error_code"] == code
        assert wire["details"]["request_id"] == answer.headers["x-request-id"]
        assert "Traceback" not in answer.text


async def test_a_body_that_says_it_is_not_utf8_is_refused(bare: Served) -> None:
    for charset, status in (("utf-16", 400), ('"latin-1"', 400), ("UTF-8", 201)):
        kind = {"content-type": f"application/json; charset={charset}"}
        answer = await bare.http.post("/v1/machines", content=b"{}", headers=kind)
        assert answer.status_code == status, charset


async def test_a_chunked_body_is_bounded_too(bare: Served) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * (1 << 20)

    answer = await bare.http.post("/v1/machines", content=endless())
    assert answer.status_code == 413
    assert (await bare.http.get("/healthz")).status_code == 200


async def test_errors_never_show_what_was_sent(bare: Served) -> None:
    secret = "hunter2-hunter2"
    body = {"env": {"PASSWORD": 5, "OTHER": secret}, "key": [secret]}
    answer = await bare.http.post("/v1/machines", json=body)
    assert answer.status_code == 422 and secret not in answer.text


async def test_an_unexpected_failure_is_internal_with_an_id(
    bare: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(bare.machines, "list", explode)
    answer = await bare.http.get("/v1/machines")
    assert answer.status_code == 500
    assert answer.json()["error_code"] == "INTERNAL" and "secret reason" not in answer.text
    assert answer.json()["details"]["request_id"]


async def test_machines_over_http(bare: Served) -> None:
    made = await bare.http.post(
        "/v1/machines", json={"name": "n", "autosleep": "never", "ttl": "2h", "labels": {"a": "b"}}
    )
    assert made.status_code == 201 and made.headers["etag"] == '"1"'
    body = made.json()
    assert (body["autosleep_seconds"], body["ttl_seconds"]) == (None, 7200)
    assert body["created_at"] == "2026-01-02T03:04:05.678Z"
    assert body["isolation"]["claim"] == "isolated workspace"
    url = f"/v1/machines/{body['machine_id']}"
    stale = await bare.http.patch(url, json={"name": None}, headers={"if-match": '"7"'})
    assert stale.status_code == 412
    odd = await bare.http.patch(url, json={"name": None}, headers={"if-match": "x"})
    assert odd.status_code == 412
    fresh = await bare.http.patch(url, json={"name": None}, headers={"if-match": '"1"'})
    assert fresh.status_code == 200 and fresh.json()["name"] is None
    assert fresh.json()["labels"] == {"a": "b"}
    first = await bare.http.put("/v1/machines/by-key/user-1", json={})
    again = await bare.http.put("/v1/machines/by-key/user-1", json={})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["machine_id"] == again.json()["machine_id"]
    for odd in ("files", "executions", "terminals", "snapshots", "tokens"):
        named = await bare.http.put(f"/v1/machines/by-key/{odd}", json={})
        assert (named.status_code, named.json()["key"]) == (201, odd)
    assert (await bare.http.get("/v1/machines", params={"label": "nonsense"})).status_code == 422
    slept = (await bare.http.post(f"{url}/sleep")).json()
    assert slept["phase"] == "sleeping" and slept["memory_kept"] is False


async def test_building_a_template_tells_its_progress(bare: Served) -> None:
    async with bare.client(bare.admin) as http:
        answer = await http.post("/v1/templates/base/build")
        assert answer.text.count("event: progress") == 2 and "event: done" in answer.text
        failed = await http.post("/v1/templates/base/build", params={"force": "true"})
        assert failed.status_code == 200 and "TEMPLATE_BUILD_FAILED" in failed.text
        assert (await http.post("/v1/templates/nope/build")).status_code == 404


# --- idempotency ----------------------------------------------------------------------------------


def keyed(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


async def test_the_same_request_is_done_once(bare: Served) -> None:
    first = await bare.http.post("/v1/machines", json={"name": "x"}, headers=keyed("k1"))
    again = await bare.http.post("/v1/machines", json={"name": "x"}, headers=keyed("k1"))
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["etag"] == first.headers["etag"]
    assert len(bare.machines.machines) == 1
    other = await bare.http.post("/v1/machines", json={"name": "y"}, headers=keyed("k1"))
    assert other.json()["error_code"] == "IDEMPOTENCY_KEY_REUSED"
    async with bare.client(bare.other_key) as theirs:
        fresh = await theirs.post("/v1/machines", json={"name": "x"}, headers=keyed("k1"))
        assert fresh.status_code == 201 and fresh.json() != first.json()


async def test_a_client_error_is_kept_and_a_server_error_is_not(
    bare: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        answer = await bare.http.post("/v1/machines", json={"template": "no"}, headers=keyed("k2"))
        assert answer.status_code == 404
    assert answer.headers["idempotent-replayed"] == "true"

    create = bare.machines.create

    async def explode(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(bare.machines, "create", explode)
    assert (await bare.http.post("/v1/machines", json={}, headers=keyed("k3"))).status_code == 500
    monkeypatch.setattr(bare.machines, "create", create)
    assert (await bare.http.post("/v1/machines", json={}, headers=keyed("k3"))).status_code == 201


async def test_what_nobody_began_is_not_kept(bare: Served) -> None:
    for path, status in (("/v1/nothing-here", 404), ("/v1/host", 405)):
        for _ in range(2):
            answer = await bare.http.post(path, json={}, headers=keyed(f"n{status}"))
            assert answer.status_code == status
            assert "idempotent-replayed" not in answer.headers
    count = sa.select(sa.func.count()).select_from(t)
    assert await bare.store.read(lambda c: c.execute(count).scalar()) == 0


async def test_while_the_first_runs(bare: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = asyncio.Event(), asyncio.Event()
    create = bare.machines.create

    async def slow(*a: Any, **k: Any) -> Any:
        begun.set()
        await go.wait()
        return await create(*a, **k)

    monkeypatch.setattr(bare.machines, "create", slow)
    first = asyncio.create_task(bare.http.post("/v1/machines", json={}, headers=keyed("k4")))
    await asyncio.wait_for(begun.wait(), 30)
    second = await bare.http.post("/v1/machines", json={}, headers=keyed("k4"))
    assert second.json()["error_code"] == "IDEMPOTENCY_IN_PROGRESS" and second.json()["retryable"]
    go.set()
    assert (await first).status_code == 201
    assert (await bare.http.post("/v1/machines", json={}, headers=keyed("k4"))).status_code == 201
    assert len(bare.machines.machines) == 1


async def test_after_a_restart(bare: Served) -> None:
    first = await bare.http.post("/v1/machines", json={}, headers=keyed("k5"))
    await bare.idempotency.claim(TENANT, "half-done", "x")
    again = Idempotency(bare.store)  # what the next daemon does
    assert await again.recover() == 1
    replay = await bare.http.post("/v1/machines", json={}, headers=keyed("k5"))
    assert replay.content == first.content
    half = await bare.http.post("/v1/machines", json={}, headers=keyed("half-done"))
    assert half.status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f", "a\tb"])
async def test_keys_that_are_none(bare: Served, key: str) -> None:
    answer = await bare.http.post("/v1/machines", json={}, headers=keyed(key))
    assert answer.status_code in (400, 422)


async def test_a_command_is_not_run_twice(served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    url = f"/v1/machines/{mid}/executions"
    long = {"command": "head -c 300000 /dev/urandom | od -An -tx1"}
    one = await served.http.post(url, json=long, headers=keyed("e0"))
    two = await served.http.post(url, json=long, headers=keyed("e0"))
    assert two.headers["idempotent-replayed"] == "true"
    assert len(one.content) > 500_000 and one.content == two.content
    assert not [name for name in two.headers if name.startswith("x-roost")]
    body = {"command": "head -c 8 /dev/urandom | od -An -tx1"}
    one = await served.http.post(url, json=body, headers=keyed("e1"))
    two = await served.http.post(url, json=body, headers=keyed("e1"))
    assert one.content == two.content
    stream = [
        (await served.http.post(f"{url}/stream", json=body, headers=keyed("e2"))).text
        for _ in range(2)
    ]
    assert stream[0] != stream[1]  # a stream is not kept, its key is free again
    put = {"params": {"path": str(tmp_path / "idem")}, "headers": keyed("f1")}
    for _ in range(2):
        answer = await served.http.put(f"/v1/machines/{mid}/files", content=b"abc", **put)
        assert answer.status_code == 200
    assert answer.headers["idempotent-replayed"] == "true"
    assert json.loads(answer.content)["size"] == 3
