"""One way to await grpcio: its failures become ours, its streams plain iterators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from roost.agent.failures import lied, typed
from roost.errors import MachineError

T = TypeVar("T")
Stream: TypeAlias = grpc.aio.UnaryStreamCall[Any, T] | grpc.aio.StreamStreamCall[Any, T]


class Calls:
    """The calls of one channel. ``closed`` says that the channel was closed by us."""

    def __init__(self) -> None:
        self.closed = False

    async def one(self, doing: str, call: Awaitable[T]) -> T:
        """The call's answer; raises RoostError."""
        try:
            answer = await call
            if answer is None:  # grpcio's way to say that it could not be parsed
                raise lied(doing, "it is not a message of the contract")
            return answer
        except grpc.aio.AioRpcError as failure:
            raise typed(failure, doing) from failure
        except grpc.aio.UsageError as failure:
            raise gone() from failure
        except asyncio.CancelledError:
            # grpcio cancels the calls of a channel that is closed: only a cancelled task is a cancellation.
            if self.closed and not _cancelled():
                raise gone() from None
            raise

    async def next(self, doing: str, call: Stream[T]) -> T | None:
        """The next message of a stream, None at its end."""
        message = await self.one(doing, call.read())
        return None if message is grpc.aio.EOF else cast(T, message)

    async def many(self, doing: str, call: Stream[T]) -> AsyncGenerator[T, None]:
        """The messages of a stream; closing the generator cancels the call."""
        try:
            while (message := await self.next(doing, call)) is not None:
                yield message
        finally:
            call.cancel()


def _cancelled() -> bool:
    """Whether the task is. By itself: a task named in a frame that its cancellation goes through would be held by
    that, and hold the call, until the garbage collector comes; a capture waits to see the call gone."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def push(call: Any, message: bytes) -> bool:
    """Writes to a stream; False when the call is over (its reader, or the call itself, says why).

    Not ``call.write``, which when the other side ends a call early puts an "internal error" of grpcio's own in
    the place of the status. The one place that looks inside grpcio.
    """
    await call._metadata_sent.wait()
    if call.done():
        return False
    try:
        await call._cython_call.send_serialized_message(message)
    except (grpc.aio.InternalError, asyncio.InvalidStateError):
        return False
    return not call.done()


def cut(data: bytes, size: int) -> Sequence[bytes]:
    """``data`` in pieces of at most ``size``; nothing for nothing."""
    if len(data) <= size:
        return (data,) if data else ()
    return [data[at : at + size] for at in range(0, len(data), size)]


def data_field(data: bytes) -> bytes:
    """``data`` as field 2 of a message: WriteFileChunk and TarInChunk after their first."""
    size, length = bytearray(), len(data)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return b"".join((b"\x12", size, data))


def gone() -> MachineError:
    return MachineError("The connection to the machine was closed; it is stopping or stopped.")
