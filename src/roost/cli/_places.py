"""The two sides of a copy: a local path, ``MACHINE:/path`` (of a workspace ``MACHINE:./path``, too), or ``-``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from roost.errors import error


@dataclass(frozen=True, slots=True)
class Local:
    path: Path


@dataclass(frozen=True, slots=True)
class Remote:
    machine: str
    path: PurePosixPath
    into: bool  # written with a slash at its end: a directory to put things into


@dataclass(frozen=True, slots=True)
class Standard:
    """stdin or stdout."""


Place = Local | Remote | Standard


def parse(text: str) -> Place:
    """``machine:/path`` is remote when no slash comes before its first ``:/``; keys may hold colons. So is
    ``machine:./path``, which only a machine that is a directory of its host understands.

    Raises InvalidRequestError for another remote path.
    """
    if text == "-":
        return Standard()
    for begins in (":/", ":./"):
        machine, colon, _ = text.partition(begins)
        if colon and machine and "/" not in machine:
            path = text[len(machine) + 1 :]
            return Remote(machine, PurePosixPath(path), path.endswith("/"))
    machine, colon, path = text.partition(":")
    if colon and machine and "/" not in machine and not os.path.lexists(text):
        raise error(
            "INVALID_PATH",
            f"A path in a machine is absolute: {machine}:/{path.lstrip('~/')} rather than {text}. "
            f"(For a local file of that name: ./{text})",
        )
    return Local(Path(text))
