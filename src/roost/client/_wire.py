"""What goes over the wire, without any I/O: bodies, durations, server-sent events."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from roost.errors import error

Command = str | Sequence[str]
Duration = str | int | float | timedelta


class Unset:
    """The type of ``UNSET``: an argument that was not given, where None means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {k: v for k, v in values.items() if v is not None}


def duration(value: Duration | None) -> str | int | float | None:
    return f"{value.total_seconds():g}s" if isinstance(value, timedelta) else value


def egress_body(value: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    """As asked for: a mode's name, or {mode, allow, observe}; ``allow`` may be any sequence."""
    if value is None or isinstance(value, str):
        return value
    body = dict(value)
    if "allow" in body and not isinstance(body["allow"], str):
        body["allow"] = list(body["allow"])
    return body


def tools_body(
    value: str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
) -> str | dict[str, Any] | None:
    """As asked for: a mode's name, {mode, allow}, or rules alone."""
    if value is None or isinstance(value, str):
        return value
    body = dict(value) if isinstance(value, Mapping) else {"allow": value}
    if "allow" in body:
        body["allow"] = [dict(each) for each in body["allow"]]
    return body


def listed(value: Sequence[str] | None) -> list[str] | None:
    """One text is a list of one."""
    return [value] if isinstance(value, str) else None if value is None else list(value)


def volumes_body(
    value: Sequence[str | Mapping[str, Any]] | None,
) -> list[dict[str, Any]] | None:
    """ "NAME:/path", "NAME:/path:ro" or what the wire has. Raises VALIDATION_FAILED."""
    return None if value is None else [_volume(each) for each in value]


def _volume(value: str | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, str):
        return dict(value)
    name, _, rest = value.partition(":")
    path, _, mode = rest.partition(":")
    if not name or not path or mode not in ("", "ro", "rw"):
        raise error("VALIDATION_FAILED", f"A volume is NAME:/path or NAME:/path:ro, not {value!r}.")
    return {"name": name, "path": path, "read_only": mode == "ro"}


def execution_body(
    command: Command,
    *,
    cwd: str | None,
    env: Mapping[str, str] | None,
    user: str | None,
    stdin: str | bytes | None,
    timeout: float | None,
    stdin_stream: bool = False,
    keep_awake: bool = True,
) -> dict[str, Any]:
    """A string runs under ``/bin/sh -c`` in the machine, a list is the argument vector itself."""
    if isinstance(command, (bytes, bytearray)):
        raise TypeError("command is text or a list of text, not bytes")
    body = given(
        command=command if isinstance(command, str) else [str(c) for c in command],
        cwd=cwd,
        env=dict(env) if env else None,
        user=user,
        timeout_ms=None if timeout is None else max(1, round(timeout * 1000)),
        stdin_stream=True if stdin_stream else None,
        keep_awake=None if keep_awake else False,
    )
    if isinstance(stdin, str):
        body["stdin"] = stdin
    elif stdin is not None:
        body["stdin_b64"] = base64.b64encode(stdin).decode()
    return body


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; ``data`` is its JSON."""

    name: str
    data: Mapping[str, Any]
    id: str | None


class EventDecoder:
    """Bytes in, events out. An event over ``limit`` bytes is refused: memory stays flat."""

    def __init__(self, limit: int = 8 << 20) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._size = 0
        self._name = ""
        self._id: str | None = None
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        self._rest += chunk
        start = 0
        while (end := self._rest.find(b"\n", start)) >= 0:
            line = bytes(self._rest[start:end]).removesuffix(b"\r")
            start = end + 1
            event = self._line(line)
            if event is not None:
                yield event
        del self._rest[:start]
        if len(self._rest) + self._size > self._limit:
            raise error("INTERNAL", "The daemon sent an event larger than any it may send.")

    def _line(self, line: bytes) -> Event | None:
        if not line:
            return self._flush()
        if line.startswith(b":"):
            return None
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value)
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None

    def _flush(self) -> Event | None:
        name, data = self._name or "message", self._data
        self._name, self._data, self._size = "", [], 0
        if not data:
            return None
        try:
            parsed = json.loads(b"\n".join(data))
        except ValueError as exc:
            raise error("INTERNAL", "The daemon sent an event that is not JSON.") from exc
        return Event(name, parsed if isinstance(parsed, dict) else {"value": parsed}, self._id)


def segment(value: str) -> str:
    """One segment of a URL's path, whatever the caller put in it."""
    if value in ("", ".", ".."):
        raise error("VALIDATION_FAILED", f"Not an id, key or name: {value!r}.")
    return quote(value, safe="")


def path_query(path: str | bytes | PurePath) -> dict[str, str]:
    """``path``, or ``path_b64`` where it is not UTF-8."""
    if isinstance(path, PurePath):
        path = path.as_posix()
    raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    try:
        return {"path": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path_b64": base64.b64encode(raw).decode()}
