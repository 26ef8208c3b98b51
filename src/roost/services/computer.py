"""The screen, mouse, keyboard, windows and clipboard of a machine with a display.

A helper in the machine (``templates/desktop/files/roost-display``) does it; it says what went wrong by a code, and what
that means is said here, for it is in the machine and may say anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.errors import RoostError, TimeoutExpired, error
from roost.services import inner, limits
from roost.services.helpers import Helper, Helpers

HELPER = Helper(
    "display",
    7113,
    "/ready",
    "/usr/local/bin/roost-display",
    "desktop",
    "DISPLAY_DOWN",
    also=(5900, 6080),  # the screen by VNC and in a page: there is a terminal on it
)
TIMEOUT_S = 20.0
PICTURE = 64 * 2**20
SAID = 2 * 2**20
TYPED = 10_000  # characters
CLIPBOARD = 1_000_000  # characters
CHORD = 200  # characters
WHEEL = 100
HOLD_MS = 10_000
WINDOWS = 1000
BUTTONS = ("left", "middle", "right")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Screen:
    width: int
    height: int
    x: int  # of the pointer
    y: int


@dataclass(frozen=True, slots=True)
class Window:
    id: int
    title: str
    x: int
    y: int
    width: int
    height: int
    focused: bool


class Computer:
    """Every call takes the caller's tenant first, wakes the machine, and raises UNSUPPORTED, VALIDATION_FAILED, DISPLAY_DOWN,
    DISPLAY_LOCKED, TIMEOUT. Coordinates are pixels from the top left corner."""

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers

    async def screen(self, tenant: str, machine_id: str) -> Screen:
        said = await self._get(tenant, machine_id, "/screen")
        return Screen(*(_whole(said.get(name)) for name in ("width", "height", "x", "y")))

    async def screenshot(
        self,
        tenant: str,
        machine_id: str,
        *,
        scale: float = 1.0,
        cursor: bool = True,
        region: tuple[int, int, int, int] | None = None,
    ) -> bytes:
        """PNG. ``scale``: from 0.05 to 1, of both sides. ``region``: (left, top, right, bottom), the last two not
        within it."""
        if not 0.05 <= scale <= 1:
            raise limits.bad("scale", "is from 0.05 to 1")
        path = f"/screenshot?scale={scale:.4f}&cursor={int(cursor)}"
        if region is not None:
            left, top, right, bottom = region
            if not (0 <= left < right < 65_536 and 0 <= top < bottom < 65_536):
                raise limits.bad(
                    "region", "is left,top,right,bottom in pixels, right and bottom the larger ones"
                )
            path += f"&region={left},{top},{right},{bottom}"
        answer = await self._ask(tenant, machine_id, "GET", path, None, PICTURE)
        if not answer.body.startswith(_PNG):
            raise inner.bad("It made no picture.")
        return answer.body

    async def move(self, tenant: str, machine_id: str, x: float, y: float) -> None:
        await self._do(tenant, machine_id, "move", {**_at(x, y)})

    async def click(
        self,
        tenant: str,
        machine_id: str,
        x: float | None = None,
        y: float | None = None,
        *,
        button: str = "left",
        count: int = 1,
        modifiers: str = "",
    ) -> None:
        """There, or where the pointer is. ``count``: 2 is a double click, 3 a triple one. ``modifiers``: keys held
        meanwhile, as ctrl+shift."""
        if not 1 <= count <= 3:
            raise limits.bad("count", "is from 1 to 3")
        if (x is None) != (y is None):
            raise limits.bad("x", "comes with y, or neither")
        at = {} if x is None or y is None else _at(x, y)
        how = {"button": _button(button), "count": count, "modifiers": _keys(modifiers)}
        await self._do(tenant, machine_id, "click", {**at, **how})

    async def drag(
        self,
        tenant: str,
        machine_id: str,
        x: float,
        y: float,
        to_x: float,
        to_y: float,
        *,
        button: str = "left",
        modifiers: str = "",
    ) -> None:
        how = {"button": _button(button), "modifiers": _keys(modifiers)}
        await self._do(tenant, machine_id, "drag", {**_at(x, y), **_at(to_x, to_y, "to_"), **how})

    async def press(self, tenant: str, machine_id: str, button: str, down: bool) -> None:
        """A mouse button, down until it is let go."""
        await self._do(tenant, machine_id, "button", {"button": _button(button), "down": down})

    async def scroll(
        self,
        tenant: str,
        machine_id: str,
        x: float | None = None,
        y: float | None = None,
        *,
        dx: int = 0,
        dy: int = 0,
        modifiers: str = "",
    ) -> None:
        """In clicks of the wheel; down and right are positive."""
        if max(abs(dx), abs(dy)) > WHEEL:
            raise limits.bad("dy", f"and dx are from -{WHEEL} to {WHEEL}")
        if (x is None) != (y is None):
            raise limits.bad("x", "comes with y, or neither")
        at = {} if x is None or y is None else _at(x, y)
        how = {"dx": dx, "dy": dy, "modifiers": _keys(modifiers)}
        await self._do(tenant, machine_id, "scroll", {**at, **how})

    async def type(self, tenant: str, machine_id: str, text: str) -> None:
        """Into whatever has the focus, any Unicode; a line end is Return, a tab Tab."""
        if len(text) > TYPED:
            raise limits.bad(
                "text",
                f"is at most {TYPED} characters: send it in parts, or by the clipboard (put it there, then key ctrl+v)",
            )
        if any(ord(c) < 32 and c not in "\n\r\t" for c in text) or "\x7f" in text:
            raise limits.bad("text", "has control characters: send those as keys (ctrl+c)")
        await self._do(tenant, machine_id, "type", {"text": text}, TIMEOUT_S + len(text) / 10)

    async def key(self, tenant: str, machine_id: str, keys: str, *, hold_ms: int = 0) -> None:
        """A key or chord (``ctrl+shift+t``), or several in a row with spaces between. ``hold_ms``: before it is let go."""
        if not keys.strip() or len(keys) > CHORD:
            raise limits.bad("keys", f"is 1 to {CHORD} characters, as ctrl+shift+t or Return")
        if not 0 <= hold_ms <= HOLD_MS:
            raise limits.bad("hold_ms", f"is from 0 to {HOLD_MS}")
        body = {"keys": keys, "hold_ms": hold_ms}
        await self._do(tenant, machine_id, "key", body, TIMEOUT_S + hold_ms / 1000)

    async def windows(self, tenant: str, machine_id: str) -> list[Window]:
        """Those a person sees, the topmost last."""
        said = (await self._get(tenant, machine_id, "/windows")).get("windows")
        if not isinstance(said, list):
            raise inner.bad("It lists no windows.")
        return [_window(each) for each in said[:WINDOWS] if isinstance(each, dict)]

    async def focus(self, tenant: str, machine_id: str, window_id: int) -> None:
        """Raised, and the keyboard its: asked of the window manager, who is waited for, 3 s at most. Raises NOT_FOUND."""
        await self._do(tenant, machine_id, "focus", {"window": window_id})

    async def clipboard(self, tenant: str, machine_id: str) -> str:
        """Its text; "" where it has none."""
        text = (await self._get(tenant, machine_id, "/clipboard")).get("text")
        return text[:CLIPBOARD] if isinstance(text, str) else ""

    async def set_clipboard(self, tenant: str, machine_id: str, text: str) -> None:
        if len(text) > CLIPBOARD:
            raise limits.bad("text", f"is at most {CLIPBOARD} characters")
        await self._do(tenant, machine_id, "clipboard", {"text": text})

    # --- helpers --------------------------------------------------------------------------------

    async def _get(self, tenant: str, machine_id: str, path: str) -> dict[str, Any]:
        said = (await self._ask(tenant, machine_id, "GET", path, None, 8 * SAID)).json()
        if not isinstance(said, dict):
            raise inner.bad("What it says is no JSON object.")
        return said

    async def _do(
        self,
        tenant: str,
        machine_id: str,
        what: str,
        body: Mapping[str, Any],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        await self._ask(tenant, machine_id, "POST", f"/{what}", body, SAID, timeout_s)

    async def _ask(
        self,
        tenant: str,
        machine_id: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        limit: int,
        timeout_s: float = TIMEOUT_S,
    ) -> inner.Answer:
        try:
            answer = await self._helpers.call(
                tenant, machine_id, HELPER, method, path, body, limit=limit, timeout_s=timeout_s
            )
        except TimeoutExpired as failure:
            raise HELPER.down(
                "Its X server hangs, or a program in it has grabbed the server: end that program, or make the machine "
                "sleep (stopped) and wake it."
            ) from failure
        if answer.status != 200:
            said = answer.json()
            raise refused(said if isinstance(said, dict) else {})
        return answer


def refused(said: Mapping[str, Any]) -> RoostError:
    """What the helper's code means."""
    match said.get("error"):
        case "outside":
            width, height = _whole(said.get("width")), _whole(said.get("height"))
            name = said.get("field")
            if name == "region":
                return limits.bad("region", f"is outside the screen, which is {width}x{height}")
            known = name if name in ("x", "y", "to_x", "to_y") else "x"
            size = width if known in ("x", "to_x") else height
            return limits.bad(
                known, f"is outside the screen, which is {width}x{height}: from 0 to {size - 1}"
            )
        case "key":
            name = str(said.get("name"))[:40]
            return limits.bad(
                "keys",
                f"has {name!r}, which is no key: letters, digits, Return, Tab, Escape, BackSpace, Delete, Left, F5 ... and ctrl, "
                "alt, shift, super, joined by +",
            )
        case "window":
            return error("NOT_FOUND", "There is no such window: see windows for those there are.")
        case "display":
            return HELPER.down(
                "Its X server has ended, and with it all programs on the screen: start what the template starts "
                "(wake the machine after a sleep to stopped), or make a new machine."
            )
        case "locked":
            return error(
                "DISPLAY_LOCKED",
                "A program that fills the screen has the keyboard, as a screen lock does: unlock it as a person would, "
                "or end that program (roost exec).",
            )
        case "busy":
            return error(
                "DISPLAY_LOCKED",
                "The display does not answer: a program in the machine has grabbed the server, or another call is slow. "
                "Try again; if it stays so, end that program.",
            )
        case "clipboard":
            return HELPER.down("The program that has the clipboard does not give it.")
        case "too_large":
            return limits.bad(
                "text", "of the clipboard is too long to be read: above 1000000 characters"
            )
    return inner.bad("It failed in a way it has no code for.")


def _at(x: float, y: float, prefix: str = "") -> dict[str, int]:
    made = {}
    for name, value in ((f"{prefix}x", x), (f"{prefix}y", y)):
        if not math.isfinite(value):
            raise limits.bad(name, "is a number of pixels")
        if not 0 <= value < 65_536:
            raise limits.bad(name, "is outside the screen: from 0 to its width or height less 1")
        made[name] = round(value)
    return made


def _button(name: str) -> int:
    if name not in BUTTONS:
        raise limits.bad("button", "is left, middle or right")
    return BUTTONS.index(name) + 1


def _keys(modifiers: str) -> str:
    if len(modifiers) > CHORD:
        raise limits.bad("modifiers", "are keys joined by +, as ctrl+shift")
    return modifiers


def _window(said: Mapping[str, Any]) -> Window:
    title = said.get("title")
    return Window(
        id=_whole(said.get("id")),
        title=title[:1000] if isinstance(title, str) else "",
        x=_whole(said.get("x")),
        y=_whole(said.get("y")),
        width=_whole(said.get("width")),
        height=_whole(said.get("height")),
        focused=said.get("focused") is True,
    )


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**32:
        return value
    raise inner.bad("It gave no number where one was due.")
