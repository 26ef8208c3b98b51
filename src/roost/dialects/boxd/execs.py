"""Commands in machines: one conversation each, that ends with the command. Who leaves it ends the command.

client                                   here
machine, command, tty            ->      an execution, or with a tty a terminal
stdin, resize; half-close = EOF  ->
                                 <-      output, as it comes
                                 <-      exit code, last
cancels, or goes away            ->      all that it started is killed
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

import structlog

from roost.api.v1.services import Services
from roost.dialects.boxd import shapes
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.errors import InvalidRequestError, MachineError, RoostError
from roost.gateway.calls import Call, Method
from roost.services.executions import Dropped, Ended, Output, StartExecution
from roost.services.terminals import OpenTerminal, Viewer

log = structlog.get_logger(__name__)

Chunks = AsyncIterator[pb.ExecChunk]

EOF_S = 0.003  # in which a client that has nothing more to say has said so
COLS, ROWS = 80, 24
_EOT = b"\x04"
_PIECE = 1 << 20


class Execs:
    def __init__(self, services: Services) -> None:
        self._s = services
        self._ending: set[asyncio.Future[object]] = set()

    def methods(self) -> list[Method]:
        return [
            Method("Exec", pb.ExecChunk, self.exec, lasting=False, many=True, streams=True),
        ]

    async def exec(self, call: Call, asked: Chunks) -> AsyncGenerator[pb.ExecChunk, None]:
        first = await anext(asked, None)
        if first is None or not first.vm_id:
            raise InvalidRequestError("The first chunk names the machine and the command.")
        machine_id = await shapes.machine_id(self._s, call, first.vm_id)
        talk = self._terminal if first.tty else self._piped
        async with contextlib.aclosing(talk(call.tenant, machine_id, first, asked)) as out:
            async for each in out:
                yield each

    # --- without a terminal ---------------------------------------------------------------------

    async def _piped(
        self, tenant: str, machine_id: str, first: pb.ExecChunk, asked: Chunks
    ) -> AsyncGenerator[pb.ExecChunk, None]:
        more = asyncio.ensure_future(_next(asked))
        try:
            await asyncio.wait({more}, timeout=EOF_S)
            silent = more.done() and more.result() is None
            spec = StartExecution(first.command or "/bin/sh", stdin_stream=not silent)
            starting = asyncio.ensure_future(
                self._s.executions.start_stream(tenant, machine_id, spec)
            )
            try:
                row, events = await asyncio.shield(starting)
            except asyncio.CancelledError:
                self._later(self._unwanted(tenant, machine_id, starting))
                raise
        except BaseException:
            more.cancel()
            raise
        feeding = asyncio.ensure_future(
            _nothing() if silent else self._feed(tenant, machine_id, row.id, more, asked)
        )
        over = False
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Output):
                        yield pb.ExecChunk(data=event.data, is_stderr=event.stream == "stderr")
                    elif isinstance(event, Dropped):
                        raise MachineError(
                            f"{event.bytes} bytes of its {event.stream} were lost: the daemon was away for too long."
                        )
                    elif isinstance(event, Ended):
                        over = True
                        yield pb.ExecChunk(exit_code=_exit_code(event))
        finally:
            feeding.cancel()
            more.cancel()
            if not over:
                await self._surely(self._s.executions.cancel(tenant, machine_id, row.id))

    async def _feed(
        self,
        tenant: str,
        machine_id: str,
        execution_id: str,
        more: asyncio.Future[pb.ExecChunk | None],
        asked: Chunks,
    ) -> None:
        """Stdin as it comes, and its end. What a command does not read any more is nobody's loss."""
        with contextlib.suppress(RoostError):
            chunk = await more
            while chunk is not None:
                if chunk.stdin and chunk.data:
                    await self._s.executions.write_stdin(
                        tenant, machine_id, execution_id, _one(chunk.data)
                    )
                chunk = await _next(asked)
            await self._s.executions.write_stdin(
                tenant, machine_id, execution_id, _one(b""), eof=True
            )

    async def _unwanted(
        self, tenant: str, machine_id: str, starting: Awaitable[tuple[object, object]]
    ) -> None:
        """Started for somebody who has left meanwhile."""
        row, events = await starting
        await events.aclose()  # type: ignore[attr-defined]
        await self._s.executions.cancel(tenant, machine_id, row.id)  # type: ignore[attr-defined]

    # --- with one -------------------------------------------------------------------------------

    async def _terminal(
        self, tenant: str, machine_id: str, first: pb.ExecChunk, asked: Chunks
    ) -> AsyncGenerator[pb.ExecChunk, None]:
        spec = OpenTerminal(
            width=first.cols or COLS,
            height=first.rows or ROWS,
            command=["/bin/sh", "-c", first.command] if first.command else None,
            term="xterm-256color",
        )
        opened = await self._s.terminals.open(tenant, machine_id, spec)
        typing: asyncio.Future[None] | None = None
        over = False
        try:
            viewer = await self._s.terminals.attach(tenant, machine_id, opened.id)
            try:
                typing = asyncio.ensure_future(_type(viewer, asked))
                while (frame := await viewer.read()) is not None:
                    if frame.data:
                        yield pb.ExecChunk(data=frame.data)
                    if frame.HasField("closed"):
                        over = True
                        code = frame.closed.exit_code if frame.closed.HasField("exit_code") else -1
                        yield pb.ExecChunk(exit_code=code)
            finally:
                if typing is not None:
                    typing.cancel()
                await viewer.close()
        finally:
            if not over:  # what it left behind is its own otherwise
                await self._surely(self._s.terminals.close(tenant, machine_id, opened.id))

    # --- helpers --------------------------------------------------------------------------------

    async def _surely(self, ending: Awaitable[object]) -> None:
        """Also where who asked has left, and leaves again."""
        await asyncio.shield(self._later(ending))

    def _later(self, ending: Awaitable[object]) -> asyncio.Future[object]:
        async def quietly() -> None:
            try:
                await ending
            except RoostError as failure:
                log.info("boxd.exec_end", error_code=failure.code)

        task: asyncio.Future[object] = asyncio.ensure_future(quietly())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task


async def _type(viewer: Viewer, asked: Chunks) -> None:
    """Keys and sizes as they come; at the end what a terminal has for one."""
    with contextlib.suppress(RoostError):
        async for chunk in asked:
            if chunk.window_change:
                await viewer.resize(chunk.cols or COLS, chunk.rows or ROWS)
            if chunk.stdin and chunk.data:
                await viewer.send(chunk.data)
        await viewer.send(_EOT)


async def _next(asked: Chunks) -> pb.ExecChunk | None:
    return await anext(asked, None)


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(data), _PIECE):
        yield data[at : at + _PIECE]


async def _nothing() -> None:
    pass


def _exit_code(ended: Ended) -> int:
    """As a shell tells it: 128 and the signal's number. Raises AGENT_LOST for a command whose end nobody saw."""
    row = ended.execution
    if row.exit_code is not None:
        return row.exit_code
    if row.signal is not None:
        return 128 + row.signal
    raise MachineError(f"The command {row.status}: {row.reason or 'its end was not seen'}.")
