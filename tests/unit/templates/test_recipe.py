from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.errors import InvalidRequestError
from roost.templates import recipe
from roost.templates.library import shipped_directory

TEXT = 'name = "box"\nsuite = "bookworm"\npackages = ["git", "curl"]\n'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "box"
    (path / "files/etc").mkdir(parents=True)
    (path / "recipe.toml").write_text(TEXT)
    (path / "files/etc/motd").write_text("hello\n")
    return path


def test_a_recipe_is_read(directory: Path) -> None:
    found = recipe.load(directory)
    assert found.packages == ("curl", "git")
    assert found.size_gib == 10


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name =",
        TEXT + "unknown = 1\n",
        TEXT.replace("box", "other"),
        TEXT.replace('"git"', '"git --hook=x"'),
        TEXT.replace("bookworm", "-rf"),
        TEXT + "size_gib = 0\n",
    ],
)
def test_what_is_wrong_is_named_with_its_file(directory: Path, text: str) -> None:
    (directory / "recipe.toml").write_text(text)
    with pytest.raises(InvalidRequestError) as caught:
        recipe.load(directory)
    assert caught.value.code == "CONFIG_INVALID"
    assert "recipe.toml" in caught.value.message


def test_the_digest_changes_with_anything_that_reaches_the_image(directory: Path) -> None:
    seen = {recipe.digest(directory)}
    motd = directory / "files/etc/motd"
    motd.write_text("hello!\n")
    seen.add(recipe.digest(directory))
    os.chmod(motd, 0o755)
    seen.add(recipe.digest(directory))
    motd.rename(directory / "files/etc/issue")
    seen.add(recipe.digest(directory))
    (directory / "recipe.toml").write_text(TEXT + "\n")
    seen.add(recipe.digest(directory))
    assert len(seen) == 5


def test_the_digest_does_not_change_with_time_or_umask(directory: Path) -> None:
    before = recipe.digest(directory)
    os.utime(directory / "recipe.toml", (1, 1))
    os.chmod(directory / "recipe.toml", 0o600)
    assert recipe.digest(directory) == before


def test_the_shipped_recipes_are_sound() -> None:
    names = [p.parent.name for p in shipped_directory().glob("*/recipe.toml")]
    assert "base" in names
    for name in names:
        recipe.load(shipped_directory() / name)
