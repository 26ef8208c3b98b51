"""The screen of a machine as models see it: pictures no larger than they take, points in the picture's pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from roost.client._async._io import sleep
from roost.tools._errors import ToolFailure

if TYPE_CHECKING:
    from roost.client._async._machine import AsyncMachine

# What the Messages API takes without making it smaller itself: points would then be off. The OpenAI models take more.
LONG_EDGE = 1568
PIXELS = 1_150_000
WAIT_S = 60.0
REPEAT = 100
CLICKS = 50
WHEEL = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


class AsyncScreen:
    """Points are refused, not moved, where they lie outside. ``long_edge``, ``pixels``: bounds of a picture."""

    def __init__(
        self, machine: AsyncMachine, *, long_edge: int = LONG_EDGE, pixels: int = PIXELS
    ) -> None:
        self._computer = machine.computer
        self._long_edge, self._pixels = long_edge, pixels
        self._display: tuple[int, int] | None = None

    async def size(self) -> tuple[int, int]:
        """Of a picture."""
        (width, height), scale = await self._scaled()
        return max(1, round(width * scale)), max(1, round(height * scale))

    async def screenshot(self) -> bytes:
        """PNG."""
        _, scale = await self._scaled()
        return await self._computer.screenshot(scale=scale)

    async def zoom(self, region: object) -> bytes:
        """PNG of a part of the picture, in the display's own pixels."""
        numbers = whole(region, 4, "region")
        left, top = await self._at(numbers[:2])
        right, bottom = await self._at([numbers[2] - 1, numbers[3] - 1])
        if right < left or bottom < top:
            raise ToolFailure("The region is [left, top, right, bottom], and this one is empty.")
        part = (left, top, right + 1, bottom + 1)
        scale = self._fit(part[2] - part[0], part[3] - part[1])
        return await self._computer.screenshot(scale=scale, region=part)

    async def cursor(self) -> tuple[int, int]:
        """In the picture's pixels."""
        _, scale = await self._scaled()
        x, y = await self._computer.cursor()
        return int(x * scale), int(y * scale)

    async def move(self, point: object) -> None:
        await self._computer.move(*await self._at(point))

    async def click(
        self, point: object = None, button: str = "left", count: int = 1, held: object = None
    ) -> None:
        """Where the pointer is, without a point."""
        x, y = await self._maybe(point)
        await self._computer.click(x, y, button=button, count=count, **modifiers(held))

    async def press(self, down: bool) -> None:
        """The left button."""
        await (self._computer.down("left") if down else self._computer.up("left"))

    async def drag(self, start: object, end: object, held: object = None) -> None:
        """Without a start: from where the pointer is."""
        at = await self._at(start) if start is not None else await self._computer.cursor()
        await self._computer.drag(*at, *await self._at(end), **modifiers(held))

    async def scroll(
        self, point: object, direction: object, amount: object, held: object = None
    ) -> None:
        """``amount``: clicks of the wheel."""
        if direction not in WHEEL:
            raise ToolFailure(f"scroll_direction is one of {', '.join(WHEEL)}.")
        clicks = number(amount, "scroll_amount", 0, 1000)
        x, y = await self._maybe(point)
        dx, dy = WHEEL[str(direction)]
        steps = min(math.ceil(clicks), CLICKS)
        await self._computer.scroll(x, y, dx=dx * steps, dy=dy * steps, **modifiers(held))

    async def type(self, text: object) -> None:
        await self._computer.type(string(text, "text"))

    async def key(self, keys: object, repeat: object = None) -> None:
        times = 1 if repeat is None else int(number(repeat, "repeat", 1, REPEAT))
        for _ in range(times):
            await self._computer.key(string(keys, "text"))

    async def hold(self, keys: object, seconds: object) -> None:
        held = number(seconds, "duration", 0, WAIT_S)
        await self._computer.key(string(keys, "text"), hold=held)

    async def wait(self, seconds: object) -> None:
        await sleep(number(seconds, "duration", 0, WAIT_S))

    async def _scaled(self) -> tuple[tuple[int, int], float]:
        if self._display is None:
            width, height = await self._computer.size()
            self._display = int(width), int(height)
        return self._display, self._fit(*self._display)

    def _fit(self, width: int, height: int) -> float:
        edge = self._long_edge / max(width, height)
        scale = min(1.0, edge, math.sqrt(self._pixels / (width * height)))
        return math.floor(scale * 10_000) / 10_000  # as fine as the display takes it

    async def _maybe(self, point: object) -> tuple[int, int] | tuple[None, None]:
        return (None, None) if point is None else await self._at(point)

    async def _at(self, point: object) -> tuple[int, int]:
        """In the display's pixels."""
        x, y = whole(point, 2, "coordinate")
        (across, down), scale = await self._scaled()
        width, height = await self.size()
        if not (0 <= x < width and 0 <= y < height):
            raise ToolFailure(f"[{x}, {y}] is outside the screen, which is {width} by {height}.")
        return min(across - 1, int((x + 0.5) / scale)), min(down - 1, int((y + 0.5) / scale))


def modifiers(held: object) -> dict[str, Any]:
    return {} if held in (None, "") else {"modifiers": string(held, "text")}


def string(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise ToolFailure(f"{name} is missing.")
    return value


def number(value: object, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ToolFailure(f"{name} is a number from {least:g} to {most:g}.")
    return float(value)


def whole(value: object, count: int, name: str) -> list[int]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or len(value) != count
        or any(isinstance(each, bool) or not isinstance(each, int) for each in value)
    ):
        raise ToolFailure(f"{name} is a list of {count} whole numbers.")
    return list(value)
