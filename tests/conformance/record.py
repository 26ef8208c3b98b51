"""What each test found of a client's method, from which ``docs/compatibility.md`` is made (``scripts/compatibility``).

A run adds lines of JSON to the file that ROOST_COMPATIBILITY names; without it nothing is kept.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

Outcome = Literal["works", "differs", "not served"]


def record(client: str, version: str, method: str, outcome: Outcome, note: str = "") -> None:
    """``client``: as its users name it, with the registry ("dedalus-sdk (PyPI)"). ``note``: how it differs, or why it
    is not served. Called at a test's end, when everything held."""
    path = os.environ.get("ROOST_COMPATIBILITY")
    if path is None:
        return
    line = {
        "client": client,
        "version": version,
        "method": method,
        "outcome": outcome,
        "note": note,
    }
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")
