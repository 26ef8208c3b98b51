from __future__ import annotations

import pytest

from roost.errors import InvalidRequestError
from roost.units import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604_800), ("300", 300), (300, 300), (2.0, 2),
        (" 10s ", 10), (None, None),
    ],
)  # fmt: skip
def test_durations(text: str | float | None, seconds: int | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "bad",
    [
        "", "never", "5x", "-5s", "5 m", "1.5h", 0, -1, 1.5, float("nan"), float("inf"), True, "0s", "11y",
        "99999999999999", "9999999d", "٣s", "5m\n5", [], "s",
    ],
)  # fmt: skip
def test_what_is_no_duration(bad: object) -> None:
    with pytest.raises(InvalidRequestError):
        parse_duration(bad)  # type: ignore[arg-type]


def test_never() -> None:
    assert parse_duration("never", allow_never=True) is None
    with pytest.raises(InvalidRequestError) as caught:
        parse_duration("sometimes", allow_never=True)
    assert "never" in caught.value.message
