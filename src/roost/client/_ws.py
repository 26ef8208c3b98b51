"""What goes wrong on a WebSocket, made typed. Shared by both halves."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from roost.errors import RoostError, error, from_wire


def refused(url: str, exc: InvalidHandshake) -> RoostError:
    """The daemon's own error where its answer holds one."""
    if not isinstance(exc, InvalidStatus):
        return error("DAEMON_UNREACHABLE", f"{_host(url)} speaks no WebSocket ({exc}).")
    try:
        body = json.loads(exc.response.body or b"{}")
    except ValueError:
        body = {}
    return from_wire(exc.response.status_code, body if isinstance(body, dict) else {})


def unreachable(url: str, exc: Exception) -> RoostError:
    return error(
        "DAEMON_UNREACHABLE",
        f"No Roost daemon answers at {_host(url)} ({exc or type(exc).__name__}). Start it with "
        "`roost up` (or scripts/up), or set ROOST_URL.",
    )


def closed(exc: ConnectionClosed) -> RoostError:
    why = f": {exc.rcvd.reason or exc.rcvd.code}" if exc.rcvd is not None else ""
    return error("DAEMON_UNREACHABLE", f"The connection to the terminal was closed{why}.")


def _host(url: str) -> str:
    return urlsplit(url).netloc
