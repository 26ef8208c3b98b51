"""``roost mcp`` as hosts of agents run it, spoken to by its own SDK's client: over stdio, and over HTTP."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ImageContent, TextContent

from .conftest import Daemon

pytestmark = pytest.mark.system
RECIPES = Path(__file__).parents[2] / "templates"
COMMAND = [sys.executable, "-m", "roost.cli", "mcp"]


@contextlib.asynccontextmanager
async def stdio(daemon: Daemon) -> AsyncIterator[Client]:
    how = StdioServerParameters(
        command=COMMAND[0], args=COMMAND[1:], env={**daemon.env, "ROOST_API_KEY": daemon.key}
    )
    async with Client(stdio_client(how)) as client:
        yield client


@contextlib.contextmanager
def http(daemon: Daemon, *options: str) -> Iterator[str]:
    """Its address."""
    process = subprocess.Popen(
        [*COMMAND, "--http", "--port", "0", "--json", *options],
        env=daemon.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        yield json.loads("".join(lines))["url"]
        process.terminate()
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()
        process.wait(10)


async def call(client: Client, tool: str, **given: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, given)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return dict(result.structured_content)


async def test_a_machine_over_stdio(daemon: Daemon) -> None:
    """Made, worked in, forked, kept, put to sleep, shown outside and ended, each by a tool."""
    async with stdio(daemon) as client:
        made = await call(client, "create_machine", key="mcp-1", memory_mib=256, ttl="30m")
        mid = made["machine_id"]
        assert made["isolation"].startswith("sandboxed")
        page = {"machine": "mcp-1", "path": "/srv/www/index.html"}
        await call(client, "write_file", **page, content="<h1>hello</h1>\n")
        changed = await call(client, "edit_file", **page, old_text="hello", new_text="good day")
        assert changed["replaced"] == 1
        assert "good day" in (await call(client, "read_file", **page))["content"]
        listed = await call(client, "list_files", machine=mid, path="/srv/www")
        assert [each["path"] for each in listed["entries"]] == ["/srv/www/index.html"]
        server = "python3 -m http.server 8000 --bind 127.0.0.1"
        started = await call(
            client, "exec", machine=mid, command=server, cwd="/srv/www", background=True
        )
        wait = "until curl -s localhost:8000; do sleep 0.2; done; echo err >&2; exit 3"
        done = await call(client, "exec", machine=mid, command=wait, timeout_seconds=30)
        assert (done["exit_code"], done["stderr"]) == (3, "err\n")
        assert "good day" in done["stdout"]
        port = await call(client, "expose_port", machine=mid, port=8000)
        link, here = httpx.URL(port["link"]), httpx.URL(daemon.url)
        asked = f"{daemon.url}{link.raw_path.decode()}"
        opened = httpx.get(
            asked, headers={"Host": f"{link.host}:{here.port}"}, trust_env=False, timeout=30
        )
        assert opened.status_code in (200, 302, 303, 307), opened.text
        (child,) = (await call(client, "fork_machine", machine=mid))["machines"]
        both = "cat /srv/www/index.html; curl -s localhost:8000"
        done = await call(client, "exec", machine=child["machine_id"], command=both)
        assert done["stdout"].startswith("<h1>good day</h1>\n")
        await call(client, "destroy_machine", machine=child["machine_id"])
        stopped = await call(client, "exec_stop", machine=mid, execution_id=started["execution_id"])
        assert stopped["status"] == "cancelled"
        kept = await call(client, "snapshot_machine", machine=mid, name="mcp-kept")
        assert (await call(client, "sleep_machine", machine=mid))["phase"] == "sleeping"
        done = await call(client, "exec", machine=mid, command="cat /srv/www/index.html")
        assert done["stdout"] == "<h1>good day</h1>\n"
        assert (await call(client, "egress", machine=mid))["mode"] == "open"
        names = [each["key"] for each in (await call(client, "list_machines"))["machines"]]
        assert "mcp-1" in names
        again = await call(client, "create_machine", snapshot=kept["snapshot_id"], ttl="30m")
        for name in (again["machine_id"], mid):
            assert (await call(client, "destroy_machine", machine=name))["phase"] == "destroyed"
        gone = await client.call_tool("exec", {"machine": "mcp-1", "command": "true"})
        assert gone.is_error
        assert isinstance(gone.content[0], TextContent)
        assert "[MACHINE_NOT_FOUND]" in gone.content[0].text
    with daemon.http() as admin:
        assert admin.delete("/v1/snapshots/mcp-kept").status_code in (200, 204)


async def test_over_http_each_caller_has_its_own_machines(daemon: Daemon) -> None:
    with daemon.http() as admin:
        admin.post("/v1/tenants", json={"name": "mcp-tenant", "quotas": {}})
        key = admin.post("/v1/keys", json={"name": "k", "role": "tenant", "tenant": "mcp-tenant"})
        theirs = key.json()["key"]
    with http(daemon) as url:
        assert httpx.post(url, json={}, trust_env=False).status_code == 401
        wrong = {"Authorization": "Bearer roost_" + "0" * 64}
        assert httpx.post(url, json={}, headers=wrong, trust_env=False).status_code == 401
        async with connected(url, daemon.key) as mine, connected(url, theirs) as other:
            made = await call(mine, "create_machine", memory_mib=256, ttl="30m")
            mid = made["machine_id"]
            done = await call(mine, "exec", machine=mid, command="id -un")
            assert done["stdout"] == "root\n"
            assert (await call(other, "list_machines"))["machines"] == []
            refused = await other.call_tool("exec", {"machine": mid, "command": "true"})
            assert refused.is_error
            await call(mine, "destroy_machine", machine=mid)
    with http(daemon, "--own-key") as url:
        async with connected(url, None) as anybody:
            await call(anybody, "list_machines")
    with daemon.http() as admin:
        for each in admin.get("/v1/keys", params={"tenant": "mcp-tenant"}).json()["items"]:
            admin.delete(f"/v1/keys/{each['key_id']}")
        assert admin.delete("/v1/tenants/mcp-tenant").status_code in (200, 204)


@contextlib.asynccontextmanager
async def connected(url: str, key: str | None) -> AsyncIterator[Client]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=120, trust_env=False) as transport:
        async with Client(streamable_http_client(url, http_client=transport)) as client:
            yield client


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (RECIPES / "desktop/Dockerfile").exists(), reason="no template desktop")
async def test_a_screen(daemon: Daemon) -> None:
    """A terminal is typed into, and what was typed is done: seen in a file."""
    daemon.build_template("desktop")
    async with stdio(daemon) as client:
        mid = (await call(client, "create_machine", template="desktop", ttl="30m"))["machine_id"]
        await call(client, "exec", machine=mid, command="xterm -T typed-at -e sh", background=True)
        shown = "until xwininfo -name typed-at; do sleep 0.2; done; sleep 1"
        await call(client, "exec", machine=mid, command=shown)
        picture = await client.call_tool("screenshot", {"machine": mid})
        assert isinstance(picture.content[0], ImageContent)
        assert picture.structured_content is not None
        width, height = picture.structured_content["width"], picture.structured_content["height"]
        assert (width, height) == (1280, 800)
        await call(client, "type_text", machine=mid, text="echo 'h\u00e9llo' > /tmp/typed")
        await call(client, "press_keys", machine=mid, keys="Return")
        wait = (
            "for i in $(seq 100); do test -s /tmp/typed && break; sleep 0.2; done; cat /tmp/typed"
        )
        assert (await call(client, "exec", machine=mid, command=wait))["stdout"] == "h\u00e9llo\n"
        await call(client, "click", machine=mid, x=width - 1, y=height - 1, button="right")
        outside = await client.call_tool("click", {"machine": mid, "x": width, "y": 0})
        assert outside.is_error
        await call(client, "destroy_machine", machine=mid)


def test_without_a_daemon_or_a_key_it_says_so(daemon: Daemon) -> None:
    env = {k: v for k, v in daemon.env.items() if k != "ROOST_API_KEY"}
    env |= {"ROOST_DATA_DIR": "/no/such"}
    done = subprocess.run(
        COMMAND, env=env, input="", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "[AUTH_REQUIRED]" in done.stderr
    assert done.stdout == ""
