"""Where a daemon keeps its things unless it is told: the system's places for root, the user's own for anybody else."""

from __future__ import annotations

import os
from pathlib import Path


def data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/roost")
    return _of_user("XDG_DATA_HOME", ".local/share") / "roost"


def run_dir() -> Path:
    """Of a user whom nobody made a directory for it, with the data: what a reboot leaves there is known as old."""
    if os.geteuid() == 0:
        return Path("/run/roost")
    own = _absolute("XDG_RUNTIME_DIR")
    return data_dir() / "run" if own is None else own / "roost"


def _of_user(variable: str, usual: str) -> Path:
    own = _absolute(variable)
    return Path.home() / usual if own is None else own


def _absolute(variable: str) -> Path | None:
    """The specification has relative ones ignored."""
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else None
