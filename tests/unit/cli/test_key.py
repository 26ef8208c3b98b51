"""``roost key show``: what is in use here, in the form that other services' clients read."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from roost.cli.key import CLIENTS, complete_client

SECRET = "0123456789abcdef" * 4


@pytest.mark.parametrize("client", list(CLIENTS))
def test_shown_as_a_client_reads_it(
    client: str,
    roost: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROOST_URL", "http://127.0.0.1:7000/")
    monkeypatch.setenv("ROOST_API_KEY", f"roost_{SECRET}")
    assert roost("key", "show", "--as", client) == 0
    said = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    prefix = CLIENTS[client][0]
    assert said[f"{client.upper()}_API_KEY"] == f"{prefix}_{SECRET}"
    urls = [text for name, text in said.items() if not name.endswith("KEY")]
    assert urls and all(text.startswith("http://127.0.0.1:7000") for text in urls)
    assert roost("key", "show", "--as", client, "--json") == 0
    assert json.loads(capsys.readouterr().out) == said


def test_one_that_nobody_knows(
    roost: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROOST_API_KEY", f"roost_{SECRET}")
    assert roost("key", "show", "--as", "e3b") != 0
    said = capsys.readouterr()
    assert "dedalus, boxd, pandastack, e2b" in said.err and SECRET not in said.out + said.err
    assert complete_client("e") == ["e2b"]
