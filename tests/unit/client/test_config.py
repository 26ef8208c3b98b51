from __future__ import annotations

from pathlib import Path

import pytest

from roost import AuthError, InvalidRequestError
from roost.client._config import resolve


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("ROOST_URL", "ROOST_API_KEY", "ROOST_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROOST_DATA_DIR", str(tmp_path))
    return tmp_path


def test_arguments_then_environment_then_key_file(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "key").write_text("roost_file\n")
    assert resolve().url == "http://127.0.0.1:7676"
    assert resolve().api_key == "roost_file"
    monkeypatch.setenv("ROOST_PORT", "7777")
    assert resolve().url == "http://127.0.0.1:7777"
    monkeypatch.setenv("ROOST_URL", "https://roost.example/")
    monkeypatch.setenv("ROOST_API_KEY", "roost_env")
    assert resolve().url == "https://roost.example"
    assert resolve().api_key == "roost_env"
    assert resolve("http://10.0.0.1:1", "roost_arg").api_key == "roost_arg"
    assert resolve("http://10.0.0.1:1", "roost_arg").url == "http://10.0.0.1:1"


def test_the_key_file_is_never_sent_to_another_host(bare: Path) -> None:
    (bare / "key").write_text("roost_file")
    for url in ("http://localhost:1", "http://127.0.0.9:1", "http://[::1]:1"):
        assert resolve(url).api_key == "roost_file"
    with pytest.raises(AuthError, match="No key for"):
        resolve("http://10.0.0.1:7676")


def test_no_key_says_what_to_type(bare: Path) -> None:
    with pytest.raises(AuthError, match="roost up") as caught:
        resolve()
    assert caught.value.code == "AUTH_REQUIRED"


def test_an_unreadable_key_says_so(bare: Path) -> None:
    (bare / "key").mkdir()
    with pytest.raises(AuthError, match="cannot be read"):
        resolve()


def test_an_empty_key_file(bare: Path) -> None:
    (bare / "key").write_text("\n")
    with pytest.raises(AuthError, match="empty"):
        resolve()


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:7676", "http://"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        resolve(url, "k")


def test_a_key_with_a_line_end_inside_is_refused() -> None:
    with pytest.raises(AuthError):
        resolve(None, "a\r\nX-Evil: 1")
