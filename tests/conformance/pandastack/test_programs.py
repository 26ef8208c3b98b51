"""Programs as users of PandaStack wrote them, run as they stand but for URL and key."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.foreign import clean, environment
from tests.conformance.record import record
from tests.system.internet import INTERNET, Internet

from .conftest import HERE, PYTHON, PYTHON_VERSION

SOLVER = """
import argparse

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy")
    print({"greedy": 1.0, "random": 2.0, "exact": 3.0}[parser.parse_args().strategy])
"""
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "solver"
version = "1.0"
[project.scripts]
solver = "solver:main"
[tool.setuptools]
py-modules = ["solver"]
"""
PORT = 8181


def run(name: str, at: dict[str, str], **env: str) -> None:
    done = subprocess.run(
        [str(environment("pandastack")), str(HERE / "programs" / f"{name}.py")],
        env={**clean(), **at, **env}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done" in done.stdout
    record(PYTHON, PYTHON_VERSION, f"program: {name.replace('_', ' ')}", "works")


def test_a_session(at: dict[str, str], templates: Callable[[str], str]) -> None:
    templates("agent")
    run("session", at)


def test_browsing(at: dict[str, str], templates: Callable[[str], str]) -> None:
    templates("browser")
    run("browsing", at)


@pytest.fixture
def repository(internet: Internet, tmp_path: Path) -> Iterator[str]:
    """A repository on the tests' internet."""
    work, bare = tmp_path / "work", tmp_path / "www" / "solver.git"
    work.mkdir()
    (work / "solver.py").write_text(SOLVER)
    (work / "pyproject.toml").write_text(PROJECT)
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.test"]
    for command in (
        ["git", "init", "-q", "-b", "main", str(work)],
        ["git", "-C", str(work), "add", "."],
        ["git", "-C", str(work), *who, "commit", "-q", "-m", "first"],
        ["git", "clone", "-q", "--bare", str(work), str(bare)],
        ["git", "-C", str(bare), "update-server-info"],
    ):
        subprocess.run(command, env=env, check=True)
    serve = ["python3", "-m", "http.server", str(PORT), "--directory", str(bare.parent)]
    server = subprocess.Popen(
        ["ip", "netns", "exec", internet.name, *serve],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://{INTERNET}:{PORT}/solver.git"
    try:
        ask = ["curl", "-fsS", "-o", os.devnull, f"{url}/HEAD"]
        deadline = time.monotonic() + 60
        while subprocess.run(ask, check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)


def test_the_best_of_n(
    at: dict[str, str], templates: Callable[[str], str], repository: str
) -> None:
    templates("agent")
    run("best_of_n", at, REPOSITORY=repository)
