"""Mouse, keys and screen: what is refused before the machine is asked, and what its helper's codes mean."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from roost.errors import RoostError
from roost.services.computer import Computer, Window
from tests.unit.services.door import Doors, helpers, saying, serving

OK = b"HTTP/1.1 200 OK\r\n\r\n"


async def told(answer: bytes, call: str, *args: Any, **how: Any) -> Any:
    doors = Doors()
    async with serving(saying(answer)) as doors.port:
        return await getattr(Computer(helpers(doors)), call)("t", "m", *args, **how)


async def code(answer: bytes, call: str, *args: Any, **how: Any) -> RoostError:
    with pytest.raises(RoostError) as caught:
        await told(answer, call, *args, **how)
    return caught.value


@pytest.mark.parametrize(
    ("call", "args", "how", "field"),
    [
        ("move", (-1, 5), {}, "x"),
        ("move", (5, 70_000), {}, "y"),
        ("move", (math.nan, 5), {}, "x"),
        ("move", (5, math.inf), {}, "y"),
        ("click", (5,), {}, "x"),
        ("click", (5, 5), {"button": "fourth"}, "button"),
        ("click", (5, 5), {"count": 4}, "count"),
        ("drag", (1, 1, -5, 1), {}, "to_x"),
        ("scroll", (1, 1), {"dy": 101}, "dy"),
        ("type", ("x" * 10_001,), {}, "text"),
        ("type", ("\x03",), {}, "text"),
        ("key", (" ",), {}, "keys"),
        ("key", ("a",), {"hold_ms": 10_001}, "hold_ms"),
        ("screenshot", (), {"scale": 0.0}, "scale"),
        ("screenshot", (), {"scale": math.nan}, "scale"),
        ("screenshot", (), {"region": (10, 0, 10, 5)}, "region"),
        ("set_clipboard", ("x" * 1_000_001,), {}, "text"),
    ],
)
async def test_what_cannot_be_is_refused_before_the_machine_is_asked(
    call: str, args: tuple[Any, ...], how: dict[str, Any], field: str
) -> None:
    doors = Doors()
    with pytest.raises(RoostError) as caught:
        await getattr(Computer(helpers(doors)), call)("t", "m", *args, **how)
    assert caught.value.code == "VALIDATION_FAILED"
    assert caught.value.details["field"] == field
    assert doors.asked == []


@pytest.mark.parametrize(
    ("said", "expected", "text"),
    [
        ({"error": "outside", "field": "y", "width": 1280, "height": 800}, "VALIDATION_FAILED", "1280x800: from 0 to 799"),
        ({"error": "key", "name": "Retrun"}, "VALIDATION_FAILED", "Retrun"),
        ({"error": "window"}, "NOT_FOUND", "windows"),
        ({"error": "display"}, "DISPLAY_DOWN", "X server"),
        ({"error": "locked"}, "DISPLAY_LOCKED", "lock"),
        ({"error": "busy"}, "DISPLAY_LOCKED", "grabbed"),
        ({"error": "outside", "width": "wide"}, "PORT_BAD_ANSWER", ""),
        ({"error": "<script>"}, "PORT_BAD_ANSWER", ""),
        ([], "PORT_BAD_ANSWER", ""),
    ],
)  # fmt: skip
async def test_what_went_wrong_inside_is_said_in_our_words(
    said: Any, expected: str, text: str
) -> None:
    answer = b"HTTP/1.1 422 No\r\n\r\n" + json.dumps(said).encode()
    failure = await code(answer, "click", 5, 5)
    assert failure.code == expected
    assert text in failure.message


async def test_a_picture_is_one() -> None:
    assert await told(OK + b"\x89PNG\r\n\x1a\nrest", "screenshot") == b"\x89PNG\r\n\x1a\nrest"
    assert (await code(OK + b"<svg>", "screenshot")).code == "PORT_BAD_ANSWER"


async def test_windows_are_bounded_and_whole_numbers() -> None:
    one: dict[str, Any] = {
        "id": 1,
        "title": "x" * 5000,
        "x": -5,
        "y": 0,
        "width": 9,
        "height": 9,
        "focused": 1,
    }
    said = OK + json.dumps({"windows": [one, "no window"]}).encode()
    assert await told(said, "windows") == [Window(1, "x" * 1000, -5, 0, 9, 9, False)]
    for wrong in (None, True, 1.5, 2**40, "1"):
        said = OK + json.dumps({"windows": [{**one, "x": wrong}]}).encode()
        assert (await code(said, "windows")).code == "PORT_BAD_ANSWER"
