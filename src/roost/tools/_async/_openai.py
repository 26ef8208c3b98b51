"""Function tools and the computer tool; see ``roost.tools.openai``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from roost.errors import RoostError
from roost.tools._async._browser import AsyncBrowser
from roost.tools._async._editor import AsyncEditor
from roost.tools._async._screen import AsyncScreen
from roost.tools._async._shell import AsyncShell
from roost.tools._blocks import arguments, encoded, fatal, field, integer, seconds, text
from roost.tools._errors import ToolFailure, told
from roost.tools._functions import BROWSER, FILES, SCREEN
from roost.tools._text import OUTPUT_CHARS

if TYPE_CHECKING:
    from roost.client._async._machine import AsyncMachine

COMPUTERS = ("functions", "computer", "computer_use_preview")
# A wheel's click in the pixels that models ask for.
CLICK_PIXELS = 100
PAGES = frozenset(each["name"] for each in BROWSER)
LONGEST_S = 3600.0
PAUSE_S = 2
BUTTONS = {"left": "left", "right": "right", "middle": "middle", "wheel": "middle"}
HISTORY = {"back": "alt+Left", "forward": "alt+Right"}
KEYS = {
    **{f"arrow{side}": side.title() for side in ("up", "down", "left", "right")},
    **{each.lower(): each for each in ("ctrl", "shift", "alt", "super", "space")},
    **{each.lower(): each for each in ("Tab", "Home", "End", "Insert", "Delete", "Escape")},
    **dict.fromkeys(("command", "cmd", "meta", "win"), "super"),
    "option": "alt",
    "control": "ctrl",
    "enter": "Return",
    "return": "Return",
    "esc": "Escape",
    "del": "Delete",
    "pageup": "Page_Up",
    "pagedown": "Page_Down",
    "backspace": "BackSpace",
    " ": "space",
}


class AsyncTools:
    """What a model of OpenAI's may do in ``machine``. As a context manager it ends its shell.

    ``files``: shell and files as functions. ``computer``: None, "functions" (screenshot, click, type_text, press_keys,
    scroll), or the type of the computer tool of Responses: "computer", "computer_use_preview". ``browser``: functions for the
    pages of a machine's browser. ``approve`` is asked about a call's
    pending safety checks, and only True approves; without it such a call raises PermissionError.
    """

    def __init__(
        self,
        machine: AsyncMachine,
        *,
        files: bool = True,
        computer: str | None = None,
        browser: bool = False,
        approve: Callable[[Sequence[Any]], bool] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        timeout: float = 120.0,
        limit: int = OUTPUT_CHARS,
    ) -> None:
        if computer is not None and computer not in COMPUTERS:
            raise ValueError(f"computer is one of {', '.join(COMPUTERS)}, not {computer!r}")
        self._functions = [
            *(FILES if files else ()),
            *(SCREEN if computer == "functions" else ()),
            *(BROWSER if browser else ()),
        ]
        self._names = {each["name"] for each in self._functions}
        self._computer = computer
        self._approve = approve
        self.shell = AsyncShell(machine, user=user, cwd=cwd, timeout=timeout, limit=limit)
        self.editor = AsyncEditor(machine, limit=limit)
        self._machine = machine
        self._limit = limit
        self._screen: AsyncScreen | None = None
        self._browser: AsyncBrowser | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the shell and what it started; the machine goes on."""
        await self.shell.restart()

    @property
    def screen(self) -> AsyncScreen:
        if self._screen is None:
            self._screen = AsyncScreen(self._machine)
        return self._screen

    @property
    def browser(self) -> AsyncBrowser:
        if self._browser is None:
            self._browser = AsyncBrowser(self._machine, limit=self._limit)
        return self._browser

    async def definitions(self, api: str = "responses") -> list[dict[str, Any]]:
        """For ``tools`` of a request to "responses" or to "chat" (which has no computer tool)."""
        if api == "chat":
            return [{"type": "function", "function": each} for each in self._functions]
        made = [{"type": "function", **each} for each in self._functions]
        if self._computer == "computer":
            made.append({"type": "computer"})
        elif self._computer == "computer_use_preview":
            width, height = await self.screen.size()
            size = {"display_width": width, "display_height": height}
            made.append({"type": self._computer, "environment": "linux", **size})
        return made

    def handles(self, call: object) -> bool:
        """Whether it is a call of one of these tools: of Chat Completions' ``tool_calls`` or Responses' ``output``."""
        kind = field(call, "type")
        if kind == "computer_call":
            return self._computer in COMPUTERS[1:]
        if kind == "function":
            return field(field(call, "function"), "name") in self._names
        return kind == "function_call" and field(call, "name") in self._names

    async def run(self, call: object) -> list[dict[str, Any]]:
        """What goes back for a call: messages for Chat Completions (a picture is a message of the user's: tools have
        text alone there), input items for Responses.

        What the model can mend is in their text. Raises RoostError for the rest (no valid key, no daemon, no such
        machine any more), PermissionError for safety checks that nobody approved.
        """
        kind = field(call, "type")
        if kind == "computer_call":
            return await self._computed(call)
        if kind == "function":
            inner = field(call, "function")
            answer = await self._called(field(inner, "name"), field(inner, "arguments"))
            told = {"role": "tool", "tool_call_id": field(call, "id")}
            if isinstance(answer, str):
                return [{**told, "content": answer}]
            picture = {"type": "image_url", "image_url": {"url": _url(answer)}}
            shown = {"role": "user", "content": [picture]}
            return [{**told, "content": "The picture follows."}, shown]
        answer = await self._called(field(call, "name"), field(call, "arguments"))
        output: Any = answer
        if not isinstance(answer, str):
            output = [{"type": "input_image", "image_url": _url(answer)}]
        return [
            {"type": "function_call_output", "call_id": field(call, "call_id"), "output": output}
        ]

    async def run_all(self, calls: Iterable[object] | None) -> list[dict[str, Any]]:
        """As ``run`` for each of these tools' calls among ``message.tool_calls`` or ``response.output``."""
        made: list[dict[str, Any]] = []
        for call in calls or ():
            if self.handles(call):
                made += await self.run(call)
        # Chat Completions wants the answers of all calls before anything else.
        return sorted(made, key=lambda each: each.get("role") == "user")

    async def _called(self, name: object, given: object) -> str | bytes:
        try:
            return await self._function(str(name), arguments(given))
        except ToolFailure as failure:
            return f"Error: {told(failure)}"
        except RoostError as failure:
            if fatal(failure):
                raise
            return f"Error: {told(failure)}"

    async def _function(self, name: str, given: Mapping[str, Any]) -> str | bytes:
        if name not in self._names:
            raise ToolFailure(f"There is no function {name!r} here.")
        if name == "shell":
            if given.get("restart"):
                await self.shell.restart()
                if not given.get("command"):
                    return "The shell was restarted."
            limit = seconds(given, "timeout_seconds", LONGEST_S)
            return (await self.shell.run(text(given, "command"), limit)).text or "(no output)"
        if name == "read_file":
            first, last = integer(given, "first_line"), integer(given, "last_line")
            lines = None if first is None and last is None else (first or 1, last)
            return await self.editor.view(text(given, "path"), lines)
        if name == "write_file":
            return await self.editor.create(text(given, "path"), text(given, "content"))
        if name == "edit_file":
            path, every = text(given, "path"), given.get("replace_all") is True
            old, new = text(given, "old_text"), text(given, "new_text", "")
            shown, count = await self.editor.replace(path, old, new, every=every)
            return (
                f"Changed {path}, {count} times:\n{shown}" if every else f"Changed {path}:\n{shown}"
            )
        if name in PAGES:
            return await self.browser.run(name, given)
        return await self._seen(name, given)

    async def _seen(self, name: str, given: Mapping[str, Any]) -> str | bytes:
        point = [given.get("x"), given.get("y")]
        if name == "screenshot":
            return await self.screen.screenshot()
        if name == "click":
            count = integer(given, "count", 1) or 1
            await self.screen.click(point, text(given, "button", "left"), count)
        elif name == "type_text":
            await self.screen.type(given.get("text"))
        elif name == "press_keys":
            await self.screen.key(given.get("keys"))
        else:
            await self.screen.scroll(point, given.get("direction"), given.get("amount"))
        return "Done."

    # --- the computer tool ------------------------------------------------------------------------

    async def _computed(self, call: object) -> list[dict[str, Any]]:
        checks = list(field(call, "pending_safety_checks") or ())
        if checks and (self._approve is None or self._approve(checks) is not True):
            raise PermissionError(f"{len(checks)} safety checks of this call were not approved")
        actions = field(call, "actions")
        if actions is None:
            actions = [field(call, "action")]
        failed = None
        try:
            for action in actions:
                await self._act(action)
        except ToolFailure as failure:
            failed = told(failure)
        except RoostError as failure:
            if fatal(failure):
                raise
            failed = told(failure)
        picture = {"type": "computer_screenshot", "image_url": _url(await self.screen.screenshot())}
        answer = {"type": "computer_call_output", "call_id": field(call, "call_id")}
        answer["output"] = picture
        if checks:
            answer["acknowledged_safety_checks"] = [
                {name: field(each, name) for name in ("id", "code", "message")} for each in checks
            ]
        if failed is None:
            return [answer]
        said = f"An action failed, and those after it were not done: {failed}"
        return [answer, {"role": "user", "content": said}]

    async def _act(self, action: object) -> None:
        kind, screen = field(action, "type"), self.screen
        point = [field(action, "x"), field(action, "y")]
        held = chord(field(action, "keys")) if kind != "keypress" else None
        if kind == "screenshot":
            pass  # every answer has one
        elif kind == "click" and field(action, "button") in HISTORY:
            await screen.key(HISTORY[field(action, "button")])
        elif kind in ("click", "double_click"):
            button = BUTTONS.get(str(field(action, "button") or "left"))
            if button is None:
                raise ToolFailure(f"There is no button {field(action, 'button')!r}.")
            await screen.click(point, button, 2 if kind == "double_click" else 1, held)
        elif kind == "move":
            await screen.move(point)
        elif kind == "drag":
            await self._drag(field(action, "path"), held)
        elif kind == "scroll":
            for name, ways in (("scroll_y", ("up", "down")), ("scroll_x", ("left", "right"))):
                if by := field(action, name) or 0:
                    clicks = max(1, round(abs(by) / CLICK_PIXELS))
                    await screen.scroll(point, ways[by > 0], clicks, held)
        elif kind == "type":
            await screen.type(field(action, "text"))
        elif kind == "keypress":
            await screen.key(chord(field(action, "keys")))
        elif kind == "wait":
            await screen.wait(PAUSE_S)
        else:
            raise ToolFailure(f"There is no action {kind!r}.")

    async def _drag(self, path: object, held: str | None) -> None:
        if not isinstance(path, Sequence) or isinstance(path, str) or len(path) < 2:
            raise ToolFailure("The path of a drag has two points or more.")
        points = [
            list(each) if isinstance(each, list | tuple) else [field(each, "x"), field(each, "y")]
            for each in path
        ]
        if len(points) == 2:
            await self.screen.drag(points[0], points[1], held)
            return
        await self.screen.move(points[0])
        await self.screen.press(True)
        try:
            for each in points[1:]:
                await self.screen.move(each)
        finally:
            await self.screen.press(False)


def chord(keys: object) -> str | None:
    """Names as the models write them, as one chord: ["CTRL", "L"] is ctrl+l."""
    if not keys:
        return None
    if not isinstance(keys, Sequence) or isinstance(keys, str):
        raise ToolFailure("keys is a list of names.")
    names = (str(each) for each in keys)
    return "+".join(
        KEYS.get(each.lower(), each.lower() if len(each) == 1 else each) for each in names
    )


def _url(picture: bytes) -> str:
    return f"data:image/png;base64,{encoded(picture)}"
