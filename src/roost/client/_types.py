"""What calls give back: plain frozen records, the same for the async and the sync half."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from roost.errors import RoostError, TimeoutExpired


class CommandFailed(RoostError):
    """A command ended other than with 0 and the caller asked for ``check``. Never sent by the daemon."""

    def __init__(self, exit: ExecExit) -> None:
        how = f"signal {exit.signal}" if exit.signal else f"exit code {exit.exit_code}"
        text = f"The command ended with {how}."
        if isinstance(exit, ExecResult) and (tail := exit.stderr.strip()[-500:]):
            text += f" Its last words: {tail}"
        super().__init__(text, code="INTERNAL", retryable=False)
        self.code = "COMMAND_FAILED"
        self.status = 0
        self.details = {"execution_id": exit.execution_id, "exit_code": exit.exit_code}
        self.exit = exit


class ExecTimeout(TimeoutExpired):
    """The command's own time ran out; all it started was killed. ``result`` holds what it wrote."""

    def __init__(self, message: str, result: ExecExit) -> None:
        super().__init__(message, details={"execution_id": result.execution_id}, retryable=False)
        self.result = result


@dataclass(frozen=True, slots=True)
class ExecExit:
    """How an execution ended."""

    execution_id: str
    status: str  # succeeded, failed, cancelled, expired
    exit_code: int  # 128 + n where signal n ended it; -1 where nobody knows
    signal: int | None
    reason: str | None
    duration_ms: int
    truncated: bool  # some output fell out of what is kept (512 KiB at each end of a stream)

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def check(self) -> Self:
        """Itself; raises CommandFailed unless it ended with 0."""
        if not self.ok:
            raise CommandFailed(self)
        return self

    @classmethod
    def fields(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        code, signal = data.get("exit_code"), data.get("signal")
        if code is None:
            code = 128 + signal if signal else -1
        return {
            "execution_id": data["execution_id"],
            "status": data["status"],
            "exit_code": code,
            "signal": signal,
            "reason": data.get("reason"),
            "duration_ms": int(data.get("duration_ms") or 0),
            "truncated": bool(data.get("stdout_truncated") or data.get("stderr_truncated")),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**cls.fields(data))


@dataclass(frozen=True, slots=True)
class ExecResult(ExecExit):
    """An ended execution with its output; at most 1 MiB a stream is kept."""

    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """As text; U+FFFD where it is not UTF-8."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode("utf-8", "replace")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            **cls.fields(data),
            stdout_bytes=output_bytes(data, "stdout"),
            stderr_bytes=output_bytes(data, "stderr"),
        )


def output_bytes(data: Mapping[str, Any], stream: str) -> bytes:
    exact = data.get(f"{stream}_b64")
    if exact is not None:
        return base64.b64decode(exact)
    return str(data.get(stream) or "").encode("utf-8")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output. ``text`` never splits a character; ``dropped`` bytes before it are lost."""

    stream: str  # stdout, stderr
    data: bytes
    text: str
    offset: int  # of its first byte in the stream
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class FileInfo:
    path: str
    name: str
    kind: str  # file, directory, symlink, other
    size: int  # bytes
    mode: int  # permission bits
    uid: int
    gid: int
    owner: str | None
    group: str | None
    mtime: datetime
    link_target: str | None = None
    target_kind: str | None = None
    path_bytes: bytes | None = None  # where the path is not UTF-8

    @property
    def is_dir(self) -> bool:
        return self.kind == "directory"

    @property
    def is_file(self) -> bool:
        return self.kind == "file"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        exact = data.get("path_b64")
        return cls(
            path=data["path"],
            name=data["name"],
            kind=data["kind"],
            size=int(data["size"]),
            mode=int(str(data["mode"]), 8),
            uid=int(data["uid"]),
            gid=int(data["gid"]),
            owner=data.get("owner"),
            group=data.get("group"),
            mtime=parse_time(data["mtime"]) or datetime.fromtimestamp(0, UTC),
            link_target=data.get("link_target"),
            target_kind=data.get("target_kind"),
            path_bytes=base64.b64decode(exact) if exact else None,
        )


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A change seen by ``files.watch``."""

    kind: (
        str  # created, modified, removed, moved, attributes, overflow (look again: some were lost)
    )
    path: str
    new_path: str | None = None


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What a machine may reach."""

    mode: str  # open, allowlist, off
    allow: tuple[str, ...]  # names, wildcards, addresses, networks, with ports
    observe: bool  # everything that is tried is listed

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["mode"], tuple(data["allow"]), bool(data["observe"]))


@dataclass(frozen=True, slots=True)
class EgressDecision:
    """What a machine tried to reach, and how often."""

    host: str  # the name, where one was said, else the address
    port: int
    protocol: str  # tcp, udp, icmp
    via: str  # dns, tls, http, packet
    allowed: bool
    reason: str  # why it was refused; "" where it was not
    count: int
    first_at: datetime
    last_at: datetime

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        values = {name: data[name] for name in cls.__slots__}
        for name in ("first_at", "last_at"):
            values[name] = datetime.fromisoformat(data[name])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Egress:
    """A machine's policy and what it tried since it last started, newest first. ``suggested``: the entries that would
    have let the refused through; of a machine that is open and observed, all that it tried. ``wildcards``: one entry
    each and those of ``suggested`` that it would stand for."""

    policy: EgressPolicy
    decisions: tuple[EgressDecision, ...]
    suggested: tuple[str, ...]
    wildcards: Mapping[str, tuple[str, ...]]

    @property
    def refused(self) -> tuple[EgressDecision, ...]:
        return tuple(each for each in self.decisions if not each.allowed)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        suggested = data["suggested"]
        return cls(
            EgressPolicy.from_json(data),
            tuple(EgressDecision.from_json(each) for each in data["decisions"]),
            tuple(suggested["allow"]),
            {each["entry"]: tuple(each["instead_of"]) for each in suggested["wildcards"]},
        )


def parse_time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


@dataclass(frozen=True, slots=True)
class Secret:
    """What a machine's requests carry and it never sees. ``hosts``: names and wildcards, port 443 unless given
    (``"api.example.org:8443"``). ``header`` is set by the boundary, as ``format`` says (``"Bearer {value}"``); without
    one, programs find a placeholder in their environment, under the secret's name, and send that."""

    name: str
    value: str = field(repr=False)
    hosts: Sequence[str]
    header: str | None = None
    format: str | None = None
    placeholder: str | None = None  # None and no header: one is made
    in_body: bool | None = None  # look for the placeholder in bodies, too

    def to_json(self) -> dict[str, Any]:
        said = {name: getattr(self, name) for name in self.__slots__}
        return {k: v for k, v in {**said, "hosts": list(self.hosts)}.items() if v is not None}
