"""What is said on the way in and out: JSON that a stranger wrote, and answers as JSON or as lines for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from roost.errors import InvalidRequestError, RoostError


@dataclass(frozen=True, slots=True)
class Asked:
    """``text``: the answer is for people to read."""

    method: str
    path: str
    body: bytes
    text: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """``text`` says what ``data`` does, in lines."""

    status: int
    data: Mapping[str, Any]
    text: str

    def encode(self, text: bool) -> bytes:
        return self.text.encode() if text else json.dumps(self.data, ensure_ascii=False).encode()


def refusal(failure: RoostError) -> Answer:
    return Answer(failure.status, failure.to_wire(), failure.message)


class Body:
    """A flat object; each field is taken once, and none may be left."""

    def __init__(self, raw: bytes) -> None:
        """Raises INVALID_BODY."""
        try:
            data = json.loads(raw or b"{}")
        except (ValueError, RecursionError) as failure:
            raise InvalidRequestError("The body is not JSON.", code="INVALID_BODY") from failure
        if not isinstance(data, dict):
            raise InvalidRequestError("The body is no JSON object.", code="INVALID_BODY")
        self._data = data

    def text(self, name: str) -> str | None:
        value = self._data.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > 128 or not value.isprintable():
            raise _bad(name, "is text of at most 128 characters")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self._data.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _bad(name, "is a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self._data.pop(name, False)
        if not isinstance(value, bool):
            raise _bad(name, "is true or false")
        return value

    def end(self) -> None:
        for name in self._data:
            shown = "".join(c for c in name[:40] if c.isprintable())
            raise InvalidRequestError(f"There is no field {shown!r} here.")


def _bad(name: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} {rule}.", details={"field": name})


def lines(pairs: Iterable[tuple[str, object]]) -> str:
    """``name  value``, one a line; what is None is left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:{width}}  {value}" for name, value in shown)


def time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
