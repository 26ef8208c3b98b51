"""What boxd's dialect costs a call over the native API, for ``bench.dialects``: GetVm and Exec over one gRPC channel that
is kept, against the same thing over one HTTP connection that is kept. Exec is compared with the native call that streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc

from bench.report import ms
from roost.client._config import resolve
from roost.dialects.boxd import SERVICE
from roost.dialects.boxd.wire import boxd_pb2 as pb

Ask = Callable[[], float]


def pairs(machine_id: str) -> Iterator[tuple[str, Ask, Ask]]:
    """What is asked, of the dialect, of the native API."""
    config = resolve()
    at = urlsplit(config.url)
    headers = {"authorization": f"Bearer {config.api_key}"}
    native = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)

    def asked(method: str, path: str, body: Any = None) -> None:
        native.request(method, path, None if body is None else json.dumps(body), headers)
        answer = native.getresponse()
        assert answer.status < 300, answer.read()[:300]
        answer.read()

    with (
        contextlib.closing(native),
        asyncio.Runner() as loop,
        contextlib.closing(_Channel(loop, at.netloc)) as kept,
    ):
        channel = kept.channel
        metadata = [("authorization", f"Bearer {_token(at.netloc, config.api_key)}")]
        get = channel.unary_unary(f"/{SERVICE}/GetVm", pb.VmRef.SerializeToString, pb.Vm.FromString)
        exec_ = channel.stream_stream(
            f"/{SERVICE}/Exec", pb.ExecChunk.SerializeToString, pb.ExecChunk.FromString
        )
        ref = pb.VmRef(vm_id=machine_id)
        first = pb.ExecChunk(vm_id=machine_id, command="/bin/true")
        url = f"/v1/machines/{machine_id}"

        async def look() -> None:
            await get(ref, metadata=metadata)

        async def run() -> None:
            async for last in exec_(iter([first]), metadata=metadata):
                assert last.exit_code == 0, last

        yield (
            "GetVm",
            lambda: ms(lambda: loop.run(look())),
            lambda: ms(lambda: asked("GET", url)),
        )
        stream = {"command": "/bin/true"}
        yield (
            "Exec",
            lambda: ms(lambda: loop.run(run())),
            lambda: ms(lambda: asked("POST", f"{url}/executions/stream", stream)),
        )


class _Channel:
    def __init__(self, loop: asyncio.Runner, netloc: str) -> None:
        async def made() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(netloc)

        self._loop = loop
        self.channel = loop.run(made())

    def close(self) -> None:
        self._loop.run(self.channel.close())


def _token(netloc: str, key: str) -> str:
    connection = http.client.HTTPConnection(netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/api/v1/auth/token", json.dumps({"api_key": key}))
        return str(json.loads(connection.getresponse().read())["token"])
