"""The screen of a machine, and what a person does at it."""

from __future__ import annotations

import builtins
from typing import Any

from roost.client._async._http import AsyncHTTP
from roost.client._results import Window
from roost.client._wire import given


class AsyncComputer:
    """``machine.computer``, of a machine from the template ``desktop``. Coordinates are pixels from the top left corner.

    Raises UnsupportedError (it has no screen), InvalidRequestError (outside the screen, no such key), MachineError DISPLAY_DOWN, ConflictError
    DISPLAY_LOCKED.
    """

    def __init__(self, http: AsyncHTTP, machine_id: str) -> None:
        self._http = http
        self._path = f"/v1/machines/{machine_id}/computer"

    async def screenshot(
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
        answer = await self._http.request("GET", f"{self._path}/screenshot", params=params)
        return answer.content

    async def size(self) -> tuple[int, int]:
        """(width, height)."""
        data = await self._http.call("GET", self._path)
        return data["width"], data["height"]

    async def cursor(self) -> tuple[int, int]:
        """Where the pointer is."""
        data = await self._http.call("GET", self._path)
        return data["x"], data["y"]

    async def move(self, x: float, y: float) -> None:
        await self._do("move", x=x, y=y)

    async def click(
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
        await self._do("click", x=x, y=y, button=button, count=count, modifiers=modifiers)

    async def double_click(
        self, x: float | None = None, y: float | None = None, *, modifiers: str | None = None
    ) -> None:
        await self.click(x, y, count=2, modifiers=modifiers)

    async def drag(
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
        await self._do("drag", x=x, y=y, to_x=to_x, to_y=to_y, button=button, modifiers=modifiers)

    async def down(self, button: str = "left") -> None:
        """Presses a mouse button and keeps it pressed."""
        await self._do("button", button=button, down=True)

    async def up(self, button: str = "left") -> None:
        await self._do("button", button=button, down=False)

    async def scroll(
        self,
        x: float | None = None,
        y: float | None = None,
        *,
        dx: int = 0,
        dy: int = 0,
        modifiers: str | None = None,
    ) -> None:
        """In clicks of the wheel: down and right are positive."""
        await self._do("scroll", x=x, y=y, dx=dx, dy=dy, modifiers=modifiers)

    async def type(self, text: str) -> None:
        """Into what has the focus: any Unicode, at most 10,000 characters; a line end is Return."""
        await self._do("type", text=text)

    async def key(self, keys: str, *, hold: float = 0.0) -> None:
        """A key or a chord, "Return", "ctrl+shift+t", or several in a row, "ctrl+a Delete"; held for ``hold`` seconds."""
        await self._do("key", keys=keys, hold_ms=round(hold * 1000) or None)

    async def windows(self) -> builtins.list[Window]:
        """The topmost last."""
        data = await self._http.call("GET", f"{self._path}/windows")
        return [Window.from_json(item) for item in data["items"]]

    async def focus(self, window: Window | int) -> None:
        """Raises it and gives it the keyboard. Raises NotFoundError."""
        await self._do("focus", window_id=window.id if isinstance(window, Window) else window)

    async def clipboard(self) -> str:
        """Its text; "" where it has none."""
        return str((await self._http.call("GET", f"{self._path}/clipboard"))["text"])

    async def set_clipboard(self, text: str) -> None:
        await self._http.call("PUT", f"{self._path}/clipboard", json={"text": text})

    async def _do(self, what: str, **body: Any) -> None:
        await self._http.call("POST", f"{self._path}/{what}", json=given(**body), timeout=300.0)
