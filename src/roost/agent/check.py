"""Whether what an agent said can be true. A lie is MACHINE_FAILED; what is merely odd is made harmless."""

from __future__ import annotations

import re

from roost.agent.failures import lied
from roost.agent.v1 import agent_pb2 as pb

MAX_COUNT = 1 << 62
MAX_FRAME = 1 << 20
MAX_PATH = 64 * 1024
MAX_ASKED = 16 * 1024
_MAX_TIME_MS = 253_402_300_799_999  # the end of year 9999
_MAX_TIME_NS = _MAX_TIME_MS * 1_000_000


def execution(said: pb.Execution, execution_id: str) -> pb.Execution:
    if said.execution_id != execution_id:
        raise lied("executions", "it named another execution")
    if max(said.stdout_bytes, said.stderr_bytes, said.duration_us) > MAX_COUNT:
        raise lied("executions", "a count is impossible")
    for at in (said.started_at_unix_ms, said.ended_at_unix_ms):
        if not 0 <= at <= _MAX_TIME_MS:
            raise lied("executions", "a time is impossible")
    return said


_METHOD = re.compile(r"[A-Z]{1,16}", re.ASCII)
_PATH = re.compile(r"/[!-~]{0,1023}", re.ASCII)


def asked(said: pb.InsideRequest) -> pb.InsideRequest:
    """Of a machine's program; no honest agent passes on what is beyond the contract's bounds."""
    if not _METHOD.fullmatch(said.method) or not _PATH.fullmatch(said.path):
        raise lied("Inside", "a request that cannot be")
    if len(said.body) > MAX_ASKED:
        raise lied("Inside", "a request that is too large")
    return said


def result(said: pb.ExecutionResult, execution_id: str) -> pb.ExecutionResult:
    execution(said.execution, execution_id)
    return said


def terminal(said: pb.Terminal, terminal_id: str) -> pb.Terminal:
    if said.terminal_id != terminal_id:
        raise lied("terminals", "it named another terminal")
    if not 0 <= said.created_at_unix_ms <= _MAX_TIME_MS:
        raise lied("terminals", "a time is impossible")
    return said


def info(said: pb.FileInfo) -> pb.FileInfo:
    if len(said.path) > MAX_PATH or len(said.link_target) > MAX_PATH or said.size > MAX_COUNT:
        raise lied("files", "a path or size is impossible")
    if not -_MAX_TIME_NS <= said.mtime_unix_ns <= _MAX_TIME_NS:
        said.mtime_unix_ns = 0  # a file system may hold any time
    return said


def listing(said: pb.ListDirReply, limit: int) -> pb.ListDirReply:
    if len(said.entries) > limit:
        raise lied("ListDir", "it sent more entries than asked for")
    if said.more and not said.entries:
        raise lied("ListDir", "an empty page that says there is more")
    for entry in said.entries:
        info(entry)
    return said


def read_head(said: pb.ReadFileChunk) -> pb.ReadFileChunk:
    if not said.HasField("info"):
        raise lied("ReadFile", "its first message has no head")
    info(said.info)
    if max(said.offset, said.length) > MAX_COUNT:
        raise lied("ReadFile", "an offset or length is impossible")
    return said


class Offsets:
    """Follows one attached stream: every frame begins where the last one of its stream ended, plus what is
    said to have been lost."""

    def __init__(self, execution_id: str, stdout: int, stderr: int) -> None:
        self._id = execution_id
        self._at = {pb.OutputFrame.STREAM_STDOUT: stdout, pb.OutputFrame.STREAM_STDERR: stderr}

    def take(self, frame: pb.OutputFrame) -> None:
        if frame.HasField("exit"):
            execution(frame.exit, self._id)
        if not frame.data and not frame.dropped:
            return
        at = self._at.get(frame.stream)
        if at is None or len(frame.data) > MAX_FRAME or frame.dropped > MAX_COUNT:
            raise lied("Attach", "an output frame that cannot be")
        if frame.offset != at + frame.dropped:
            raise lied("Attach", "output that does not follow what came before")
        if frame.offset > MAX_COUNT:
            raise lied("Attach", "an offset is impossible")
        self._at[frame.stream] = frame.offset + len(frame.data)


class Shown:
    """Follows what one viewer of a terminal is shown: it only goes on. An agent of before knows of no offsets."""

    def __init__(self) -> None:
        self._at = 0

    def take(self, frame: pb.TerminalOutput) -> None:
        if max(frame.offset, frame.dropped) > MAX_COUNT or len(frame.data) > MAX_FRAME:
            raise lied("AttachTerminal", "output that cannot be")
        if not frame.data or not frame.offset:
            return
        if frame.offset < self._at:
            raise lied("AttachTerminal", "output that was shown before")
        self._at = frame.offset + len(frame.data)
