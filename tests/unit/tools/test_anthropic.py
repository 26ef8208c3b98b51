"""The Messages API's tools: what goes in and what comes back."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost import AsyncMachine, Client, Machine, NotFoundError
from roost.tools._pictures import size_of
from roost.tools.anthropic import AsyncTools, Tools
from tests.unit.api.kit import Served
from tests.unit.tools.screen import Browser, Desktop

TOOLSET = "computer_toolset_20260801"


def use(name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": given}


def act(action: str, **given: Any) -> dict[str, Any]:
    return {**use(action, **given), "toolset_name": "computer"}


def said(result: dict[str, Any]) -> str:
    (block,) = result["content"]
    assert block["type"] == "text"
    return str(block["text"])


def desktop(machine: AsyncMachine, *size: int) -> Desktop:
    machine.computer = made = Desktop(*size)  # type: ignore[assignment]
    return made


async def test_definitions(machine: AsyncMachine) -> None:
    tools = AsyncTools(machine)
    assert await tools.definitions() == [
        {"type": "bash_20250124", "name": "bash"},
        {
            "type": "text_editor_20250728",
            "name": "str_replace_based_edit_tool",
            "max_characters": 30_000,
        },
    ]
    assert tools.betas == []
    desktop(machine, 3136, 1600)
    old = AsyncTools(machine, bash=None, editor=None, computer="computer_20251124")
    (made,) = await old.definitions()
    size = made["display_width_px"], made["display_height_px"]
    assert size == (1501, 766)
    assert made["enable_zoom"] is True
    assert old.betas == ["computer-use-2025-11-24"]
    new = AsyncTools(machine, bash=None, editor="text_editor_20250124", computer=TOOLSET)
    assert await new.definitions() == [
        {"type": "text_editor_20250124", "name": "str_replace_editor"},
        {"type": TOOLSET},
    ]
    for wrong in ({"bash": "bash_1"}, {"editor": "x"}, {"computer": "x"}):
        with pytest.raises(ValueError, match=r"not '"):
            AsyncTools(machine, **wrong)


async def test_bash(machine: AsyncMachine) -> None:
    async with AsyncTools(machine, timeout=5) as tools:
        result = await tools.run(use("bash", command="cd /tmp; echo hi; false"))
        assert result == {
            "type": "tool_result",
            "tool_use_id": "toolu_bash",
            "content": [{"type": "text", "text": "hi\n[exit code 1]"}],
        }
        assert said(await tools.run(use("bash", command="pwd"))) == "/tmp"
        assert said(await tools.run(use("bash", command="true"))) == "(no output)"
        late = await tools.run(use("bash", command="sleep 60"))
        assert late["is_error"]
        assert "interrupted" in said(late)
        assert said(await tools.run(use("bash", restart=True))) == "The shell was restarted."
        assert said(await tools.run(use("bash", command="pwd"))) != "/tmp"
        block = SimpleNamespace(
            type="tool_use", id="toolu_1", name="bash", input={"command": "echo o"}
        )
        assert said(await tools.run(block)) == "o"
        for wrong in ({}, {"command": 3}, {"command": "a\0"}, {"command": "true", "timeout": -1}):
            assert (await tools.run(use("bash", **wrong)))["is_error"]
    assert await machine.terminals.list() == []


async def test_editor(machine: AsyncMachine, tmp_path: Path) -> None:
    tools, path = AsyncTools(machine, editor="text_editor_20250124"), str(tmp_path / "f.py")

    async def edit(command: str, **given: Any) -> dict[str, Any]:
        return await tools.run(use("str_replace_editor", command=command, path=path, **given))

    assert said(await edit("create", file_text="a = 1\nb = 2\n")) == f"Made {path}."
    assert said(await edit("view", view_range=[2, -1])) == "     2\tb = 2"
    assert "     1\ta = 3" in said(await edit("str_replace", old_str="a = 1", new_str="a = 3"))
    assert "     2\tc" in said(await edit("insert", insert_line=1, insert_text="c"))
    assert "     1\td" in said(await edit("insert", insert_line=0, new_str="d"))
    await edit("undo_edit")
    assert (tmp_path / "f.py").read_text() == "a = 3\nc\nb = 2\n"
    for wrong in (
        {"command": "str_replace", "old_str": "none", "new_str": "x"},
        {"command": "view", "view_range": [9, 10]},
        {"command": "view", "view_range": [1]},
        {"command": "insert", "insert_line": 99, "insert_text": "x"},
        {"command": "insert", "insert_text": "x"},
        {"command": "create"},
        {"command": "format"},
    ):
        assert (await edit(**wrong))["is_error"], wrong
    gone = await tools.run(use("str_replace_editor", command="view", path="/no/such"))
    assert gone["is_error"]
    assert "[FILE_NOT_FOUND]" in said(gone)
    new = AsyncTools(machine)
    undo = use("str_replace_based_edit_tool", command="undo_edit", path=path)
    assert "There is no command" in said(await new.run(undo))


async def test_every_action_on_the_computer(machine: AsyncMachine) -> None:
    screen = desktop(machine)
    tools = AsyncTools(machine, computer=TOOLSET)
    for block in (
        act("left_click", coordinate=[10, 20]),
        act("left_click"),
        act("right_click", coordinate=[1, 2], text="ctrl+shift"),
        act("middle_click", coordinate=[0, 0]),
        act("double_click", coordinate=[1279, 799]),
        act("triple_click", coordinate=[5, 5]),
        act("mouse_move", coordinate=[7, 8]),
        act("left_mouse_down"),
        act("left_mouse_up"),
        act("left_click_drag", start_coordinate=[1, 2], coordinate=[3, 4]),
        act("scroll", coordinate=[6, 7], scroll_direction="down", scroll_amount=3),
        act("scroll", scroll_direction="left", scroll_amount=2),
        act("type", text="héllo\n"),
        act("key", text="ctrl+s", repeat=2),
        act("hold_key", text="shift", duration=0.5),
        act("wait", duration=0.01),
    ):
        result = await tools.run(block)
        assert result["toolset_name"] == "computer"
        assert said(result) == "Done.", (block, result)
    assert screen.done == [
        ("click", 10, 20, {"button": "left", "count": 1}),
        ("click", None, None, {"button": "left", "count": 1}),
        ("click", 1, 2, {"button": "right", "count": 1, "modifiers": "ctrl+shift"}),
        ("click", 0, 0, {"button": "middle", "count": 1}),
        ("click", 1279, 799, {"button": "left", "count": 2}),
        ("click", 5, 5, {"button": "left", "count": 3}),
        ("move", 7, 8),
        ("down", "left"),
        ("up", "left"),
        ("drag", 1, 2, 3, 4),
        ("scroll", 6, 7, {"dx": 0, "dy": 3}),
        ("scroll", None, None, {"dx": -2, "dy": 0}),
        ("type", "héllo\n"),
        ("key", "ctrl+s"),
        ("key", "ctrl+s"),
        ("key", "shift", {"hold": 0.5}),
    ]
    assert said(await tools.run(act("cursor_position"))) == "X=100,Y=50"
    assert seen(await tools.run(act("screenshot"))) == (1280, 800)
    assert seen(await tools.run(act("zoom", region=[0, 0, 64, 32]))) == (64, 32)


def seen(result: dict[str, Any]) -> tuple[int, int] | tuple[None, None]:
    (block,) = result["content"]
    assert block["source"]["media_type"] == "image/png"
    return size_of(base64.b64decode(block["source"]["data"]))


async def test_points_are_those_of_the_picture(machine: AsyncMachine) -> None:
    screen = desktop(machine, 2560, 1600)
    tools = AsyncTools(machine, computer="computer_20250124")
    width, height = seen(await tools.run(use("computer", action="screenshot")))
    assert (width, height) == (1356, 848)
    assert width is not None
    assert height is not None
    await tools.run(use("computer", action="left_click", coordinate=[0, 0]))
    await tools.run(use("computer", action="left_click", coordinate=[width // 2, height // 2]))
    await tools.run(use("computer", action="left_click", coordinate=[width - 1, height - 1]))
    points = [each[1:3] for each in screen.done]
    assert points[0] == (0, 0)
    assert abs(points[1][0] - 1280) <= 2
    assert abs(points[1][1] - 800) <= 2
    assert points[2][0] in range(2557, 2560)
    assert points[2][1] in range(1597, 1600)
    for wrong in ([width, 0], [0, height], [-1, 0], [1.5, 2], [1], "ab", [True, False], None):
        result = await tools.run(use("computer", action="mouse_move", coordinate=wrong))
        assert result["is_error"], wrong
    assert len(screen.done) == 3


async def test_after_a_failure_no_later_action_is_done(machine: AsyncMachine) -> None:
    screen = desktop(machine)
    screen.broken = {"move"}
    async with AsyncTools(machine, computer=TOOLSET) as tools:
        content = [
            {"type": "text", "text": "Let me see."},
            act("left_click", coordinate=[1, 1]),
            act("mouse_move", coordinate=[1, 1]),
            use("bash", command="echo still"),
            act("type", text="secret"),
            use("other_tool", x=1),
        ]
        results = await tools.run_all(content)
    assert [each["tool_use_id"] for each in results] == [
        "toolu_left_click",
        "toolu_mouse_move",
        "toolu_bash",
        "toolu_type",
    ]
    assert [each.get("is_error", False) for each in results] == [False, True, False, True]
    assert "[PORT_CLOSED]" in said(results[1])
    assert "before this one failed" in said(results[3])
    assert [each[0] for each in screen.done] == ["click"]


@pytest.mark.parametrize(
    "block",
    [
        act("fly"),
        act("key"),
        act("key", text="a", repeat=1000),
        act("wait", duration=1e9),
        act("scroll", scroll_direction="in", scroll_amount=1),
        act("zoom", region=[9, 9, 9, 9]),
        {**act("screenshot"), "input": "{"},
        {**act("screenshot"), "input": [1]},
        use("no_such_tool"),
    ],
)
async def test_what_makes_no_sense_is_said_so(machine: AsyncMachine, block: dict[str, Any]) -> None:
    desktop(machine)
    result = await AsyncTools(machine, computer=TOOLSET).run(block)
    assert result["is_error"]
    assert said(result)


async def test_pages_of_the_browser(machine: AsyncMachine) -> None:
    machine.browser = browser = Browser("x" * 1200)  # type: ignore[assignment]
    tools = AsyncTools(machine, bash=None, editor=None, browser=True, limit=1000)
    made = await tools.definitions()
    assert [each["name"] for each in made] == [
        *("open_page", "read_page", "look_at_page", "click_in_page", "fill_in_page"),
    ]
    assert all(each["input_schema"]["additionalProperties"] is False for each in made)
    opened = said(await tools.run(use("open_page", url="http://here/")))
    assert opened.startswith("Title (status 200) at http://here/\n\nxxx")
    assert opened.endswith("\n[cut here: 200 characters more]")
    assert seen(await tools.run(use("look_at_page"))) == (80, 60)
    await tools.run(use("fill_in_page", selector="#a", text="b"))
    await tools.run(use("click_in_page", selector="#c"))
    assert browser.done == [("goto", "http://here/"), ("fill", "#a", "b"), ("click", "#c")]
    assert (await tools.run(use("click_in_page", selector="#none")))["is_error"]
    assert (await tools.run(use("open_page")))["is_error"]
    assert not tools.handles(use("bash", command="true"))
    assert not AsyncTools(machine).handles(use("open_page", url="x"))


async def test_what_no_model_can_mend_is_raised(machine: AsyncMachine) -> None:
    machine._data["machine_id"] = "a" * 26
    gone = AsyncMachine(machine._client, machine._data)
    with pytest.raises(NotFoundError):
        await AsyncTools(gone).run(use("bash", command="true"))


async def test_the_sync_half(served: Served, tmp_path: Path) -> None:
    mid = served.machine()

    def work() -> None:
        with (
            Client(served.url, served.key) as client,
            Tools(Machine.get(mid, client=client)) as tools,
        ):
            path = str(tmp_path / "x")
            results = tools.run_all(
                [
                    use("bash", command=f"cd {tmp_path} && echo one > x"),
                    use("bash", command="cat x"),
                    use("str_replace_based_edit_tool", command="view", path=path),
                ]
            )
            assert [said(each) for each in results] == ["(no output)", "one", "     1\tone"]

    await asyncio.to_thread(work)


def test_no_sdk_of_a_provider_is_imported() -> None:
    code = (
        "import sys, roost.tools.anthropic as a, roost.tools.openai as o\n"
        "assert 'httpx' not in sys.modules\n"
        "a.Tools, a.AsyncTools, o.Tools, o.AsyncTools\n"
        "print(sorted({'anthropic', 'openai', 'mcp', 'pydantic'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
