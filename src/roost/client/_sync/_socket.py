"""A WebSocket as the terminal needs it. Written by hand here and in the async half."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from roost.client import _tls as tls
from roost.client._ws import closed, refused, unreachable

MAX_MESSAGE = 8 << 20


class Socket:
    """One thread may send while another receives."""

    def __init__(self, connection: ClientConnection, stack: ExitStack) -> None:
        self._connection = connection
        self._stack = stack

    @classmethod
    def connect(cls, url: str, headers: Mapping[str, str]) -> Socket:
        """Raises RoostError: what the daemon said, or that there is none."""
        stack = ExitStack()
        try:
            connection = stack.enter_context(
                connect(
                    url,
                    additional_headers=dict(headers),
                    max_size=MAX_MESSAGE,
                    proxy=None,
                    ssl=tls.context(url),
                )
            )
        except InvalidHandshake as exc:
            raise refused(url, exc) from exc
        except (OSError, TimeoutError) as exc:
            raise unreachable(url, exc) from exc
        return cls(connection, stack)

    def send(self, text: str) -> None:
        try:
            self._connection.send(text)
        except ConnectionClosed as exc:
            raise closed(exc) from exc

    def receive(self, timeout: float | None = None) -> str | None:
        """The next text message; None when none came within ``timeout`` s."""
        try:
            message = self._connection.recv(timeout=timeout)
        except TimeoutError:
            return None
        except ConnectionClosed as exc:
            raise closed(exc) from exc
        return message if isinstance(message, str) else message.decode("utf-8", "replace")

    def close(self) -> None:
        self._stack.close()
