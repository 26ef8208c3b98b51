"""Brings a database to this build's schema. Alembic is imported only when there is something to do."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from roost.errors import UnavailableError

HEAD = "0019"  # a test holds it to the newest file in migrations/versions
MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(engine: sa.Engine) -> None:
    """Raises DATABASE_UNAVAILABLE for a schema this build does not know."""
    with engine.connect() as connection:
        found = revision(connection)
    if found == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise UnavailableError(
            f"The database has schema {found}, which this build (schema {HEAD}) does not know: it was "
            "written by a newer Roost. Start that one, or restore the backup made before it.",
            code="DATABASE_UNAVAILABLE",
            retryable=False,
            details={"found": found, "known": HEAD},
        )
    with engine.connect().execution_options(roost_write=True) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    value = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return None if value is None else str(value)
