"""A port of a machine as a port here: the async one, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Self

from roost.client._async._forward import AsyncForward
from roost.client._config import Config
from roost.errors import RoostError


class Forward:
    """``port`` is known once it is entered. ``on_error`` hears, in the forward's thread, why a connection could not
    be made or broke."""

    def __init__(
        self, config: Config, machine_id: str, remote: int, local: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self._forward = AsyncForward(config, machine_id, remote, local, host)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self.remote = remote
        self.host = host
        self.port = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host}:{self.port} -> {self.remote}>"

    @property
    def on_error(self) -> Callable[[RoostError], None]:
        return self._forward.on_error

    @on_error.setter
    def on_error(self, heard: Callable[[RoostError], None]) -> None:
        self._forward.on_error = heard

    def __enter__(self) -> Self:
        """Raises ConflictError where the port here is taken."""
        begun: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(begun,), daemon=True)
        self._thread.start()
        self.port = begun.result()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Listens no more and cuts what is open."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(10)

    def _run(self, begun: concurrent.futures.Future[int]) -> None:
        asyncio.run(self._serve(begun))

    async def _serve(self, begun: concurrent.futures.Future[int]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._forward.__aenter__()
        except BaseException as exc:
            begun.set_exception(exc)
            return
        begun.set_result(self._forward.port)
        try:
            await self._stop.wait()
        finally:
            await self._forward.aclose()
