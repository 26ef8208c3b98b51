"""The screen of a machine as models see it: pictures no larger than they take, points in the picture's pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from roost.client._sync._io import sleep
from roost.tools._errors import ToolFailure

if TYPE_CHECKING:
    from roost.client._sync._machine import Machine

# What the Messages API takes without making it smaller itself: points would then be off. The OpenAI models take more.
LONG_EDGE = 1568
PIXELS = 1_150_000
WAIT_S = 60.0
REPEAT = 100
CLICKS = 50
WHEEL = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


class Screen:
    """Points are refused, not moved, where they lie outside. ``long_edge``, ``pixels``: bounds of a picture."""

    def __init__(
        self, machine: Machine, *, long_edge: int = LONG_EDGE, pixels: int = PIXELS
    ) -> None:
        self._computer = machine.computer
        self._long_edge, self._pixels = long_edge, pixels
        self._display: tuple[int, int] | None = None

    def size(self) -> tuple[int, int]:
        """Of a picture."""
        (width, height), scale = self._scaled()
        return max(1, round(width * scale)), max(1, round(height * scale))

    def screenshot(self) -> bytes:
        """PNG."""
        _, scale = self._scaled()
        return self._computer.screenshot(scale=scale)

    def zoom(self, region: object) -> bytes:
        """PNG of a part of the picture, in the display's own pixels."""
        numbers = whole(region, 4, "region")
        left, top = self._at(numbers[:2])
        right, bottom = self._at([numbers[2] - 1, numbers[3] - 1])
        if right < left or bottom < top:
            raise ToolFailure("The region is [left, top, right, bottom], and this one is empty.")
        part = (left, top, right + 1, bottom + 1)
        scale = self._fit(part[2] - part[0], part[3] - part[1])
        return self._computer.screenshot(scale=scale, region=part)

    def cursor(self) -> tuple[int, int]:
        """In the picture's pixels."""
        _, scale = self._scaled()
        x, y = self._computer.cursor()
        return int(x * scale), int(y * scale)

    def move(self, point: object) -> None:
        self._computer.move(*self._at(point))

    def click(
        self, point: object = None, button: str = "left", count: int = 1, held: object = None
    ) -> None:
        """Where the pointer is, without a point."""
        x, y = self._maybe(point)
        self._computer.click(x, y, button=button, count=count, **modifiers(held))

    def press(self, down: bool) -> None:
        """The left button."""
        (self._computer.down("left") if down else self._computer.up("left"))

    def drag(self, start: object, end: object, held: object = None) -> None:
        """Without a start: from where the pointer is."""
        at = self._at(start) if start is not None else self._computer.cursor()
        self._computer.drag(*at, *self._at(end), **modifiers(held))

    def scroll(self, point: object, direction: object, amount: object, held: object = None) -> None:
        """``amount``: clicks of the wheel."""
        if direction not in WHEEL:
            raise ToolFailure(f"scroll_direction is one of {', '.join(WHEEL)}.")
        clicks = number(amount, "scroll_amount", 0, 1000)
        x, y = self._maybe(point)
        dx, dy = WHEEL[str(direction)]
        steps = min(math.ceil(clicks), CLICKS)
        self._computer.scroll(x, y, dx=dx * steps, dy=dy * steps, **modifiers(held))

    def type(self, text: object) -> None:
        self._computer.type(string(text, "text"))

    def key(self, keys: object, repeat: object = None) -> None:
        times = 1 if repeat is None else int(number(repeat, "repeat", 1, REPEAT))
        for _ in range(times):
            self._computer.key(string(keys, "text"))

    def hold(self, keys: object, seconds: object) -> None:
        held = number(seconds, "duration", 0, WAIT_S)
        self._computer.key(string(keys, "text"), hold=held)

    def wait(self, seconds: object) -> None:
        sleep(number(seconds, "duration", 0, WAIT_S))

    def _scaled(self) -> tuple[tuple[int, int], float]:
        if self._display is None:
            width, height = self._computer.size()
            self._display = int(width), int(height)
        return self._display, self._fit(*self._display)

    def _fit(self, width: int, height: int) -> float:
        edge = self._long_edge / max(width, height)
        scale = min(1.0, edge, math.sqrt(self._pixels / (width * height)))
        return math.floor(scale * 10_000) / 10_000  # as fine as the display takes it

    def _maybe(self, point: object) -> tuple[int, int] | tuple[None, None]:
        return (None, None) if point is None else self._at(point)

    def _at(self, point: object) -> tuple[int, int]:
        """In the display's pixels."""
        x, y = whole(point, 2, "coordinate")
        (across, down), scale = self._scaled()
        width, height = self.size()
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
