"""``roost mcp`` on the command line: what it refuses, and what it costs those who do not call it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from roost.cli._app import run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--own-key"], "go with --http"),
        (["--allow-host", "x"], "go with --http"),
        (["--http", "--own-key", "--host", "0.0.0.0"], "whoever reaches the port"),
    ],
)
def test_what_makes_no_sense(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["mcp", *options]) == 2
    assert said in capsys.readouterr().err


def test_people_are_told_what_it_is_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run(["mcp"]) == 2
    assert "--http" in capsys.readouterr().err


def test_no_other_command_loads_the_protocol() -> None:
    code = (
        "import sys; from roost.cli._app import run; run(['mcp', '--help']); run(['ls', '--help'])\n"
        "print(sorted({'mcp', 'starlette', 'uvicorn', 'anyio'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
