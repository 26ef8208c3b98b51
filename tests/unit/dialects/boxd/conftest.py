"""The whole serving side with an agent behind it, and a channel of our own to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from roost.dialects import boxd
from roost.dialects.boxd.wire import boxd_pb2 as pb
from tests.unit.agent import process
from tests.unit.api.kit import Served, serving


class Box:
    """Calls by name, with a key or a token."""

    def __init__(self, served: Served, channel: grpc.aio.Channel, credential: str | None) -> None:
        self.served = served
        self._channel = channel
        self._credential = credential

    @property
    def _metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self._credential}")] if self._credential else []

    async def __call__(self, name: str, request: Message, kind: type[Message] = pb.Empty) -> Any:
        call = self._channel.unary_unary(f"/{boxd.SERVICE}/{name}", _bytes, kind.FromString)
        return await call(request, metadata=self._metadata, timeout=20)

    async def upload(self, *chunks: pb.UploadFileChunk) -> Any:
        call = self._channel.stream_unary(
            f"/{boxd.SERVICE}/UploadFileStream", _bytes, pb.UploadFileResponse.FromString
        )
        return await call(iter(chunks), metadata=self._metadata, timeout=20)

    def download(self, request: Message) -> Any:
        call = self._channel.unary_stream(
            f"/{boxd.SERVICE}/DownloadFileStream", _bytes, pb.DownloadFileChunk.FromString
        )
        return call(request, metadata=self._metadata, timeout=20)

    def exec(self, timeout: float = 20) -> Any:
        call = self._channel.stream_stream(f"/{boxd.SERVICE}/Exec", _bytes, pb.ExecChunk.FromString)
        return call(metadata=self._metadata, timeout=timeout)

    async def run(self, vm: str, command: str, stdin: bytes | None = None, **kw: Any) -> Any:
        """stdout, stderr, exit code."""
        call = self.exec()
        await call.write(pb.ExecChunk(vm_id=vm, command=command, **kw))
        if stdin is not None:
            await call.write(pb.ExecChunk(data=stdin, stdin=True))
        await call.done_writing()
        out, err, code = b"", b"", None
        async for chunk in call:
            if chunk.is_stderr:
                err += chunk.data
            else:
                out += chunk.data
            code = chunk.exit_code
        return out, err, code

    def as_(self, credential: str | None) -> Box:
        return Box(self.served, self._channel, credential)


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[process.AgentProcess]:
    with process.running(tmp_path_factory.mktemp("agent")) as found:
        yield found


@pytest.fixture
async def box(tmp_path: Path, agent: process.AgentProcess) -> AsyncIterator[Box]:
    given = (lambda services: boxd.target(services.exchange),)
    async with serving(tmp_path, agent.target, dialects=given) as served:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            yield Box(served, channel, served.key)


@pytest.fixture
async def vm(box: Box) -> str:
    made = await box("CreateVm", pb.CreateVmRequest(name="one"), pb.MadeVm)
    return str(made.vm_id)
