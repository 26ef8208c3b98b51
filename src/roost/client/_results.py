"""What browsers, screens and kernels give back: plain frozen records, the same for the async and the sync half."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from roost.errors import RoostError, TimeoutExpired


class CodeFailed(RoostError):
    """Code raised and the caller asked for ``check``. Never sent by the daemon. ``result`` has all of it."""

    def __init__(self, result: CodeResult) -> None:
        said = f"{result.error.name}: {result.error.value}" if result.error else result.status
        super().__init__(f"The code ended with {said[:500]}", code="INTERNAL", retryable=False)
        self.code = "CODE_FAILED"
        self.status = 0
        self.result = result


class CodeTimeout(TimeoutExpired):
    """The code's own time ran out; it was interrupted. ``result`` holds what it printed and showed."""

    def __init__(self, result: CodeResult) -> None:
        kept = "its kernel had to be restarted" if result.restarted else "what it had made is kept"
        text = f"The code did not end within its time and was interrupted; {kept}."
        super().__init__(text, retryable=False)
        self.result = result


@dataclass(frozen=True, slots=True)
class BrowserPage:
    id: str
    url: str
    title: str
    status: int | None  # of its HTTP answer, after a goto

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["page_id"], data["url"], data["title"], data.get("status"))


@dataclass(frozen=True, slots=True)
class Window:
    """Of a screen, in pixels from its top left corner."""

    id: int
    title: str
    x: int
    y: int
    width: int
    height: int
    focused: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["window_id"], *(data[name] for name in cls.__slots__[1:]))


@dataclass(frozen=True, slots=True)
class CodeOutput:
    """Something the code showed, in one form or several. ``main``: the value of its last line."""

    main: bool
    data: Mapping[str, Any]  # by content type; pictures are base64

    @property
    def text(self) -> str | None:
        return self._text("text/plain")

    @property
    def html(self) -> str | None:
        """A table, for one."""
        return self._text("text/html")

    @property
    def markdown(self) -> str | None:
        return self._text("text/markdown")

    @property
    def latex(self) -> str | None:
        return self._text("text/latex")

    @property
    def svg(self) -> str | None:
        return self._text("image/svg+xml")

    @property
    def png(self) -> bytes | None:
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        return self._bytes("image/jpeg")

    @property
    def json(self) -> Any:
        return self.data.get("application/json")

    def _text(self, kind: str) -> str | None:
        value = self.data.get(kind)
        return value if isinstance(value, str) else None

    def _bytes(self, kind: str) -> bytes | None:
        value = self._text(kind)
        return None if value is None else base64.b64decode(value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(bool(data["main"]), dict(data["data"]))


@dataclass(frozen=True, slots=True)
class CodeError:
    name: str
    value: str
    traceback: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["name"], data["value"], data["traceback"])


@dataclass(frozen=True, slots=True)
class CodeResult:
    """One piece of code, run. ``status``: ok, error, expired, interrupted, died. ``restarted``: its kernel is a new one
    and what it knew is gone. ``truncated``: more came than is kept."""

    status: str
    execution_count: int | None
    stdout: str
    stderr: str
    results: tuple[CodeOutput, ...]
    error: CodeError | None
    truncated: bool
    restarted: bool

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def text(self) -> str:
        """The value of the last line, as text; else what was printed."""
        for each in self.results:
            if each.main and each.text is not None:
                return each.text
        return self.stdout

    @property
    def pngs(self) -> list[bytes]:
        """All pictures."""
        return [each.png for each in self.results if each.png is not None]

    def check(self) -> Self:
        """Itself; raises CodeFailed unless it went well."""
        if not self.ok:
            raise CodeFailed(self)
        return self

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            status=data["status"],
            execution_count=data["execution_count"],
            stdout=data["stdout"],
            stderr=data["stderr"],
            results=tuple(CodeOutput.from_json(each) for each in data["results"]),
            error=CodeError.from_json(data["error"]) if data["error"] else None,
            truncated=bool(data["truncated"]),
            restarted=bool(data["restarted"]),
        )


class CodeParts:
    """A result put together from its events; no I/O."""

    LIMIT = 1 << 20  # characters of each stream that are kept

    def __init__(self) -> None:
        self._text = {"stdout": "", "stderr": ""}
        self._results: list[CodeOutput] = []
        self._error: CodeError | None = None
        self._truncated = False
        self.end: Mapping[str, Any] | None = None

    def take(self, name: str, data: Mapping[str, Any]) -> CodeOutput | str | None:
        """What the event says to whoever listens: text of a stream, or something shown."""
        if name in self._text:
            whole = self._text[name] + str(data["text"])
            self._truncated |= len(whole) > self.LIMIT
            self._text[name] = whole[: self.LIMIT]
            return str(data["text"])
        if name == "result":
            self._results.append(CodeOutput.from_json(data))
            return self._results[-1]
        if name == "raised":
            self._error = CodeError.from_json(data)
        elif name == "end":
            self.end = data
        return None

    def result(self) -> CodeResult:
        end = self.end or {"status": "died", "execution_count": None, "restarted": False}
        return CodeResult(
            status=end["status"],
            execution_count=end["execution_count"],
            stdout=self._text["stdout"],
            stderr=self._text["stderr"],
            results=tuple(self._results),
            error=self._error,
            truncated=self._truncated,
            restarted=bool(end["restarted"]),
        )
