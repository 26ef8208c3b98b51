"""gRPC channels to agents, tuned for both a keystroke and a gigabyte."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import grpc

MESSAGE_BYTES = 4 * 2**20
_SLACK = 64 * 1024
WINDOW = 4 * 2**20

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES + _SLACK),
    ("grpc.max_send_message_length", MESSAGE_BYTES + _SLACK),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    # Never shared: a new channel must not inherit an old one's reconnect pause.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
    # A fixed window: probing for one costs pings, and the bound on what a reader that stops holds.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW),
    ("grpc.http2.max_frame_size", 256 * 1024),
    ("grpc.http2.write_buffer_size", 1024 * 1024),
    ("grpc.http2.max_pings_without_data", 0),
    # A frozen or dead peer that TCP does not report.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 0),
]


# Despite its name what one attempt to connect may take, the agent's first HTTP/2 frame included. Behind a
# dialler that is a guest's, which may be emulated, on a busy host and just woken.
_BEHIND_DIALLER: tuple[str, str | int] = ("grpc.min_reconnect_backoff_ms", 10_000)


def open_channel(target: str) -> grpc.aio.Channel:
    options = OPTIONS
    if target.startswith("unix:"):
        name = _BEHIND_DIALLER[0]
        options = [o for o in OPTIONS if o[0] != name] + [_BEHIND_DIALLER]
    return grpc.aio.insecure_channel(target, options=options)


async def listening(target: str, timeout_s: float) -> bool:
    """Whether something accepts connections there now; the connection is closed at once.

    For gRPC a refused connection costs a pause of 100 ms or more before the next attempt; asked this way it
    costs nothing. A target of another form than ``unix:path`` and ``address:port`` counts as listening.
    """
    loop = asyncio.get_running_loop()
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("//") else path
        sock = socket.socket(socket.AF_UNIX)
        address: str | tuple[str, int] = path
    else:
        host, _, port = target.rpartition(":")
        if not port.isdigit() or not host:
            return True
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        address = (host, int(port))
    sock.setblocking(False)
    with contextlib.closing(sock):
        try:
            await asyncio.wait_for(loop.sock_connect(sock, address), timeout_s)
        except OSError:  # TimeoutError is one
            return False
    return True
