"""What the daemon and the egress process say to each other: JSON in frames on a unix stream socket, one answer to each
call, descriptors beside the frame that needs them.

    {id, call, ...}  ->  {id, result} | {id, error, strange?}

``strange``: of a slot that it has not been given, as while all are attached anew. Only root speaks here. Frames are bounded all the same, and a process of another version is replaced, not understood.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from roost.egress.interface import Decision, Intercept
from roost.egress.policy import Reach

MAX_FRAME = 2 * 2**20
LISTENERS = 3  # descriptors of ``attach``: DNS by UDP, by TCP, the proxy
MAX_INTERCEPTS = 256
_HEAD = struct.Struct(">I")


class ProtocolError(ValueError):
    """What came is no frame, or not what was expected."""


class StrangeSlotError(ProtocolError):
    """Nobody attached it, or not yet."""


@functools.cache
def version() -> str:
    """Of this package's code: another one is another version."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def frame(message: Mapping[str, Any]) -> bytes:
    """Raises ProtocolError above ``MAX_FRAME``."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise ProtocolError("a message that is too long")
    return _HEAD.pack(len(body)) + body


class Frames:
    """Fed with bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Those that are whole. Raises ProtocolError."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ProtocolError("a frame that is too long")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            try:
                message = json.loads(bytes(self._buffer[_HEAD.size : end]))
            except ValueError:
                raise ProtocolError("a frame that is no JSON") from None
            if not isinstance(message, dict):
                raise ProtocolError("a frame that is no object")
            del self._buffer[:end]
            found.append(message)
        return found


# --- values ------------------------------------------------------------------------------------


def reach_to_json(reach: Reach) -> dict[str, list[str]]:
    return {"private": [*map(str, reach.private)], "here": [*map(str, reach.here)]}


def read_reach(value: object) -> Reach:
    """Raises ProtocolError."""
    said = _object(value)
    try:
        private, here = (
            tuple(IPv4Network(each) for each in _list(said.get(name)))
            for name in ("private", "here")
        )
    except ValueError:
        raise ProtocolError("a network that is none") from None
    return Reach(private, here)


def intercepts_to_json(intercept: Sequence[Intercept]) -> list[dict[str, Any]]:
    return [asdict(each) for each in intercept]


def read_intercepts(value: object) -> tuple[Intercept, ...]:
    """Raises ProtocolError, quoting nothing."""
    found = []
    for each in _list(value):
        said = _object(each)
        words = {name: said.get(name) for name in ("endpoint", "user", "password")}
        names, ports = _list(said.get("names")), _list(said.get("ports"))
        if not all(isinstance(word, str) for word in (*words.values(), *names)):
            raise ProtocolError("an interception that is none")
        if not all(type(port) is int and 0 < port < 65536 for port in ports):
            raise ProtocolError("an interception of impossible ports")
        found.append(Intercept(names=tuple(names), ports=tuple(ports), **words))  # type: ignore[arg-type]
    if len(found) > MAX_INTERCEPTS:
        raise ProtocolError("too many interceptions")
    return tuple(found)


def decisions_to_json(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    return [asdict(each) for each in decisions]


def read_decisions(value: object) -> list[Decision]:
    """Raises ProtocolError."""
    try:
        return [Decision(**_object(each)) for each in _list(value)]
    except TypeError:
        raise ProtocolError("a decision that is none") from None


def read_slot(value: object) -> int:
    """Raises ProtocolError."""
    if type(value) is not int or value < 0:
        raise ProtocolError("a slot that is none")
    return value


def read_text(value: object) -> str:
    """Raises ProtocolError."""
    if not isinstance(value, str):
        raise ProtocolError("a text that is none")
    return value


def read_servers(value: object) -> tuple[tuple[str, int], ...]:
    """Raises ProtocolError."""
    found = []
    for each in _list(value):
        if not isinstance(each, list) or [type(part) for part in each] != [str, int]:
            raise ProtocolError("a resolver that is none")
        found.append((each[0], each[1]))
    return tuple(found)


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError("a list that is none")
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("an object that is none")
    return value
