"""Recipes of an installation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.errors import RoostError
from roost.templates.library import Library


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in {"one": "FROM base\nRUN a\n", "two": "FROM one\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text(text)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/recipe.toml").write_text('name = "base"\nsuite = "bookworm"\n')
    (tmp_path / "agent").write_text("the agent")
    return tmp_path


def library(directory: Path) -> Library:
    storage = SimpleNamespace(pool=None, image_store=None)
    return Library(storage, directory, directory / "agent")  # type: ignore[arg-type]


def test_both_kinds(directory: Path) -> None:
    found = library(directory)
    assert found.names() == ["base", "one", "two"]
    assert found.recipe("base").dockerfile is None
    assert found.recipe("two").parents == ("one",)


def test_what_it_begins_from_counts(directory: Path) -> None:
    before = library(directory).recipe("two").digest
    assert library(directory).recipe("two").digest == before
    (directory / "one/Dockerfile").write_text("FROM base\nRUN b\n")
    assert library(directory).recipe("two").digest != before
    (directory / "one/Dockerfile").write_text("FROM base\nRUN a\n")
    (directory / "agent").write_text("another")
    assert library(directory).recipe("two").digest != before


def test_recipes_that_cannot_be(directory: Path) -> None:
    (directory / "one/Dockerfile").write_text("FROM two\n")
    (directory / "two/Dockerfile").write_text("FROM one\n")
    with pytest.raises(RoostError, match="begin from one another"):
        library(directory).recipe("two")
    (directory / "two/Dockerfile").write_text("FROM debian\n")
    with pytest.raises(RoostError, match="debian"):
        library(directory).recipe("two")
