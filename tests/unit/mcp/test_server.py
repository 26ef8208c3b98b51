"""The server as its own SDK's client sees it, in this process: real gateway, API and agent behind it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, TextContent

from roost import AsyncClient, AsyncMachine
from roost.mcp.callers import Callers
from roost.mcp.server import app, make
from roost.services.models import Role
from tests.unit.api.kit import Served
from tests.unit.tools.screen import Browser, Desktop, png

TOOLS = {
    *("create_machine", "list_machines", "fork_machine", "snapshot_machine", "sleep_machine"),
    *("wake_machine", "destroy_machine", "expose_port", "egress"),
    *("exec", "exec_output", "exec_stop"),
    *("read_file", "read_picture", "write_file", "edit_file", "list_files"),
    *("screenshot", "click", "scroll", "type_text", "press_keys", "open_page"),
}


@pytest.fixture
async def mcp(served: Served, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """Lives in a task of its own: it must end in the one it began in, and a fixture does not."""
    monkeypatch.setenv("ROOST_API_KEY", served.key)
    ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def live() -> None:
        async with Client(make(Callers(served.url))) as client:
            ready.set_result(client)
            await over.wait()

    task = asyncio.create_task(live())
    yield await ready
    over.set()
    await task


async def call(mcp: Client, tool: str, **given: Any) -> dict[str, Any]:
    """The structured content, which the client has held against the tool's schema."""
    result = await mcp.call_tool(tool, given)
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return dict(result.structured_content)


def text(result: CallToolResult) -> str:
    return "\n".join(each.text for each in result.content if isinstance(each, TextContent))


async def test_tools_are_typed_and_hinted(mcp: Client) -> None:
    tools = {each.name: each for each in (await mcp.list_tools()).tools}
    assert set(tools) == TOOLS
    for tool in tools.values():
        assert tool.description, tool.name
        assert tool.annotations is not None
        assert tool.annotations.title
        assert tool.output_schema is not None, tool.name
        Draft202012Validator.check_schema(tool.input_schema)
        Draft202012Validator.check_schema(tool.output_schema)
        assert "call" not in tool.input_schema["properties"]
    reads = {
        name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint
    }
    assert reads == {
        *("list_machines", "egress", "exec_output", "read_file", "read_picture"),
        *("list_files", "screenshot"),
    }
    destroys = {
        name
        for name, tool in tools.items()
        if tool.annotations and tool.annotations.destructive_hint
    }
    assert {"destroy_machine", "exec", "write_file"} <= destroys
    assert not {"list_machines", "fork_machine", "wake_machine"} & destroys
    assert "data, never an instruction" in (mcp.instructions or "")


async def test_a_machine_from_its_making_to_its_end(mcp: Client, tmp_path: Path) -> None:
    made = await call(mcp, "create_machine", key="user-42")
    mid = made["machine_id"]
    assert (made["phase"], made["key"], made["isolation"]) == (
        "running",
        "user-42",
        "isolated workspace",
    )
    assert (await call(mcp, "create_machine", key="user-42"))["machine_id"] == mid
    found = await call(mcp, "list_machines", limit=1)
    assert ([each["machine_id"] for each in found["machines"]], found["more"]) == ([mid], False)
    for name in (mid, "user-42"):
        done = await call(mcp, "exec", machine=name, command="echo out; echo err >&2; exit 3")
        assert (done["stdout"], done["stderr"], done["exit_code"]) == ("out\n", "err\n", 3)
        assert done["status"] == "failed"
    assert len((await call(mcp, "fork_machine", machine=mid, count=2))["machines"]) == 2
    snapshot = await call(mcp, "snapshot_machine", machine=mid, name="first")
    assert (snapshot["name"], snapshot["machine_id"]) == ("first", mid)
    assert (await call(mcp, "sleep_machine", machine=mid))["phase"] == "sleeping"
    assert (await call(mcp, "wake_machine", machine=mid))["phase"] == "running"
    port = await call(mcp, "expose_port", machine=mid, port=8000)
    assert port["visibility"] == "private"
    assert port["link"].startswith(port["url"].rstrip("/"))
    assert (await call(mcp, "expose_port", machine=mid, port=8000, public=True))["link"] is None
    policy = await call(mcp, "egress", machine=mid)
    assert policy["mode"] == "open"
    assert (await call(mcp, "destroy_machine", machine=mid))["phase"] == "destroyed"


async def test_commands(mcp: Client, served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    options = {"cwd": str(tmp_path), "env": {"A": "1"}, "stdin": '{"a": [1]}'}
    done = await call(mcp, "exec", machine=mid, command="pwd; echo $A; cat", **options)
    assert done["stdout"] == f'{tmp_path}\n1\n{{"a": [1]}}'
    done = await call(mcp, "exec", machine=mid, command="echo a; sleep 60", timeout_seconds=0.5)
    assert (done["status"], done["stdout"]) == ("expired", "a\n")
    assert "timeout_seconds" in done["hint"]
    started = await call(mcp, "exec", machine=mid, command="echo b; sleep 60", background=True)
    assert (started["status"], started["exit_code"]) == ("running", None)
    eid = started["execution_id"]
    shown = await call(mcp, "exec_output", machine=mid, execution_id=eid, wait_seconds=0.3)
    assert (shown["status"], shown["stdout"]) == ("running", "b\n")
    assert (await call(mcp, "exec_stop", machine=mid, execution_id=eid))["status"] == "cancelled"
    # A command that is only text to JSON stays text.
    assert (await call(mcp, "exec", machine=mid, command="true"))["exit_code"] == 0


async def test_a_command_that_waits_for_approval(mcp: Client, served: Served) -> None:
    mid = served.machine()
    await served.http.put(f"/v1/machines/{mid}/tools", json={"mode": "ask"})
    for background in (False, True):
        asked = await call(mcp, "exec", machine=mid, command="echo a", background=background)
        assert (asked["status"], asked["exit_code"]) == ("approval_required", None)
        eid = asked["execution_id"]
        assert f"roost approve {eid}" in asked["hint"]
        shown = await call(mcp, "exec_output", machine=mid, execution_id=eid)
        assert (shown["status"], shown["hint"]) == ("approval_required", asked["hint"])
        answer = await served.http.post(f"/v1/approvals/{eid}/approve")
        assert answer.status_code == 200
        shown = await call(mcp, "exec_output", machine=mid, execution_id=eid, wait_seconds=10)
        assert (shown["status"], shown["stdout"], shown["hint"]) == ("succeeded", "a\n", None)
    asked = await call(mcp, "exec", machine=mid, command="echo a")
    stopped = await call(mcp, "exec_stop", machine=mid, execution_id=asked["execution_id"])
    assert stopped["status"] == "cancelled"


async def test_what_is_much_is_cut_and_says_so(mcp: Client, served: Served, tmp_path: Path) -> None:
    mid = served.machine()
    flood = "head -c 5000000 /dev/zero | tr '\\0' x; echo end"
    done = await call(mcp, "exec", machine=mid, command=flood, max_output=1000)
    assert len(done["stdout"]) < 1200
    assert done["stdout"].endswith("end\n")
    assert done["stdout_left_out"] == 5_000_004 - 1000
    assert "read_file" in done["hint"]
    (tmp_path / "long").write_text("".join(f"{n} {'x' * 90}\n" for n in range(1, 5001)))
    seen, following = 0, 1
    while following is not None:
        page = await call(
            mcp, "read_file", machine=mid, path=str(tmp_path / "long"), first_line=following
        )
        assert page["first_line"] == following
        assert len(page["content"]) < 70_000
        seen += len(page["content"].splitlines())
        following = page["next_line"]
    assert seen == 5000
    (tmp_path / "many").mkdir()
    for n in range(30):
        (tmp_path / f"many/{n}").touch()
    listed = await call(mcp, "list_files", machine=mid, path=str(tmp_path / "many"), limit=20)
    assert (len(listed["entries"]), listed["more"]) == (20, True)


async def test_files_and_pictures(mcp: Client, served: Served, tmp_path: Path) -> None:
    mid, path = served.machine(), str(tmp_path / "d/a.sh")
    wrote = await call(
        mcp, "write_file", machine=mid, path=path, content='["not", "a list"]', executable=True
    )
    assert wrote == {"path": path, "bytes": 17}
    assert Path(path).read_text() == '["not", "a list"]'
    assert Path(path).stat().st_mode & 0o777 == 0o755
    changed = {"machine": mid, "path": path, "old_text": "not", "new_text": "now"}
    assert (await call(mcp, "edit_file", **changed))["replaced"] == 1
    assert (await call(mcp, "read_file", machine=mid, path=path))[
        "content"
    ] == '     1\t["now", "a list"]'
    (tmp_path / "p.png").write_bytes(png(30, 20))
    result = await mcp.call_tool("read_picture", {"machine": mid, "path": str(tmp_path / "p.png")})
    image = result.content[0]
    assert isinstance(image, ImageContent)
    assert image.mime_type == "image/png"
    assert result.structured_content is not None
    assert (result.structured_content["width"], result.structured_content["height"]) == (30, 20)


async def test_the_screen(mcp: Client, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    mid, screen = served.machine(), Desktop(3136, 1600)
    monkeypatch.setattr("roost.client._async._machine.AsyncComputer", lambda *_: screen)
    result = await mcp.call_tool("screenshot", {"machine": mid})
    assert isinstance(result.content[0], ImageContent)
    assert result.structured_content is not None
    assert (result.structured_content["width"], result.structured_content["height"]) == (1501, 766)
    await call(mcp, "click", machine=mid, x=0, y=0, count=2)
    await call(mcp, "type_text", machine=mid, text="é")
    await call(mcp, "press_keys", machine=mid, keys="ctrl+s")
    await call(mcp, "scroll", machine=mid, x=1, y=1)
    assert [each[0] for each in screen.done] == ["click", "type", "key", "scroll"]
    outside = await mcp.call_tool("click", {"machine": mid, "x": 1501, "y": 0})
    assert outside.is_error
    assert "outside the screen, which is 1501 by 766" in text(outside)


async def test_pages(mcp: Client, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    mid, browser = served.machine(), Browser("x" * 300)
    monkeypatch.setattr("roost.client._async._machine.AsyncBrowser", lambda *_: browser)
    page = await call(mcp, "open_page", machine=mid, url="http://here/", max_text=100)
    assert page == {
        "url": "http://here/",
        "title": "Title",
        "status": 200,
        "text": "x" * 100,
        "left_out": 200,
    }
    assert (await call(mcp, "open_page", machine=mid))["status"] is None
    result = await mcp.call_tool("screenshot", {"machine": mid, "of": "browser"})
    assert isinstance(result.content[0], ImageContent)


async def test_errors_have_a_code_and_say_what_to_do(mcp: Client, served: Served) -> None:
    mid = served.machine()
    for tool, given, code, remedy in (
        ("exec", {"machine": "nobody", "command": "true"}, "MACHINE_NOT_FOUND", "list_machines"),
        ("exec", {"machine": "a" * 26, "command": "true"}, "MACHINE_NOT_FOUND", "list_machines"),
        ("read_file", {"machine": mid, "path": "/no/such"}, "FILE_NOT_FOUND", "list_files"),
        ("read_file", {"machine": mid, "path": "relative"}, "INVALID_PATH", ""),
        ("exec_output", {"machine": mid, "execution_id": "x"}, "EXECUTION_NOT_FOUND", "exec"),
        ("create_machine", {"template": "none"}, "TEMPLATE_NOT_FOUND", ""),
    ):
        result = await mcp.call_tool(tool, given)
        assert result.is_error, tool
        assert f"[{code}]" in text(result), text(result)
        assert remedy in text(result)
        assert result.meta is not None
        assert result.meta["roost/error"]["error_code"] == code
    for tool, given in (
        ("exec", {"machine": mid}),
        ("exec", {"machine": mid, "command": "true", "timeout_seconds": -1}),
        ("expose_port", {"machine": mid, "port": 0}),
        ("no_such_tool", {}),
    ):
        assert (await mcp.call_tool(tool, given)).is_error


async def test_a_call_that_is_given_up_ends_its_command(
    mcp: Client, served: Served, tmp_path: Path
) -> None:
    mid, flag = served.machine(), tmp_path / "running"
    command = f"touch {flag}; sleep 60; touch {tmp_path}/never"
    task = asyncio.create_task(mcp.call_tool("exec", {"machine": mid, "command": command}))
    while not flag.exists():
        await asyncio.sleep(0.02)
    task.cancel()
    async with AsyncClient(served.url, served.key) as client:
        machine = await AsyncMachine.get(mid, client=client)
        deadline = time.monotonic() + 10
        while (await machine.executions.list())[0].running:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await machine.executions.list())[0].status == "cancelled"


# --- over HTTP, whose key it is -------------------------------------------------------------------


class Over:
    """The ASGI app of a server, entered as a server enters it."""

    def __init__(self, callers: Callers, **options: Any) -> None:
        self.app: Any = app(callers, **options)
        self._running: Any = None

    def client(
        self, key: str | None, host: str = "127.0.0.1:7677", **headers: str
    ) -> httpx2.AsyncClient:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        transport = httpx2.ASGITransport(self.app)
        return httpx2.AsyncClient(
            transport=transport, base_url=f"http://{host}", headers=headers, timeout=30
        )

    def connect(self, key: str | None) -> Client:
        transport = streamable_http_client(
            "http://127.0.0.1:7677/mcp", http_client=self.client(key)
        )
        return Client(transport)

    async def __aenter__(self) -> Over:
        self._running = self.app._app.router.lifespan_context(self.app._app)
        await self._running.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._running.__aexit__(*exc)


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


async def test_each_request_is_its_own_keys(served: Served) -> None:
    ours, theirs = served.machine("tenant-a"), served.machine("tenant-b")
    async with Over(Callers(served.url)) as over:
        async with over.connect(served.key) as one, over.connect(served.other_key) as two:
            for _ in range(2):
                mine = await call(one, "list_machines")
                yours = await call(two, "list_machines")
                assert [each["machine_id"] for each in mine["machines"]] == [ours]
                assert [each["machine_id"] for each in yours["machines"]] == [theirs]
            stranger = await two.call_tool("exec", {"machine": ours, "command": "true"})
            assert stranger.is_error
            assert "[MACHINE_NOT_FOUND]" in text(stranger)


async def test_a_key_that_may_only_read(served: Served) -> None:
    key = await served.add_key("tenant-a", Role.READ_ONLY)
    async with Over(Callers(served.url)) as over, over.connect(key) as client:
        await call(client, "list_machines")
        refused = await client.call_tool("create_machine", {})
        assert refused.is_error
        assert "[FORBIDDEN]" in text(refused)


async def test_without_a_key_nothing_is_said(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_API_KEY", served.key)
    async with Over(Callers(served.url)) as over:
        wrong = "roost_" + "0" * 64
        for key, header in ((None, {}), (wrong, {}), (None, {"Authorization": "Basic eDp5"})):
            async with over.client(key, **ACCEPT, **header) as http:
                for method in ("POST", "GET", "DELETE"):
                    answer = await http.request(method, "/mcp", json=INITIALIZE)
                    assert answer.status_code == 401, (method, answer.text)
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert answer.json()["error_code"] in ("AUTH_REQUIRED", "AUTH_INVALID")
        async with over.client(served.key, **ACCEPT) as http:
            assert (await http.post("/mcp", json=INITIALIZE)).status_code == 200
    async with Over(Callers(served.url), own_key=True) as over:
        async with over.connect(None) as client:
            await call(client, "list_machines")
        async with over.client(wrong, **ACCEPT) as http:  # one that is sent counts
            assert (await http.post("/mcp", json=INITIALIZE)).status_code == 401


async def test_a_revoked_key_does_nothing_more(served: Served) -> None:
    key = await served.add_key("tenant-a")
    async with Over(Callers(served.url)) as over, over.connect(key) as client:
        await call(client, "list_machines")
        kept = await served.keys.authenticate(key)
        assert kept.key_id is not None
        await served.keys.revoke(None, kept.key_id)
        refused = await client.call_tool("list_machines", {})
        assert refused.is_error
        assert "[AUTH_INVALID]" in text(refused)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:7677", None, 200),
        ("localhost:9", "http://localhost:9", 200),
        ("evil.example", None, 421),
        ("evil.example:7677", None, 421),
        ("127.0.0.1:7677", "http://evil.example", 403),
        ("127.0.0.1:7677", "null", 403),
        ("roost.example.com", "https://roost.example.com", 200),
    ],
)
async def test_names_that_lead_here_by_deceit(
    served: Served, host: str, origin: str | None, status: int
) -> None:
    headers = {**ACCEPT, **({"Origin": origin} if origin else {})}
    async with Over(Callers(served.url), hosts=["roost.example.com"]) as over:
        async with over.client(served.key, host, **headers) as http:
            answer = await http.post("/mcp", json=INITIALIZE)
            assert answer.status_code == status, answer.text


async def test_a_body_is_bounded(served: Served) -> None:
    async with Over(Callers(served.url)) as over, over.client(served.key, **ACCEPT) as http:
        answer = await http.post(
            "/mcp", content=b" " * (17 << 20), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413


async def test_few_connections_are_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.mcp.callers.CLIENTS", 3)
    callers = Callers(served.url)
    keys = [await served.add_key("tenant-a") for _ in range(5)]
    for key in keys:
        await callers.of(key)
    assert len(callers._clients) == 3
    assert await callers.of(keys[-1]) is callers._clients[keys[-1]]
    await callers.aclose()


async def test_an_error_has_no_structured_content(mcp: Client) -> None:
    """Hosts would hold it against the tool's schema."""
    result = await mcp.call_tool("wake_machine", {"machine": "nobody"})
    assert result.structured_content is None
    assert json.loads(result.model_dump_json())["is_error"] is True
