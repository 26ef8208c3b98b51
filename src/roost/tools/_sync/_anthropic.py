"""The tools of the Messages API: bash, text editor, computer; see ``roost.tools.anthropic``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from roost.errors import RoostError
from roost.tools._blocks import arguments, encoded, fatal, field, integer, seconds, text
from roost.tools._errors import ToolFailure, told
from roost.tools._functions import BROWSER
from roost.tools._sync._browser import Browser
from roost.tools._sync._editor import Editor
from roost.tools._sync._screen import Screen
from roost.tools._sync._shell import Shell
from roost.tools._text import OUTPUT_CHARS

if TYPE_CHECKING:
    from roost.client._sync._machine import Machine

BASH = "bash_20250124"
EDITOR = "text_editor_20250728"
COMPUTER = "computer_toolset_20260801"
TOOLSET = "computer"
# type -> the name its calls carry.
EDITORS = {
    "text_editor_20250124": "str_replace_editor",
    "text_editor_20250429": "str_replace_based_edit_tool",
    "text_editor_20250728": "str_replace_based_edit_tool",
}
# type -> what the header anthropic-beta must say.
COMPUTERS = {
    "computer_20250124": "computer-use-2025-01-24",
    "computer_20251124": "computer-use-2025-11-24",
    "computer_toolset_20260801": None,
}
CLICKS = {
    "left_click": ("left", 1),
    "right_click": ("right", 1),
    "middle_click": ("middle", 1),
    "double_click": ("left", 2),
    "triple_click": ("left", 3),
}
ACTIONS = frozenset(CLICKS) | {
    *("screenshot", "zoom", "cursor_position", "mouse_move", "left_mouse_down", "left_mouse_up"),
    *("left_click_drag", "scroll", "type", "key", "hold_key", "wait"),
}
SKIPPED = "Not done: an action on the computer before this one failed."
PAGES = frozenset(each["name"] for each in BROWSER)
LONGEST_S = 3600.0


class Tools:
    """What a model of the Messages API may do in ``machine``. As a context manager it ends its shell.

    ``bash``, ``editor``, ``computer``: the type of each, None: without it. ``browser``: functions of ours for the pages of a
    machine's browser. ``user``, ``cwd``, ``timeout`` (s a command
    may take): of the shell. ``limit``: characters of an answer.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        bash: str | None = BASH,
        editor: str | None = EDITOR,
        computer: str | None = None,
        browser: bool = False,
        user: str | None = None,
        cwd: str | None = None,
        timeout: float = 120.0,
        limit: int = OUTPUT_CHARS,
    ) -> None:
        if bash not in (None, BASH):
            raise ValueError(f"bash is {BASH!r} or None, not {bash!r}")
        if editor is not None and editor not in EDITORS:
            raise ValueError(f"editor is one of {', '.join(EDITORS)}, not {editor!r}")
        if computer is not None and computer not in COMPUTERS:
            raise ValueError(f"computer is one of {', '.join(COMPUTERS)}, not {computer!r}")
        self._types = (bash, editor, computer)
        self._browses = browser
        self._limit = limit
        self.shell = Shell(machine, user=user, cwd=cwd, timeout=timeout, limit=limit)
        self.editor = Editor(machine, limit=limit)
        self._machine = machine
        self._screen: Screen | None = None
        self._browser: Browser | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the shell and what it started; the machine goes on."""
        self.shell.restart()

    def definitions(self) -> list[dict[str, Any]]:
        """For ``tools`` of a request."""
        bash, editor, computer = self._types
        made: list[dict[str, Any]] = []
        if bash is not None:
            made.append({"type": bash, "name": "bash"})
        if editor is not None:
            made.append({"type": editor, "name": EDITORS[editor]})
            if editor == EDITOR:
                made[-1]["max_characters"] = self._limit
        if computer == COMPUTER:
            made.append({"type": computer})
        elif computer is not None:
            width, height = self.screen.size()
            size = {"display_width_px": width, "display_height_px": height}
            made.append({"type": computer, "name": TOOLSET, **size})
            if computer == "computer_20251124":
                made[-1]["enable_zoom"] = True
        if self._browses:
            for each in BROWSER:
                schema = {"input_schema": each["parameters"], "strict": True}
                made.append({"name": each["name"], "description": each["description"], **schema})
        return made

    @property
    def betas(self) -> list[str]:
        """What the header ``anthropic-beta`` must name."""
        beta = COMPUTERS.get(self._types[2] or "")
        return [beta] if beta else []

    @property
    def screen(self) -> Screen:
        if self._screen is None:
            self._screen = Screen(self._machine)
        return self._screen

    @property
    def browser(self) -> Browser:
        if self._browser is None:
            self._browser = Browser(self._machine, limit=self._limit)
        return self._browser

    def handles(self, block: object) -> bool:
        """Whether it is a ``tool_use`` of one of these tools."""
        return field(block, "type") == "tool_use" and self._kind(block) is not None

    def run(self, block: object) -> dict[str, Any]:
        """The ``tool_result`` of a ``tool_use``: a dict, or a block of the provider's SDK.

        What the model can mend comes back with ``is_error``. Raises RoostError for the rest: no valid key, no
        daemon, no such machine any more.
        """
        toolset = field(block, "toolset_name")
        answer: dict[str, Any] = {"type": "tool_result", "tool_use_id": field(block, "id")}
        if toolset is not None:
            answer["toolset_name"] = toolset
        try:
            content, failed = self._do(block)
        except ToolFailure as failure:
            content, failed = told(failure), True
        except RoostError as failure:
            if fatal(failure):
                raise
            content, failed = told(failure), True
        answer["content"] = _content(content)
        if failed:
            answer["is_error"] = True
        return answer

    def run_all(self, content: Iterable[object]) -> list[dict[str, Any]]:
        """The results of all ``tool_use`` of these tools in an answer, in order. After an action on the computer
        that failed the later ones are not done, and say so."""
        results: list[dict[str, Any]] = []
        broken = False
        for block in content:
            if not self.handles(block):
                continue
            screen = self._kind(block) == "computer"
            if screen and broken:
                skipped = {"type": "tool_result", "tool_use_id": field(block, "id")}
                if (toolset := field(block, "toolset_name")) is not None:
                    skipped["toolset_name"] = toolset
                results.append({**skipped, "content": _content(SKIPPED), "is_error": True})
                continue
            result = self.run(block)
            broken = broken or (screen and result.get("is_error", False))
            results.append(result)
        return results

    def _kind(self, block: object) -> str | None:
        bash, editor, computer = self._types
        name = field(block, "name")
        if computer == COMPUTER:
            if field(block, "toolset_name") == TOOLSET:
                return "computer"
        elif computer is not None and name == TOOLSET:
            return "computer"
        if bash is not None and name == "bash":
            return "bash"
        if editor is not None and name == EDITORS[editor]:
            return "editor"
        if self._browses and name in PAGES:
            return "browser"
        return None

    def _do(self, block: object) -> tuple[str | bytes, bool]:
        """Text or a picture, and whether it failed."""
        kind, given = self._kind(block), arguments(field(block, "input", {}))
        if kind == "bash":
            return self._bash(given)
        if kind == "editor":
            return self._edit(given), False
        if kind == "computer":
            named = self._types[2] == COMPUTER
            action = field(block, "name") if named else given.get("action")
            return self._act(str(action), given), False
        if kind == "browser":
            return self.browser.run(str(field(block, "name")), given), False
        raise ToolFailure(f"There is no tool {field(block, 'name')!r} here.")

    def _bash(self, given: Mapping[str, Any]) -> tuple[str, bool]:
        if given.get("restart"):
            self.shell.restart()
            return "The shell was restarted.", False
        ran = self.shell.run(text(given, "command"), seconds(given, "timeout", LONGEST_S))
        return ran.text or "(no output)", ran.timed_out

    def _edit(self, given: Mapping[str, Any]) -> str:
        command, path = text(given, "command"), text(given, "path")
        if command == "view":
            return self.editor.view(path, _lines(given.get("view_range")))
        if command == "create":
            return self.editor.create(path, text(given, "file_text"))
        if command == "str_replace":
            old, new = text(given, "old_str"), text(given, "new_str", "")
            shown, _ = self.editor.replace(path, old, new)
            return f"Changed {path}:\n{shown}"
        if command == "insert":
            line = integer(given, "insert_line")
            if line is None:
                raise ToolFailure("insert_line is missing.")
            new = text(given, "insert_text" if "insert_text" in given else "new_str")
            return f"Changed {path}:\n{self.editor.insert(path, line, new)}"
        if command == "undo_edit" and self._types[1] == "text_editor_20250124":
            return self.editor.undo(path)
        raise ToolFailure(f"There is no command {command!r}: view, create, str_replace, insert.")

    def _act(self, action: str, given: Mapping[str, Any]) -> str | bytes:
        screen, point, held = self.screen, given.get("coordinate"), given.get("text")
        if action == "screenshot":
            return screen.screenshot()
        if action == "zoom":
            return screen.zoom(given.get("region"))
        if action == "cursor_position":
            x, y = screen.cursor()
            return f"X={x},Y={y}"
        if action in CLICKS:
            button, count = CLICKS[action]
            screen.click(point, button, count, held)
        elif action == "mouse_move":
            screen.move(point)
        elif action in ("left_mouse_down", "left_mouse_up"):
            screen.press(action == "left_mouse_down")
        elif action == "left_click_drag":
            screen.drag(given.get("start_coordinate"), point, held)
        elif action == "scroll":
            direction, amount = given.get("scroll_direction"), given.get("scroll_amount")
            screen.scroll(point, direction, amount, held)
        elif action == "type":
            screen.type(held)
        elif action == "key":
            screen.key(held, given.get("repeat"))
        elif action == "hold_key":
            screen.hold(held, given.get("duration"))
        elif action == "wait":
            screen.wait(given.get("duration"))
        else:
            raise ToolFailure(f"There is no action {action!r}: {', '.join(sorted(ACTIONS))}.")
        return "Done."


def _content(answer: str | bytes) -> list[dict[str, Any]]:
    if isinstance(answer, str):
        return [{"type": "text", "text": answer or "(nothing)"}]
    source = {"type": "base64", "media_type": "image/png", "data": encoded(answer)}
    return [{"type": "image", "source": source}]


def _lines(given: object) -> tuple[int, int | None] | None:
    if given is None:
        return None
    if (
        not isinstance(given, list | tuple)
        or len(given) != 2
        or any(isinstance(each, bool) or not isinstance(each, int) for each in given)
    ):
        raise ToolFailure("view_range is [first line, last line], the last -1 for the end.")
    first, last = given
    return first, None if last == -1 else last
