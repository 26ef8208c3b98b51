"""The contract as methods: one ``AgentClient`` a machine, kept in ``Agents``."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from typing import Any, TypeVar, cast

import grpc

import roost
from roost.agent import check
from roost.agent.calls import Calls, data_field, gone, push
from roost.agent.channel import listening, open_channel
from roost.agent.failures import lied
from roost.agent.streams import DialStream, InsideStream, TerminalStream
from roost.agent.v1 import agent_pb2 as pb
from roost.agent.v1 import agent_pb2_grpc
from roost.errors import MachineError, RoostError

T = TypeVar("T")

CONTRACT_MAJOR = 1
UNARY_S = 30.0
LEAVE_S = 1.0
LONG_S = 600.0  # a walk over a whole tree
_RETRY_S = 0.005
_EMPTY = pb.Empty()


class AgentClient:
    """Calls to one machine's agent. Any number at once; each raises ``RoostError`` and nothing else
    (CancelledError apart): AGENT_LOST when the agent cannot be reached, TIMEOUT past a deadline,
    MACHINE_FAILED when it breaks the contract, else the agent's own code.

    Iterators end their call when they are closed; a consumer that is slow is felt by the agent.
    """

    def __init__(self, target: str, token: str) -> None:
        self.target = target
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._calls = Calls()
        self._leaving: weakref.WeakSet[TerminalStream | InsideStream] = weakref.WeakSet()
        self.hello: pb.HelloReply | None = None
        self._foreign: int | None = None  # the contract of an agent that is of another
        self._connect()

    def _connect(self) -> None:
        self._channel = open_channel(self.target)
        self._open_stub = agent_pb2_grpc.AgentStub(self._channel)

    @property
    def _stub(self) -> agent_pb2_grpc.AgentAsyncStub:
        if self._calls.closed:
            raise gone()
        if self._foreign is not None:
            raise _another_contract(self._foreign)
        return self._open_stub

    @property
    def hung_up(self) -> bool:
        """Whether we closed it: what failed then may never have reached the agent."""
        return self._calls.closed

    def use_token(self, token: str) -> None:
        """For calls from now on (after ``renew_identity``)."""
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def close(self) -> None:
        """Ends every call under way (AGENT_LOST for its callers); those who watch terminals hear what was shown
        up to then, if they listen, and the machine's programs that nobody answers them now."""
        self._calls.closed = True
        if leaving := [asyncio.ensure_future(each.leave()) for each in self._leaving]:
            _, late = await asyncio.wait(leaving, timeout=LEAVE_S)
            for each in late:
                each.cancel()
        await self._channel.close()

    async def wait_ready(self, timeout_s: float) -> pb.HelloReply:
        """Waits until the agent says hello. Raises TIMEOUT; MACHINE_FAILED at once for an agent of another
        contract or one that refuses our token."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(
                    f"The machine's agent did not come up within {timeout_s:g} s.", code="TIMEOUT"
                )
            if not await listening(self.target, min(left, 0.1)):
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                return await self._say_hello(min(left, 2.0))
            except RoostError as failure:
                if failure.code not in ("AGENT_LOST", "TIMEOUT") or self._calls.closed:
                    raise
                if failure.details.get("grpc") == "UNAUTHENTICATED":
                    raise lied("Hello", "it refused the daemon's token") from failure
            # A channel that failed pauses before it dials again; a new one does not.
            old = self._channel
            self._connect()
            await old.close()
            await asyncio.sleep(_RETRY_S)

    async def acquaint(self, timeout_s: float) -> pb.HelloReply:
        """Of an agent that is up already: one hello, beside other calls. Raises as any call, MACHINE_FAILED as
        ``wait_ready``."""
        return await self._say_hello(timeout_s)

    async def _say_hello(self, timeout_s: float) -> pb.HelloReply:
        request = pb.HelloRequest(contract_major=CONTRACT_MAJOR, daemon_version=roost.__version__)
        reply = await self._calls.one(
            "Hello", self._stub.Hello(request, timeout=timeout_s, metadata=self._metadata)
        )
        if reply.contract_major != CONTRACT_MAJOR:
            self._foreign = reply.contract_major
            raise _another_contract(reply.contract_major)
        self.hello = reply
        return reply

    # --- executions -----------------------------------------------------------------------------

    async def run(self, request: pb.StartRequest) -> pb.ExecutionResult:
        """Starts it, waits for its end, gives its output. Bounded by the request's own timeout, if it has one."""
        timeout = request.timeout_ms / 1000 + UNARY_S if request.timeout_ms else None
        call = self._stub.Run(request, timeout=timeout, metadata=self._metadata)
        return check.result(await self._calls.one("Run", call), request.execution_id)

    async def start(self, request: pb.StartRequest) -> pb.Execution:
        call = self._stub.Start(request, timeout=UNARY_S, metadata=self._metadata)
        return check.execution(await self._calls.one("Start", call), request.execution_id)

    async def wait(self, execution_id: str) -> pb.ExecutionResult:
        """As long as it takes."""
        call = self._stub.Wait(self._ref(execution_id), metadata=self._metadata)
        return check.result(await self._calls.one("Wait", call), execution_id)

    async def output(self, execution_id: str) -> pb.ExecutionResult:
        call = self._stub.Output(self._ref(execution_id), timeout=UNARY_S, metadata=self._metadata)
        return check.result(await self._calls.one("Output", call), execution_id)

    async def attach(
        self,
        execution_id: str,
        stdout_offset: int = 0,
        stderr_offset: int = 0,
        lossless: bool = True,
    ) -> AsyncGenerator[pb.OutputFrame, None]:
        """Frames in order, the last one with ``exit``. A slow consumer of a lossless stream slows the process."""
        request = pb.AttachRequest(
            execution_id=execution_id,
            stdout_offset=stdout_offset,
            stderr_offset=stderr_offset,
            lossless=lossless,
        )
        offsets = check.Offsets(execution_id, stdout_offset, stderr_offset)
        frames = self._calls.many("Attach", self._stub.Attach(request, metadata=self._metadata))
        async with contextlib.aclosing(frames):
            async for frame in frames:
                offsets.take(frame)
                yield frame
                if frame.HasField("exit"):
                    return
        raise lied("Attach", "the stream ended without the end of the execution")

    async def write_stdin(
        self, execution_id: str, data: AsyncIterable[bytes], eof: bool = False
    ) -> int:
        """Bytes written once all are; a process that does not read makes this wait."""

        first = pb.StdinChunk(execution_id=execution_id).SerializeToString()
        last = pb.StdinChunk(eof=True).SerializeToString() if eof else None
        reply = pb.StdinReply.FromString
        return (await self._upload("WriteStdin", first, data, reply, last)).written

    async def signal(self, execution_id: str, signal: int, tree: bool = False) -> pb.Execution:
        request = pb.SignalRequest(execution_id=execution_id, signal=signal, tree=tree)
        call = self._stub.Signal(request, timeout=UNARY_S, metadata=self._metadata)
        return check.execution(await self._calls.one("Signal", call), execution_id)

    async def get_execution(self, execution_id: str) -> pb.Execution:
        call = self._stub.GetExecution(
            self._ref(execution_id), timeout=UNARY_S, metadata=self._metadata
        )
        return check.execution(await self._calls.one("GetExecution", call), execution_id)

    async def list_executions(self) -> Sequence[pb.Execution]:
        call = self._stub.ListExecutions(_EMPTY, timeout=UNARY_S, metadata=self._metadata)
        said = (await self._calls.one("ListExecutions", call)).executions
        return [check.execution(each, each.execution_id) for each in said]

    async def forget(self, execution_id: str) -> None:
        call = self._stub.Forget(self._ref(execution_id), timeout=UNARY_S, metadata=self._metadata)
        await self._calls.one("Forget", call)

    @staticmethod
    def _ref(execution_id: str) -> pb.ExecutionRef:
        return pb.ExecutionRef(execution_id=execution_id)

    # --- terminals ------------------------------------------------------------------------------

    async def open_terminal(self, request: pb.OpenTerminalRequest) -> pb.Terminal:
        call = self._stub.OpenTerminal(request, timeout=UNARY_S, metadata=self._metadata)
        return check.terminal(await self._calls.one("OpenTerminal", call), request.terminal_id)

    def attach_terminal(
        self, terminal_id: str, scrollback: bool = True, resume: int | None = None
    ) -> TerminalStream:
        call = self._stub.AttachTerminal(metadata=self._metadata)
        stream = TerminalStream(self._calls, call, terminal_id, scrollback, resume)
        self._leaving.add(stream)
        return stream

    async def resize_terminal(self, terminal_id: str, cols: int, rows: int) -> pb.Terminal:
        request = pb.ResizeRequest(terminal_id=terminal_id, cols=cols, rows=rows)
        call = self._stub.ResizeTerminal(request, timeout=UNARY_S, metadata=self._metadata)
        return check.terminal(await self._calls.one("ResizeTerminal", call), terminal_id)

    async def close_terminal(self, terminal_id: str) -> None:
        request = pb.TerminalRef(terminal_id=terminal_id)
        call = self._stub.CloseTerminal(request, timeout=UNARY_S, metadata=self._metadata)
        await self._calls.one("CloseTerminal", call)

    async def list_terminals(self) -> Sequence[pb.Terminal]:
        call = self._stub.ListTerminals(_EMPTY, timeout=UNARY_S, metadata=self._metadata)
        return (await self._calls.one("ListTerminals", call)).terminals

    # --- files ----------------------------------------------------------------------------------

    async def read_file(
        self, path: bytes, offset: int = 0, length: int = 0, suffix: int = 0
    ) -> tuple[pb.ReadFileChunk, AsyncGenerator[bytes, None]]:
        """The head (info, offset, length) and then exactly ``length`` bytes. The iterator must be closed."""
        request = pb.ReadFileRequest(path=path, offset=offset, length=length, suffix=suffix)
        call = self._stub.ReadFile(request, metadata=self._metadata)
        try:
            async with asyncio.timeout(UNARY_S):
                head = await self._calls.next("ReadFile", call)
            if head is None:
                raise lied("ReadFile", "it ended before its first message")
            check.read_head(head)
        except TimeoutError as failure:
            call.cancel()
            raise MachineError(
                "The machine's agent did not answer in time.", code="TIMEOUT"
            ) from failure
        except BaseException:
            call.cancel()
            raise
        return head, self._body(call, head)

    async def _body(
        self,
        call: grpc.aio.UnaryStreamCall[pb.ReadFileRequest, pb.ReadFileChunk],
        head: pb.ReadFileChunk,
    ) -> AsyncGenerator[bytes, None]:
        left = head.length
        if len(head.data) > left:
            raise lied("ReadFile", "it sent more than it announced")
        try:
            if head.data:
                left -= len(head.data)
                yield head.data
            while left:
                chunk = await self._calls.next("ReadFile", call)
                if chunk is None:
                    raise lied("ReadFile", "it sent less than it announced")
                if len(chunk.data) > left:
                    raise lied("ReadFile", "it sent more than it announced")
                left -= len(chunk.data)
                yield chunk.data
        finally:
            call.cancel()

    async def write_file(
        self, header: pb.WriteFileHeader, data: AsyncIterable[bytes]
    ) -> pb.FileInfo:
        """``data`` in pieces of at most 1 MiB; an error it raises leaves the old file as it was."""
        first = pb.WriteFileChunk(header=header).SerializeToString()
        last = pb.WriteFileChunk(end=True).SerializeToString()
        reply = pb.FileInfo.FromString
        return check.info(await self._upload("WriteFile", first, data, reply, last))

    async def tar_in(self, header: pb.TarInHeader, data: AsyncIterable[bytes]) -> pb.TarInReply:
        """``data`` in pieces of at most 1 MiB."""
        first = pb.TarInChunk(header=header).SerializeToString()
        last = pb.TarInChunk(end=True).SerializeToString()
        return await self._upload("TarIn", first, data, pb.TarInReply.FromString, last)

    async def _upload(
        self,
        name: str,
        first: bytes,
        data: AsyncIterable[bytes],
        reply: Callable[[bytes], T],
        last: bytes | None = None,
    ) -> T:
        """One piece at a time, so that at most one waits here for the agent; a refusal that comes while we
        write is what the caller hears. Pieces are framed by hand: a message object would copy each twice."""
        if self._calls.closed:
            raise gone()
        method: Any = self._channel.stream_unary(
            f"/roost.agent.v1.Agent/{name}",
            request_serializer=None,
            response_deserializer=cast(Any, reply),
        )
        call = method(metadata=self._metadata)
        try:
            taken = await push(call, first)
            if taken:
                async for piece in data:
                    taken = await push(call, data_field(piece))
                    if not taken:
                        break
            if taken and last is not None:
                await push(call, last)
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await call.done_writing()
            return await self._calls.one(name, call)
        finally:
            call.cancel()

    async def stat(self, path: bytes, follow: bool = True) -> pb.FileInfo:
        request = pb.PathRequest(path=path, follow=follow)
        call = self._stub.Stat(request, timeout=UNARY_S, metadata=self._metadata)
        return check.info(await self._calls.one("Stat", call))

    async def list_dir(self, path: bytes, limit: int, after: bytes) -> pb.ListDirReply:
        request = pb.ListDirRequest(path=path, limit=limit, after=after)
        call = self._stub.ListDir(request, timeout=UNARY_S, metadata=self._metadata)
        return check.listing(await self._calls.one("ListDir", call), limit)

    async def make_dir(self, request: pb.MakeDirRequest) -> pb.FileInfo:
        call = self._stub.MakeDir(request, timeout=UNARY_S, metadata=self._metadata)
        return check.info(await self._calls.one("MakeDir", call))

    async def move(self, source: bytes, destination: bytes, overwrite: bool) -> pb.FileInfo:
        request = pb.MoveRequest(source=source, destination=destination, overwrite=overwrite)
        call = self._stub.Move(request, timeout=LONG_S, metadata=self._metadata)
        return check.info(await self._calls.one("Move", call))

    async def remove(self, path: bytes, recursive: bool) -> None:
        request = pb.RemoveRequest(path=path, recursive=recursive)
        await self._calls.one(
            "Remove", self._stub.Remove(request, timeout=LONG_S, metadata=self._metadata)
        )

    async def set_attributes(self, request: pb.SetAttributesRequest) -> pb.FileInfo:
        call = self._stub.SetAttributes(request, timeout=LONG_S, metadata=self._metadata)
        return check.info(await self._calls.one("SetAttributes", call))

    async def tar_out(self, path: bytes, layer: bool = False) -> AsyncGenerator[bytes, None]:
        request = pb.TarOutRequest(path=path, layer=layer)
        call = self._stub.TarOut(request, metadata=self._metadata)
        messages = self._calls.many("TarOut", call)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message.data

    async def watch(self, path: bytes, recursive: bool) -> AsyncGenerator[pb.WatchEvent, None]:
        """``KIND_READY`` first; then events for as long as it is iterated."""
        request = pb.WatchRequest(path=path, recursive=recursive)
        events = self._calls.many("Watch", self._stub.Watch(request, metadata=self._metadata))
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def survey(self, request: pb.SurveyRequest) -> AsyncGenerator[pb.SurveyReply, None]:
        """A tree's entries, in order; nothing of them has been checked. UNSUPPORTED: the agent is older than this."""
        replies = self._calls.many("Survey", self._stub.Survey(request, metadata=self._metadata))
        async with contextlib.aclosing(replies):
            async for reply in replies:
                yield reply

    async def digest(self, request: pb.DigestRequest) -> Sequence[bytes]:
        """SHA-256 of each, in order; empty where there is none to be had."""
        call = self._stub.Digest(request, timeout=LONG_S, metadata=self._metadata)
        found = (await self._calls.one("Digest", call)).sha256
        if len(found) != len(request.paths):
            raise lied("Digest", "it answered for other files than asked for")
        return found

    # --- network and machine --------------------------------------------------------------------

    def dial(self, port: int, host: str = "") -> DialStream:
        """A byte stream to the machine's loopback port; PORT_CLOSED comes with the first read."""
        return DialStream(self._calls, self._stub.Dial(metadata=self._metadata), port, host)

    def inside(self) -> InsideStream:
        """What the machine's programs ask from now on; a stream before this one ends."""
        stream = InsideStream(self._calls, self._stub.Inside(metadata=self._metadata))
        self._leaving.add(stream)
        return stream

    async def stats(self, timeout_s: float = 5.0) -> pb.StatsReply:
        call = self._stub.Stats(_EMPTY, timeout=timeout_s, metadata=self._metadata)
        return await self._calls.one("Stats", call)

    async def set_clock(self, unix_ns: int) -> pb.SetClockReply:
        request = pb.SetClockRequest(unix_ns=unix_ns)
        call = self._stub.SetClock(request, timeout=5.0, metadata=self._metadata)
        return await self._calls.one("SetClock", call)

    async def reseed(self, entropy: bytes) -> pb.ReseedReply:
        call = self._stub.Reseed(
            pb.ReseedRequest(entropy=entropy), timeout=5.0, metadata=self._metadata
        )
        return await self._calls.one("Reseed", call)

    async def renew_identity(self, request: pb.RenewIdentityRequest) -> pb.RenewIdentityReply:
        """With a ``new_token`` in it, later calls use that one."""
        call = self._stub.RenewIdentity(request, timeout=UNARY_S, metadata=self._metadata)
        reply = await self._calls.one("RenewIdentity", call)
        if request.new_token:
            self.use_token(request.new_token)
        return reply

    async def sync(self) -> None:
        """Raises UNSUPPORTED by an agent before 1.5."""
        call = self._stub.Sync(_EMPTY, timeout=60.0, metadata=self._metadata)
        await self._calls.one("Sync", call)

    async def shutdown(self, grace_s: float, exit_agent: bool = True) -> None:
        """An agent that goes away before it can answer has done what it was asked."""
        request = pb.ShutdownRequest(grace_ms=int(grace_s * 1000), exit=exit_agent)
        call = self._stub.Shutdown(request, timeout=grace_s + 10, metadata=self._metadata)
        try:
            await self._calls.one("Shutdown", call)
        except RoostError as failure:
            if failure.code != "AGENT_LOST" or not exit_agent:
                raise


def _another_contract(found: int) -> MachineError:
    return MachineError(
        f"The machine's agent speaks contract {found}, this daemon {CONTRACT_MAJOR}: another release started it."
        " Let it sleep with tier=stopped and wake it, which gives it this release's agent; its disk stays.",
        code="MACHINE_FAILED",
        retryable=False,
        details={"contract": found, "wanted": CONTRACT_MAJOR},
    )


class Agents:
    """The clients of running machines by machine id. A machine that starts anew gets a new one."""

    def __init__(self) -> None:
        self._clients: dict[str, tuple[str, str, AgentClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, machine_id: str, target: str, token: str) -> AgentClient:
        """The machine's client; another target or token than before makes a new one."""
        kept = self._clients.get(machine_id)
        if kept is not None:
            if kept[0] == target and kept[1] == token:
                return kept[2]
            self.drop(machine_id)
        client = AgentClient(target, token)
        self._clients[machine_id] = (target, token, client)
        return client

    def renewed(self, machine_id: str, token: str) -> None:
        """Its agent demands another token from now on; the client and its channel stay."""
        target, _, client = self._clients[machine_id]
        client.use_token(token)
        self._clients[machine_id] = (target, token, client)

    def peek(self, machine_id: str) -> AgentClient | None:
        """The client of a machine that runs, if there is one."""
        kept = self._clients.get(machine_id)
        return kept[2] if kept is not None else None

    def drop(self, machine_id: str) -> None:
        """Closes the machine's client, if it has one; calls under way end with AGENT_LOST."""
        kept = self._clients.pop(machine_id, None)
        if kept is not None:
            task = asyncio.get_running_loop().create_task(kept[2].close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for machine_id in list(self._clients):
            self.drop(machine_id)
        if self._closing:
            await asyncio.wait(self._closing, timeout=5)
