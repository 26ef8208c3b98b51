"""What a machine's agent answers, which its root may have replaced: a lie is refused, the rest fits rows and JSON."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from google.protobuf.message import DecodeError

from roost.agent import check
from roost.agent.failures import clean
from roost.agent.v1 import agent_pb2 as pb
from roost.api.v1 import shapes
from roost.errors import RoostError
from roost.gateway.respond import dumps
from roost.services import differing, diffs, files, outcome, terminals

_ID = "a" * 26
_E = pb.Execution(
    execution_id=_ID,
    argv=["ls"],
    started_at_unix_ms=5,
    ended_at_unix_ms=9,
    exit_code=1,
    signal=9,
    stdout_bytes=3,
)


def _file(said: bytes) -> Any:
    return shapes.file_info(files._info(check.info(pb.FileInfo.FromString(said))))


def _listing(said: bytes) -> Any:
    found = check.listing(pb.ListDirReply.FromString(said), 10)
    return [shapes.file_info(files._info(each)) for each in found.entries]


def _ended(said: bytes) -> Any:
    return outcome.ended(check.result(pb.ExecutionResult.FromString(said), _ID))


def _begun(said: bytes) -> Any:
    return outcome.progress(check.execution(pb.Execution.FromString(said), _ID))


def _terminal(said: bytes) -> Any:
    found = check.terminal(pb.Terminal.FromString(said), _ID)
    return shapes.terminal(terminals._terminal("m", found), "wss://x")


def _frames(said: bytes) -> Any:
    offsets, shown = check.Offsets(_ID, 0, 0), check.Shown()
    while said:
        size, said = said[0], said[1:]
        offsets.take(pb.OutputFrame.FromString(said[:size]))
        shown.take(pb.TerminalOutput.FromString(said[:size]))
        said = said[size:]


def _differs(said: bytes) -> Any:
    one, other = pb.TreeEntry.FromString(said), pb.TreeEntry.FromString(said[::-1])
    differing.judge(one, other)
    differing.order(one.path)
    side = diffs._side(one)
    return None if side is None else (side.size, side.mtime_ns)


def _asked(said: bytes) -> Any:
    return check.asked(pb.InsideRequest.FromString(said)).path


READERS: tuple[Callable[[bytes], Any], ...] = (
    _file, _listing, _ended, _begun, _terminal, _frames, _differs, _asked,
)  # fmt: skip
_INFO = pb.FileInfo(
    path=b"/a/\xff",
    name=b"\xff",
    kind=pb.FILE_KIND_SYMLINK,
    size=5,
    mode=0o777,
    mtime_unix_ns=-5,
    link_target=b"x",
)
_FRAME = pb.OutputFrame(stream=pb.OutputFrame.STREAM_STDOUT, data=b"abc").SerializeToString()
COVERS = (
    "roost.agent.check",
    "roost.services.outcome",
    "roost.services.differing",
    "roost.api.v1.shapes",
)
SEEDS = (
    b"\x00" + _INFO.SerializeToString(),
    b"\x01" + pb.ListDirReply(entries=[_INFO], more=True).SerializeToString(),
    b"\x02" + pb.ExecutionResult(execution=_E, stdout=b"abc").SerializeToString(),
    b"\x03" + _E.SerializeToString(),
    b"\x04" + pb.Terminal(terminal_id=_ID, cols=80, rows=24, pid=5).SerializeToString(),
    b"\x05" + bytes((len(_FRAME),)) + _FRAME,
    b"\x06" + pb.TreeEntry(path=b"a/b", size=5, mtime_unix_ns=1 << 62).SerializeToString(),
    b"\x07" + pb.InsideRequest(method="GET", path="/v1/status").SerializeToString(),
)
WORDS = (
    _ID.encode(),
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x40",
)


def one(data: bytes) -> None:
    if not data:
        return
    try:
        found = READERS[data[0] % len(READERS)](data[1:])
    except RoostError as refused:
        assert refused.code == "MACHINE_FAILED", refused.code
        return
    except DecodeError:  # which gRPC tells before it is ours
        return
    for value in _values(found):
        if isinstance(value, int):
            assert -(1 << 63) <= value < 1 << 63, value
    if not isinstance(found, dict) or "stdout" not in found:
        dumps({"said": _plain(found)})
    clean(data.decode("latin-1")).encode()


def _values(found: Any) -> list[Any]:
    if isinstance(found, dict):
        return [each for value in found.values() for each in _values(value)]
    if isinstance(found, list | tuple):
        return [each for value in found for each in _values(value)]
    return [found]


def _plain(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    return found.isoformat() if isinstance(found, datetime) else found
