"""Commands as PandaStack's clients ask for them, against a real agent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from roost.dialects.pandastack.streams import LINE, Lines
from tests.unit.api.kit import OTHER, Served, events


def box(served: Served) -> str:
    return f"/v1/sandboxes/{served.machine()}"


def socket(served: Served, path: str) -> connect:
    key = f"pds_{served.key.rpartition('_')[2]}"
    url = f"ws://127.0.0.1:{served.port}{path}"
    return connect(url, additional_headers={"authorization": f"Bearer {key}"}, compression=None)


async def test_output_and_exit_code_also_when_it_is_not_zero(
    served: Served, http: httpx.AsyncClient
) -> None:
    at = box(served)
    answer = await http.post(f"{at}/exec", json={"cmd": "echo out; echo err >&2; exit 3"})
    said = answer.json()
    assert answer.status_code == 200
    assert (said["stdout"], said["stderr"], said["exit_code"]) == ("out\n", "err\n", 3)
    assert isinstance(said["duration_ms"], int)
    # Bash, where there is one.
    answer = await http.post(f"{at}/exec", json={"cmd": "a=(1 2); echo ${#a[@]}; kill -9 $$"})
    assert (answer.json()["stdout"], answer.json()["exit_code"]) == ("2\n", 137)


async def test_without_bash_it_is_sh(
    served: Served, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "roost.dialects.pandastack.commands.SHELLS", ("/bin/no-such-bash", "/bin/sh")
    )
    at = box(served)
    answer = await http.post(f"{at}/exec", json={"cmd": "echo $0"})
    assert answer.json()["stdout"] == "/bin/sh\n"
    async with http.stream("POST", f"{at}/exec/stream", json={"cmd": "echo $0"}) as stream:
        heard = [each async for each in events(stream.aiter_lines())]
    assert heard == [("stdout", {"chunk": "/bin/sh\n"}), ("exit", {"exit_code": 0})]


async def test_a_timeout_is_a_500_that_says_so(served: Served, http: httpx.AsyncClient) -> None:
    at = box(served)
    answer = await http.post(f"{at}/exec", json={"cmd": "sleep 60", "timeout_seconds": 0.1})
    assert answer.status_code == 500
    assert answer.json() == {"error": "command timeout after 0.1s"}
    body = {"cmd": "echo a; sleep 60", "timeout_seconds": 0.3}
    async with http.stream("POST", f"{at}/exec/stream", json=body) as stream:
        heard = [each async for each in events(stream.aiter_lines())]
    assert heard == [
        ("stdout", {"chunk": "a\n"}),
        ("error", {"error": "command timeout after 0.3s"}),
    ]


async def test_a_stream_cuts_no_character(served: Served, http: httpx.AsyncClient) -> None:
    cmd = r"printf '\xe2\x82'; sleep 0.2; printf '\xac\xff'; printf x >&2; exit 4"
    async with http.stream("POST", f"{box(served)}/exec/stream", json={"cmd": cmd}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        heard = [each async for each in events(stream.aiter_lines())]
    said = "".join(data["chunk"] for name, data in heard if name == "stdout")
    assert said == "€\ufffd"
    assert ("stderr", {"chunk": "x"}) in heard and heard[-1] == ("exit", {"exit_code": 4})


async def test_what_is_no_command(served: Served, http: httpx.AsyncClient) -> None:
    at = box(served)
    for body in ({}, {"cmd": ""}, {"cmd": 5}, {"cmd": "true", "timeout_seconds": -1}):
        answer = await http.post(f"{at}/exec", json=body)
        assert answer.status_code == 400 and list(answer.json()) == ["error"], answer.text
    gone = await http.post(f"/v1/sandboxes/{'z' * 26}/exec", json={"cmd": "true"})
    assert gone.status_code == 404 and list(gone.json()) == ["error"]
    theirs = await http.post(f"/v1/sandboxes/{served.machine(OTHER)}/exec", json={"cmd": "true"})
    assert theirs.status_code == 404


async def heard(ws: ClientConnection, until: int) -> list[dict[str, Any]]:
    """Until so many commands ended."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while sum("exit" in each or "error" in each for each in found) < until:
            found.append(json.loads(await ws.recv()))
    return found


async def test_many_commands_on_one_socket(served: Served) -> None:
    async with socket(served, f"{box(served)}/exec/ws") as ws:
        await ws.send(json.dumps({"id": "a", "cmd": "echo one; exit 2"}))
        await ws.send(json.dumps({"id": "b", "cmd": "echo two >&2"}))
        found = await heard(ws, 2)
        assert {"id": "a", "stream": "stdout", "data": "one\n"} in found
        assert {"id": "b", "stream": "stderr", "data": "two\n"} in found
        assert {"id": "a", "exit": 2} in found and {"id": "b", "exit": 0} in found

        await ws.send(json.dumps({"id": "c", "cmd": "echo up; sleep 60"}))
        assert json.loads(await ws.recv()) == {"id": "c", "stream": "stdout", "data": "up\n"}
        await ws.send(json.dumps({"id": "c", "cmd": "true"}))
        assert "error" in json.loads(await ws.recv())  # it is taken
        await ws.send(json.dumps({"id": "c", "cancel": True}))
        assert await heard(ws, 1) == [{"id": "c", "exit": 137}]

        await ws.send(json.dumps({"id": "d", "cmd": "sleep 60", "timeout_seconds": 0.1}))
        assert await heard(ws, 1) == [{"id": "d", "error": "command timeout after 0.1s"}]
        await ws.send('{"id": "z", "cancel": true}')  # it ended meanwhile
        for wrong in ("[]", "nonsense", '{"id": "e"}', '{"cmd": "true"}'):
            await ws.send(wrong)
            assert "error" in (await heard(ws, 1))[0]


async def test_what_runs_on_a_socket_ends_with_it(served: Served) -> None:
    mid = served.machine()
    async with socket(served, f"/v1/sandboxes/{mid}/exec/ws") as ws:
        await ws.send(json.dumps({"id": "a", "cmd": "echo up; sleep 60"}))
        await ws.recv()
    async with asyncio.timeout(10):
        while True:
            page = await served.executions.list(served.machines.machines[mid].tenant_id, mid)
            if page.items[0].status == "cancelled":
                break
            await asyncio.sleep(0.05)


async def test_what_is_being_started_ends_with_its_socket(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    mid = served.machine()
    start, asked, left = served.executions.start_stream, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        found = await start(*args)  # it runs, and nobody was told its id yet
        asked.set()
        await left.wait()
        return found

    monkeypatch.setattr(served.executions, "start_stream", slow)
    async with socket(served, f"/v1/sandboxes/{mid}/exec/ws") as ws:
        await ws.send(json.dumps({"id": "a", "cmd": "sleep 60"}))
        await asyncio.wait_for(asked.wait(), 10)
    await asyncio.sleep(0.2)
    left.set()
    async with asyncio.timeout(10):
        while True:
            page = await served.executions.list(served.machines.machines[mid].tenant_id, mid)
            if page.items[0].status == "cancelled":
                break
            await asyncio.sleep(0.05)


def test_a_line_that_never_ends_is_not_kept() -> None:
    lines = Lines()
    assert lines.take("one\ntw") == ["one"]
    assert lines.take("o\n" + "x" * LINE) == ["two", "x" * LINE]
    assert (lines.rest(), lines.take("y"), lines.rest()) == ("", [], "y")


async def test_a_socket_to_nobody(served: Served) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with socket(served, f"/v1/sandboxes/{'z' * 26}/exec/ws"):
            pass
    assert caught.value.response.status_code == 404
    assert list(json.loads(caught.value.response.body)) == ["error"]


async def shell(served: Served, path: str) -> None:
    async with socket(served, path) as ws:
        await ws.send(b"stty size; exit 7\n")
        text, said = b"", ""
        async with asyncio.timeout(10):
            async for message in ws:
                if isinstance(message, bytes):
                    text += message
                else:
                    said = message
        assert b"33 101" in text
        assert json.loads(said) == {"exit": 7}


@pytest.mark.parametrize("way", ["exec/pty", "ssh"])
async def test_a_shell_of_a_size(served: Served, way: str) -> None:
    await shell(served, f"{box(served)}/{way}?rows=33&cols=101&cmd=/bin/sh")


@pytest.mark.parametrize(
    "message",
    [{"resize": {"rows": 40, "cols": 120}}, {"type": "resize", "rows": 40, "cols": 120}],
)
async def test_both_forms_resize(served: Served, message: object) -> None:
    async with socket(served, f"{box(served)}/exec/pty?cmd=/bin/sh") as ws:
        await ws.send(json.dumps(message))
        await ws.send(json.dumps({"resize": {"rows": 0, "cols": 0}}))  # passed over
        await ws.send(b"sleep 0.3; stty size\n")
        text = b""
        async with asyncio.timeout(10):
            while b"40 120" not in text:
                piece = await ws.recv()
                assert isinstance(piece, bytes)
                text += piece


async def test_a_shell_ends_with_its_connection(served: Served) -> None:
    mid = served.machine()
    async with socket(served, f"/v1/sandboxes/{mid}/ssh?cmd=/bin/sh") as ws:
        await ws.send("neither typed nor JSON")
        await ws.send(json.dumps({"stdin": "echo typed as text\n"}))
        await ws.recv()
        tenant = served.machines.machines[mid].tenant_id
        assert len(await served.services.terminals.list(tenant, mid)) >= 1
        mine = {each.id for each in await served.services.terminals.list(tenant, mid)}
    async with asyncio.timeout(10):
        while any(
            each.id in mine and each.alive
            for each in await served.services.terminals.list(tenant, mid)
        ):
            await asyncio.sleep(0.05)
