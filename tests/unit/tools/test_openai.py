"""OpenAI's function tools and computer tool: what goes in and what comes back."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost import AsyncMachine, Client, Machine
from roost.tools._pictures import size_of
from roost.tools.openai import AsyncTools, Tools
from tests.unit.api.kit import Served
from tests.unit.tools.screen import Browser, Desktop


def called(name: str, **given: Any) -> dict[str, Any]:
    """As Responses has it."""
    return {
        "type": "function_call",
        "call_id": f"call_{name}",
        "name": name,
        "arguments": json.dumps(given),
    }


def chatted(name: str, **given: Any) -> dict[str, Any]:
    """As Chat Completions has it."""
    function = {"name": name, "arguments": json.dumps(given)}
    return {"id": f"call_{name}", "type": "function", "function": function}


def computer(*actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "computer_call", "call_id": "call_c", "actions": list(actions), **more}


def desktop(machine: AsyncMachine) -> Desktop:
    machine.computer = made = Desktop()  # type: ignore[assignment]
    return made


async def test_definitions_are_strict(machine: AsyncMachine) -> None:
    desktop(machine)
    tools = AsyncTools(machine, computer="functions")
    made = await tools.definitions()
    assert [each["name"] for each in made] == [
        *("shell", "read_file", "write_file", "edit_file"),
        *("screenshot", "click", "type_text", "press_keys", "scroll"),
    ]
    for each in made:
        assert each["type"] == "function"
        assert each["strict"] is True
        parameters = each["parameters"]
        assert parameters["required"] == list(parameters["properties"])
        assert parameters["additionalProperties"] is False
    chat = await tools.definitions("chat")
    assert chat == [
        {"type": "function", "function": {k: v for k, v in each.items() if k != "type"}}
        for each in made
    ]
    new = AsyncTools(machine, files=False, computer="computer")
    assert await new.definitions() == [{"type": "computer"}]
    old = AsyncTools(machine, files=False, computer="computer_use_preview")
    size = {"display_width": 1280, "display_height": 800}
    assert await old.definitions() == [
        {"type": "computer_use_preview", "environment": "linux", **size}
    ]
    with pytest.raises(ValueError, match="computer is one of"):
        AsyncTools(machine, computer="x")


async def test_files_and_shell(machine: AsyncMachine, tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    async with AsyncTools(machine) as tools:

        async def call(name: str, **given: Any) -> str:
            (item,) = await tools.run(called(name, **given))
            assert item["type"] == "function_call_output"
            assert item["call_id"] == f"call_{name}"
            return str(item["output"])

        assert await call("write_file", path=path, content="a\nb\na\n") == f"Made {path}."
        assert (
            await call("read_file", path=path, first_line=2, last_line=None)
            == "     2\tb\n     3\ta"
        )
        twice = {"path": path, "old_text": "a", "new_text": "c"}
        assert (await call("edit_file", **twice, replace_all=None)).startswith("Error: ")
        assert "2 times" in await call("edit_file", **twice, replace_all=True)
        assert (
            await call("shell", command=f"cd {tmp_path}; cat f", timeout_seconds=None, restart=None)
            == "c\nb\nc"
        )
        assert await call("shell", command="pwd", timeout_seconds=9) == str(tmp_path)
        assert await call("shell", command="", restart=True) == "The shell was restarted."
        assert "[exit code 3]" in await call("shell", command="(exit 3)")
        assert "[FILE_NOT_FOUND]" in await call("read_file", path="/no/such")
        assert (await call("read_file", path=3)).startswith("Error: ")
        assert (await call("fly")).startswith("Error: ")
        (item,) = await tools.run({**called("shell"), "arguments": "{"})
        assert item["output"] == "Error: The arguments are not JSON."


async def test_chat_has_pictures_after_all_answers(machine: AsyncMachine) -> None:
    desktop(machine)
    async with AsyncTools(machine, computer="functions") as tools:
        message = SimpleNamespace(
            tool_calls=[
                chatted("screenshot"),
                SimpleNamespace(
                    id="call_shell",
                    type="function",
                    function=SimpleNamespace(name="shell", arguments='{"command": "echo hi"}'),
                ),
                chatted("not_ours"),
            ]
        )
        made = await tools.run_all(message.tool_calls)
        assert await tools.run_all(None) == []
    assert [each["role"] for each in made] == ["tool", "tool", "user"]
    assert [each.get("tool_call_id") for each in made] == ["call_screenshot", "call_shell", None]
    assert made[1]["content"] == "hi"
    assert seen(made[2]["content"][0]["image_url"]["url"]) == (1280, 800)


def seen(url: str) -> tuple[int, int] | tuple[None, None]:
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return size_of(base64.b64decode(data))


async def test_the_screen_by_functions(machine: AsyncMachine) -> None:
    screen = desktop(machine)
    tools = AsyncTools(machine, computer="functions")
    for call in (
        called("click", x=1, y=2, button="left", count=None),
        called("click", x=3, y=4, button="right", count=2),
        called("type_text", text="é"),
        called("press_keys", keys="ctrl+s"),
        called("scroll", x=5, y=6, direction="up", amount=2),
    ):
        (item,) = await tools.run(call)
        assert item["output"] == "Done."
    assert screen.done == [
        ("click", 1, 2, {"button": "left", "count": 1}),
        ("click", 3, 4, {"button": "right", "count": 2}),
        ("type", "é"),
        ("key", "ctrl+s"),
        ("scroll", 5, 6, {"dx": 0, "dy": -2}),
    ]
    (item,) = await tools.run(called("screenshot"))
    assert seen(item["output"][0]["image_url"]) == (1280, 800)
    (item,) = await tools.run(called("click", x=5000, y=1, button="left"))
    assert "outside the screen" in item["output"]


async def test_pages_of_the_browser(machine: AsyncMachine) -> None:
    machine.browser = browser = Browser("words")  # type: ignore[assignment]
    tools = AsyncTools(machine, files=False, browser=True)
    assert len(await tools.definitions()) == 5
    (item,) = await tools.run(called("open_page", url="http://here/"))
    assert item["output"].endswith("words")
    (item,) = await tools.run(called("look_at_page"))
    assert seen(item["output"][0]["image_url"]) == (80, 60)
    (item,) = await tools.run(called("click_in_page", selector="#none"))
    assert item["output"].startswith("Error: ")
    assert browser.done == [("goto", "http://here/")]


async def test_every_action_of_the_computer_tool(machine: AsyncMachine) -> None:
    screen = desktop(machine)
    tools = AsyncTools(machine, computer="computer")
    (answer,) = await tools.run(
        computer(
            {"type": "screenshot"},
            {"type": "click", "x": 1, "y": 2, "button": "left"},
            {"type": "click", "x": 1, "y": 2, "button": "wheel", "keys": ["CTRL", "SHIFT"]},
            {"type": "click", "x": 1, "y": 2, "button": "back"},
            {"type": "double_click", "x": 3, "y": 4},
            {"type": "move", "x": 5, "y": 6},
            {"type": "drag", "path": [{"x": 1, "y": 1}, {"x": 2, "y": 2}]},
            {"type": "drag", "path": [[1, 1], [2, 2], [3, 3]]},
            {"type": "scroll", "x": 7, "y": 8, "scroll_x": 0, "scroll_y": 250},
            {"type": "scroll", "x": 7, "y": 8, "scroll_x": -10, "scroll_y": 0},
            {"type": "type", "text": "ü"},
            {"type": "keypress", "keys": ["CTRL", "L"]},
            {"type": "keypress", "keys": ["ARROWDOWN"]},
        )
    )
    assert answer["type"] == "computer_call_output"
    assert answer["call_id"] == "call_c"
    assert answer["output"]["type"] == "computer_screenshot"
    assert seen(answer["output"]["image_url"]) == (1280, 800)
    assert "acknowledged_safety_checks" not in answer
    assert screen.done == [
        ("click", 1, 2, {"button": "left", "count": 1}),
        ("click", 1, 2, {"button": "middle", "count": 1, "modifiers": "ctrl+shift"}),
        ("key", "alt+Left"),
        ("click", 3, 4, {"button": "left", "count": 2}),
        ("move", 5, 6),
        ("drag", 1, 1, 2, 2),
        ("move", 1, 1),
        ("down", "left"),
        ("move", 2, 2),
        ("move", 3, 3),
        ("up", "left"),
        ("scroll", 7, 8, {"dx": 0, "dy": 2}),
        ("scroll", 7, 8, {"dx": -1, "dy": 0}),
        ("type", "ü"),
        ("key", "ctrl+l"),
        ("key", "Down"),
    ]


async def test_an_action_that_fails_is_told_beside_the_picture(machine: AsyncMachine) -> None:
    screen = desktop(machine)
    tools = AsyncTools(machine, computer="computer_use_preview")
    old = {
        "type": "computer_call",
        "call_id": "call_c",
        "action": {"type": "click", "x": 9999, "y": 1},
    }
    answer, told = await tools.run(old)
    assert answer["output"]["type"] == "computer_screenshot"
    assert "outside the screen" in told["content"]
    _, told = await tools.run(computer({"type": "fly"}, {"type": "move", "x": 1, "y": 1}))
    assert "no action 'fly'" in told["content"]
    assert screen.done == []


async def test_safety_checks_are_nobodys_to_wave_through(machine: AsyncMachine) -> None:
    screen = desktop(machine)
    checks = [{"id": "s1", "code": "malicious_instructions", "message": "careful"}]
    call = computer({"type": "move", "x": 1, "y": 1}, pending_safety_checks=checks)
    with pytest.raises(PermissionError):
        await AsyncTools(machine, computer="computer").run(call)
    with pytest.raises(PermissionError):
        await AsyncTools(machine, computer="computer", approve=lambda _: False).run(call)
    assert screen.done == []
    asked: list[Any] = []

    def approve(given: Any) -> bool:
        asked.append(given)
        return True

    (answer,) = await AsyncTools(machine, computer="computer", approve=approve).run(call)
    assert asked == [checks]
    assert answer["acknowledged_safety_checks"] == checks
    assert screen.done == [("move", 1, 1)]


async def test_the_sync_half(served: Served) -> None:
    mid = served.machine()

    def work() -> None:
        with (
            Client(served.url, served.key) as client,
            Tools(Machine.get(mid, client=client)) as tools,
        ):
            (item,) = tools.run_all(
                [{"type": "reasoning"}, called("shell", command="echo $((6 * 7))")]
            )
            assert item["output"] == "42"

    await asyncio.to_thread(work)
