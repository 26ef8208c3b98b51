"""What a recipe says, and the digest that changes when anything of it does."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from roost.errors import InvalidRequestError

# Counted up when the builder makes other images of the same recipe.
_BUILDER = "1"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.:-]*")


class Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    suite: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    components: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = ()
    size_gib: int = Field(10, ge=1, le=1024)
    config: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("lower-case letters, digits and dashes")
        return value

    @field_validator("packages", "components")
    @classmethod
    def _packages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for package in value:
            if not _PACKAGE.fullmatch(package):
                raise ValueError(f"not a package's name: {package!r}")
        return tuple(sorted(set(value)))


def load(directory: Path) -> Recipe:
    """Raises CONFIG_INVALID, naming the file and what is wrong with it."""
    path = directory / "recipe.toml"
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text()))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"{path}: {exc}", code="CONFIG_INVALID") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"{path}: {where}: {first['msg']}", code="CONFIG_INVALID"
        ) from exc
    if recipe.name != directory.name:
        raise InvalidRequestError(
            f"{path}: the name is {recipe.name!r}, its directory's {directory.name!r}.",
            code="CONFIG_INVALID",
        )
    return recipe


def digest(directory: Path) -> str:
    """Of the recipe and every file beside it: names, modes that count, contents."""
    total = hashlib.sha256(f"roost-recipe {_BUILDER}\n".encode())
    for path in sorted(directory.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            kind, content = "link", path.readlink().as_posix().encode()
        else:
            kind = "program" if path.stat().st_mode & 0o100 else "file"
            content = path.read_bytes()
        total.update(f"{kind} {name} {len(content)}\n".encode())
        total.update(content)
    return f"sha256:{total.hexdigest()}"
