"""What is SQLite's own: the engine's set-up and the meaning of its errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from roost.errors import CapacityError, RoostError, UnavailableError


def make_engine(path: Path, busy_timeout_s: float) -> sa.Engine:
    """WAL, durable at commit; every connection is its caller's own (each thread keeps one)."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "timeout": busy_timeout_s},
    )

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: sqlite3.Connection, _record: Any) -> None:
        dbapi.isolation_level = None  # BEGIN is ours, below
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "trusted_schema=OFF",
        ):
            dbapi.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writing = connection.get_execution_options().get("roost_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def check(connection: sa.Connection) -> None:
    """Raises DATABASE_CORRUPT if the file is not a whole database."""
    found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if found != "ok":
        raise _corrupt(str(found))


def typed(error: BaseException) -> BaseException:
    """The Roost error of a database error; anything else as it is (integrity errors too)."""
    original = getattr(error, "orig", error)
    if not isinstance(original, sqlite3.Error) or isinstance(original, sqlite3.IntegrityError):
        return error
    code = getattr(original, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _corrupt(str(original))
    if primary == sqlite3.SQLITE_FULL:
        return CapacityError(
            "The disk that holds Roost's database is full: free some space under data_dir, then retry.",
            code="STORAGE_FULL",
        )
    if isinstance(original, sqlite3.OperationalError):
        return UnavailableError(
            f"The database cannot be used now ({original}); nothing was changed. Retry.",
            code="DATABASE_UNAVAILABLE",
            details={"sqlite": getattr(original, "sqlite_errorname", None)},
        )
    return error


def _corrupt(text: str) -> RoostError:
    return UnavailableError(
        f"Roost's database is damaged ({text}). Stop the daemon and restore roost.db from a backup; "
        "machines' disks in the pool are not touched by this.",
        code="DATABASE_CORRUPT",
    )
