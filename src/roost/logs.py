"""Logs: JSON lines in ``data_dir/logs/daemon.log`` (rotated), and for people on stderr.

Written by a thread of their own: a request never waits for a disk. When that falls too far behind, lines are
dropped and counted. Keys are masked wherever they stand.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import queue
import re
import sys
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

FILE_BYTES = 20 * 2**20
FILES = 5
BACKLOG = 10_000
_KEY = re.compile(r"\b([a-z][a-z0-9]{0,15})_[0-9a-fA-F]{64}\b|\b[0-9a-f]{64}\b")
_SECRETS = frozenset(
    {"authorization", "api_key", "token", "secret", "password", "key", "env", "cookie"}
)
_QUIET = ("uvicorn.error", "uvicorn.access", "asyncio", "alembic", "sqlalchemy.engine", "httpx")


class Logs:
    """The daemon's logging; ``close`` writes what is left."""

    def __init__(self, directory: Path, level: str) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = _File(directory / "daemon.log")
        number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        self._queue: queue.Queue[logging.LogRecord] = queue.Queue(BACKLOG)
        handlers: list[logging.Handler] = [self._file]
        self._file.setFormatter(_formatter(structlog.processors.JSONRenderer(default=str)))
        handlers.append(_console(sys.stderr))
        self._listener = logging.handlers.QueueListener(
            self._queue, *handlers, respect_handler_level=True
        )
        root = logging.getLogger()
        for old in list(root.handlers):
            root.removeHandler(old)
        root.addHandler(_Handover(self._queue))
        root.setLevel(number)
        for name in _QUIET:
            logging.getLogger(name).setLevel(max(number, logging.WARNING))
        # uvicorn tells of every broken answer; the gateway has said it already, with a cause.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        # grpcio prints what an agent sent that cannot be parsed; the client raises it.
        logging.getLogger("grpc._common").setLevel(logging.CRITICAL)
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.contextvars.merge_contextvars,
                *_SHARED,
                structlog.processors.format_exc_info,
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=True,
        )
        self._listener.start()

    def reopen(self) -> None:
        """After the file was moved away (SIGHUP)."""
        self._file.reopen()

    def close(self) -> None:
        self._listener.stop()
        self._file.close()


class _File(logging.handlers.RotatingFileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")

    def reopen(self) -> None:
        self.acquire()
        try:
            if self.stream is not None:
                self.stream.close()
            self.stream = self._open()
        finally:
            self.release()


class _Handover(logging.handlers.QueueHandler):
    """To the writing thread; never waits."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.bound = structlog.contextvars.get_contextvars()  # of who logs; the writer has none
        if not isinstance(record.msg, dict):  # a library's, not structlog's
            record.msg = record.getMessage()
            record.args = None
            if record.exc_info:
                record.trace = logging.Formatter().formatException(record.exc_info)
        record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


def _mask(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if name in _SECRETS:
            event[name] = "***"
        elif isinstance(value, str) and len(value) > 63:
            event[name] = _KEY.sub("***", value)
    return event


_SHARED: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _bound(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Which request and machine a line is about, and its traceback, where it came through the standard library's
    loggers."""
    record = event.get("_record")
    for name, value in getattr(record, "bound", {}).items():
        event.setdefault(name, value)
    if trace := getattr(record, "trace", None):
        event["exception"] = trace
    return event


def _formatter(renderer: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_bound, *_SHARED],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _mask,
            renderer,
        ],
    )


def _console(stream: TextIO) -> logging.Handler:
    """systemd's journal and a terminal get everything; a plain file or pipe only what went wrong, for the
    rest is in the log."""
    handler = logging.StreamHandler(stream)
    journal = bool(os.environ.get("JOURNAL_STREAM"))
    if journal:
        handler.setFormatter(_formatter(_journal))
    else:
        # Values quoted as Python does: what is a stranger's shall not steer a terminal.
        shown = structlog.dev.ConsoleRenderer(colors=stream.isatty(), repr_native_str=True)
        handler.setFormatter(_formatter(shown))
        if not stream.isatty():
            handler.setLevel(logging.WARNING)
    return handler


def _journal(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """The journal has its own times; it reads the level from ``<n>``, of each line. What is said may be a stranger's:
    it begins no line and no field of its own, and a traceback's lines are set in."""
    level = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
    event.pop("timestamp", None)
    number = level.get(str(event.pop("level", "info")), 6)
    text = _inert(str(event.pop("event", "")))
    trace = event.pop("exception", None)
    fields = [f"{name}={_value(value)}" for name, value in event.items() if value is not None]
    lines = [" ".join([text, *fields])]
    if trace:
        lines += [f"  {_inert(line)}" for line in str(trace).split("\n")]
    return "\n".join(f"<{number}>{line}" for line in lines)


def _inert(text: str) -> str:
    """What is no printable character (line ends, escape sequences, U+2028) as it would be written in JSON."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _value(value: Any) -> str:
    """In quotes where it could be taken for more than one field."""
    text = str(value)
    if text.isprintable() and not any(each in text for each in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
