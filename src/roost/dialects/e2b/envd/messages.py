"""What clients say in ``process.Process`` and ``filesystem.Filesystem``, as their .proto files have it."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field

from roost.dialects.e2b.envd.connect import Bytes, Message

_SIGNALS = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9, "SIGNAL_UNSPECIFIED": 0}


def _numbered(said: Any) -> Any:
    return _SIGNALS.get(said, said) if isinstance(said, str) else said


Text: TypeAlias = Annotated[str, Field(max_length=8192)]
Name: TypeAlias = Annotated[str, Field(max_length=256)]
UInt: TypeAlias = Annotated[int, Field(ge=0, le=2**32 - 1)]


# --- process ------------------------------------------------------------------------------------


class Selector(Message):
    pid: UInt | None = None
    tag: Name | None = None


class Size(Message):
    cols: UInt = 0
    rows: UInt = 0


class Pty(Message):
    size: Size | None = None


class Config(Message):
    cmd: str = ""
    args: list[str] = Field(default_factory=list)
    envs: dict[str, str] = Field(default_factory=dict)
    cwd: Text | None = None


class List(Message):
    pass


class Start(Message):
    process: Config = Config()
    pty: Pty | None = None
    tag: Name | None = None
    stdin: bool = True


class Connect(Message):
    process: Selector = Selector()


class Update(Message):
    process: Selector = Selector()
    pty: Pty | None = None


class Input(Message):
    stdin: Bytes | None = None
    pty: Bytes | None = None


class SendInput(Message):
    process: Selector = Selector()
    input: Input = Input()


class InputData(Message):
    input: Input = Input()


class StreamInput(Message):
    """One of them."""

    start: Connect | None = None
    data: InputData | None = None
    keepalive: Message | None = None


class SendSignal(Message):
    process: Selector = Selector()
    signal: Annotated[int, BeforeValidator(_numbered)] = 0


class CloseStdin(Message):
    process: Selector = Selector()


# --- filesystem ---------------------------------------------------------------------------------


class OfPath(Message):
    """Stat, MakeDir, Remove."""

    path: Text = ""


class Move(Message):
    source: Text = ""
    destination: Text = ""


class ListDir(Message):
    path: Text = ""
    depth: UInt = 0


class Watch(Message):
    """WatchDir, CreateWatcher."""

    path: Text = ""
    recursive: bool = False
    include_entry: bool = False
    allow_network_mounts: bool = False


class OfWatcher(Message):
    """GetWatcherEvents, RemoveWatcher."""

    watcher_id: Name = ""
