"""What is to be built, as it lies on the user's disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from roost.errors import error

FILE, BESIDE = "Dockerfile", "roost.toml"
Place = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Recipe:
    dockerfile: str  # its text
    roost_toml: str | None
    context: Path | None  # the directory it copies from


def recipe(
    path: Place | None, dockerfile: Place | None, context: Place | None, roost_toml: str | None
) -> Recipe:
    """``path``: a directory, or a Dockerfile in the directory it copies from. ``dockerfile``: text, or a path-like
    object. Raises VALIDATION_FAILED where there is none."""
    below = Path(path) if path is not None else None
    file: Path | None = None
    if dockerfile is None:
        if below is None:
            below = Path.cwd()
        file = below if below.is_file() else below / FILE
        below = file.parent
    elif not isinstance(dockerfile, str):
        file = Path(dockerfile)
    if file is None:
        text = str(dockerfile)
    else:
        text = _read(file)
        if roost_toml is None and (beside := file.with_name(BESIDE)).is_file():
            roost_toml = _read(beside)
    if context is not None:
        below = Path(context)
    elif below is None and file is not None:
        below = file.parent
    if below is not None and not below.is_dir():
        raise error("VALIDATION_FAILED", f"{below} is no directory: the context is one.")
    return Recipe(text, roost_toml, below)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as failure:
        raise error(
            "VALIDATION_FAILED", f"There is no {path}: name the Dockerfile, or its directory."
        ) from failure
    except (OSError, UnicodeDecodeError) as failure:
        raise error("VALIDATION_FAILED", f"{path} cannot be read: {failure}.") from failure
