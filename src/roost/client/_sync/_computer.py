"""The screen of a machine, and what a person does at it."""

from __future__ import annotations

import builtins
from typing import Any

from roost.client._results import Window
from roost.client._sync._http import HTTP
from roost.client._wire import given


class Computer:
    """``machine.computer``, of a machine from the template ``desktop``. Coordinates are pixels from the top left corner.

    Raises UnsupportedError (it has no screen), InvalidRequestError (outside the screen, no such key), MachineError DISPLAY_DOWN, ConflictError
    DISPLAY_LOCKED.
    """

    def __init__(self, http: HTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{machine_id}/computer"

    def screenshot(
        self,
        *,
        scale: float = 1.0,
        cursor: bool = True,
        region: tuple[int, int, int, int] | None = None,
    ) -> bytes:
        """PNG of the screen, with the pointer on it. ``scale``: 0.05 to 1. ``region``: (left, top, right, bottom)."""
        params = given(
            scale=None if scale == 1.0 else scale,
            cursor=None if cursor else "false",
            region=None if region is None else ",".join(str(int(each)) for each in region),
        )
        answer = self._http.request("GET", f"{self._path}/screenshot", params=params)
        return answer.content

    def size(self) -> tuple[int, int]:
        """(width, height)."""
        data = self._http.call("GET", self._path)
        return data["width"], data["height"]

    def cursor(self) -> tuple[int, int]:
        """Where the pointer is."""
        data = self._http.call("GET", self._path)
        return data["x"], data["y"]

    def move(self, x: float, y: float) -> None:
        self._do("move", x=x, y=y)

    def click(
        self,
        x: float | None = None,
        y: float | None = None,
        *,
        button: str = "left",
        count: int = 1,
        modifiers: str | None = None,
    ) -> None:
        """There, or where the pointer is. ``button``: left, middle, right. ``count``: 2 is a double click.
        ``modifiers``: keys held meanwhile, "ctrl+shift"."""
        self._do("click", x=x, y=y, button=button, count=count, modifiers=modifiers)

    def double_click(
        self, x: float | None = None, y: float | None = None, *, modifiers: str | None = None
    ) -> None:
        self.click(x, y, count=2, modifiers=modifiers)

    def drag(
        self,
        x: float,
        y: float,
        to_x: float,
        to_y: float,
        *,
        button: str = "left",
        modifiers: str | None = None,
    ) -> None:
        """From one place to another with a button held."""
        self._do("drag", x=x, y=y, to_x=to_x, to_y=to_y, button=button, modifiers=modifiers)

    def down(self, button: str = "left") -> None:
        """Presses a mouse button and keeps it pressed."""
        self._do("button", button=button, down=True)

    def up(self, button: str = "left") -> None:
        self._do("button", button=button, down=False)

    def scroll(
        self,
        x: float | None = None,
        y: float | None = None,
        *,
        dx: int = 0,
        dy: int = 0,
        modifiers: str | None = None,
    ) -> None:
        """In clicks of the wheel: down and right are positive."""
        self._do("scroll", x=x, y=y, dx=dx, dy=dy, modifiers=modifiers)

    def type(self, text: str) -> None:
        """Into what has the focus: any Unicode, at most 10,000 characters; a line end is Return."""
        self._do("type", text=text)

    def key(self, keys: str, *, hold: float = 0.0) -> None:
        """A key or a chord, "Return", "ctrl+shift+t", or several in a row, "ctrl+a Delete"; held for ``hold`` seconds."""
        self._do("key", keys=keys, hold_ms=round(hold * 1000) or None)

    def windows(self) -> builtins.list[Window]:
        """The topmost last."""
        data = self._http.call("GET", f"{self._path}/windows")
        return [Window.from_json(item) for item in data["items"]]

    def focus(self, window: Window | int) -> None:
        """Raises it and gives it the keyboard. Raises NotFoundError."""
        self._do("focus", window_id=window.id if isinstance(window, Window) else window)

    def clipboard(self) -> str:
        """Its text; "" where it has none."""
        return str((self._http.call("GET", f"{self._path}/clipboard"))["text"])

    def set_clipboard(self, text: str) -> None:
        self._http.call("PUT", f"{self._path}/clipboard", json={"text": text})

    def _do(self, what: str, **body: Any) -> None:
        self._http.call("POST", f"{self._path}/{what}", json=given(**body), timeout=300.0)
