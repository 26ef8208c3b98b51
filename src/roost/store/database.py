"""Transactions in threads: one writer, a few readers, one hop each way.

The writer takes what has queued up, runs each function in a savepoint and commits once (group commit): a
burst of writes costs one sync, a lone write pays no extra. An await on ``write`` returns only once its change
is durable. A caller that goes away does not take its write back.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from roost.clock import Clock
from roost.errors import UnavailableError
from roost.store import sqlite
from roost.store.upgrade import upgrade

T = TypeVar("T")
GROUP = 64
READERS = 2
QUICK_CHECK_BYTES = 512 * 2**20


class _Job(Generic[T]):
    __slots__ = ("fn", "future", "loop")

    def __init__(self, fn: Callable[[sa.Connection], T]) -> None:
        self.fn = fn
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()

    def settle(self, value: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._settle, value, error)

    def _settle(self, value: T, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


_Queue = queue.SimpleQueue["_Job[Any] | None"]


class Store:
    """Use ``open``. Functions given to ``read`` and ``write`` run in another thread: they touch nothing but
    the connection and what they were given, and may run again only if they never committed."""

    def __init__(self, engine: sa.Engine, clock: Clock) -> None:
        self.clock = clock
        self._engine = engine
        self._closed = False
        # Called in the loop, with what ``touched`` named, once it is durable.
        self.listener: Callable[[Iterable[str]], None] | None = None
        self._writes: _Queue = queue.SimpleQueue()
        self._reads: _Queue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write_loop, name="store-write", daemon=True),
            *(
                threading.Thread(target=self._read_loop, name=f"store-read-{n}", daemon=True)
                for n in range(READERS)
            ),
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, path: Path, clock: Clock, busy_timeout_s: float = 5.0) -> Store:
        """Makes or migrates the database (blocking: daemon start).

        Raises DATABASE_CORRUPT; DATABASE_UNAVAILABLE, not retryable, for a schema newer than this build.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sqlite.make_engine(path, busy_timeout_s)
        try:
            with engine.connect() as connection:
                if path.stat().st_size < QUICK_CHECK_BYTES:
                    sqlite.check(connection)
            upgrade(engine)
        except Exception as error:
            engine.dispose()
            _raise(error)
        path.chmod(0o600)
        return cls(engine, clock)

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        """``fn`` in a read transaction: one consistent view."""
        return await self._submit(self._reads, fn)

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        """``fn`` in a write transaction, durable on return; on any error nothing of it is kept.

        Raises DATABASE_UNAVAILABLE, STORAGE_FULL; whatever ``fn`` raises passes through
        (sqlalchemy.exc.IntegrityError included).
        """
        return await self._submit(self._writes, fn)

    @property
    def queued(self) -> int:
        """Writes that wait for their turn."""
        return self._writes.qsize()

    async def close(self) -> None:
        """Finishes what is queued, then refuses more."""
        if self._closed:
            return
        self._closed = True
        self._writes.put(None)
        for _ in range(READERS):
            self._reads.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._engine.dispose()

    async def _submit(self, to: _Queue, fn: Callable[[sa.Connection], T]) -> T:
        if self._closed:
            raise UnavailableError("The daemon is stopping.", code="SHUTTING_DOWN")
        job = _Job(fn)
        to.put(job)
        return await job.future

    # --- threads --------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        connection: sa.Connection | None = None
        while (job := self._writes.get()) is not None:
            jobs = [job]
            stop = False
            while len(jobs) < GROUP and not stop:
                try:
                    more = self._writes.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    stop = True
                else:
                    jobs.append(more)
            try:
                if connection is None:
                    connection = self._engine.connect().execution_options(roost_write=True)
                self._run(connection, jobs)
            except BaseException as error:
                for each in jobs:
                    each.settle(None, sqlite.typed(error))
                _drop(connection)
                connection = None
            if stop:
                break
        _drop(connection)

    def _run(self, connection: sa.Connection, jobs: list[_Job[Any]]) -> None:
        results: list[tuple[Any, BaseException | None]] = []
        with connection.begin():
            for job in jobs:
                try:
                    if len(jobs) == 1:
                        results.append((job.fn(connection), None))
                    else:
                        with connection.begin_nested():
                            results.append((job.fn(connection), None))
                except Exception as error:
                    if len(jobs) == 1 or sqlite.typed(error) is not error:
                        raise  # the whole group is lost, each caller is told
                    results.append((None, error))
        for job, (value, failure) in zip(jobs, results, strict=True):
            job.settle(value, failure)
        changed = connection.info.pop(_CHANGED, None)
        if changed and self.listener is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                jobs[0].loop.call_soon_threadsafe(self.listener, changed)

    def _read_loop(self) -> None:
        connection: sa.Connection | None = None
        while (job := self._reads.get()) is not None:
            try:
                if connection is None:
                    connection = self._engine.connect()
                with connection.begin():
                    value = job.fn(connection)
                job.settle(value, None)
            except BaseException as error:
                typed = sqlite.typed(error)
                job.settle(None, typed)
                if typed is not error:
                    _drop(connection)
                    connection = None
        _drop(connection)


def touched(connection: sa.Connection, name: str) -> None:
    """Has the listener told of ``name`` once this transaction is durable (or, for nothing, undone)."""
    connection.info.setdefault(_CHANGED, set()).add(name)


_CHANGED = "roost-changed"


def _drop(connection: sa.Connection | None) -> None:
    if connection is not None:
        try:
            connection.close()
        except Exception:  # a broken connection cannot be closed better than this
            connection.invalidate()


def _raise(error: Exception) -> None:
    typed = sqlite.typed(error)
    if typed is error:
        raise error
    raise typed from error
