"""The gRPC server: on a private socket, reached through the front. Serves the standard health service."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


def _messages() -> tuple[Any, Any]:
    """grpc.health.v1's two messages, in a pool of their own: another copy of them may be installed."""
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto
    asked = file.message_type.add(name="HealthCheckRequest")
    asked.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    reply = file.message_type.add(name="HealthCheckResponse")
    status = reply.enum_type.add(name="ServingStatus")
    for name, number in (
        ("UNKNOWN", 0),
        ("SERVING", 1),
        ("NOT_SERVING", 2),
        ("SERVICE_UNKNOWN", 3),
    ):
        status.value.add(name=name, number=number)
    reply.field.add(
        name="status",
        number=1,
        type=field.TYPE_ENUM,
        label=field.LABEL_OPTIONAL,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(  # type: ignore[return-value]
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}"))
        for name in ("HealthCheckRequest", "HealthCheckResponse")
    )


HealthCheckRequest, HealthCheckResponse = _messages()


class Health:
    """``grpc.health.v1.Health``. The empty service is the server itself."""

    def __init__(self, services: Sequence[str]) -> None:
        self._status = {
            "": SERVING,
            "grpc.health.v1.Health": SERVING,
            **dict.fromkeys(services, SERVING),
        }
        self._changed = asyncio.Condition()

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self._check,
                    request_deserializer=HealthCheckRequest.FromString,
                    response_serializer=HealthCheckResponse.SerializeToString,
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch,
                    request_deserializer=HealthCheckRequest.FromString,
                    response_serializer=HealthCheckResponse.SerializeToString,
                ),
            },
        )

    async def stop(self) -> None:
        """Everything is NOT_SERVING from now on."""
        async with self._changed:
            self._status = dict.fromkeys(self._status, NOT_SERVING)
            self._changed.notify_all()

    async def _check(self, request: Any, context: Any) -> Any:
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        last = -1
        while True:
            status = self._status.get(request.service, UNKNOWN)
            if status != last:
                last = status
                yield HealthCheckResponse(status=status)
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._status.get(request.service, UNKNOWN) != last  # noqa: B023
                )


class Rpc:
    """The server. ``handlers`` are those of the dialects that speak gRPC, by service name."""

    def __init__(
        self,
        path: Path,
        handlers: dict[str, grpc.GenericRpcHandler] | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self.path = path
        self._handlers = handlers or {}
        self._interceptors = interceptors
        self._server: grpc.aio.Server | None = None
        self._health: Health | None = None

    async def start(self) -> None:
        """Listens on the socket, which only this user may open."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._health = Health(list(self._handlers))
        self._server = grpc.aio.server(options=OPTIONS, interceptors=list(self._interceptors))
        self._server.add_generic_rpc_handlers((self._health.handler(), *self._handlers.values()))
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        os.chmod(self.path, 0o600)

    async def stop(self, grace_s: float) -> None:
        if self._health is not None:
            await self._health.stop()
        if self._server is not None:
            await self._server.stop(grace_s)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
