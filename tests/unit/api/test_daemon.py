"""The daemon's first steps: settings, lock, port; nothing is touched before they hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost import daemon
from roost.cli import _daemon
from roost.client import _config
from roost.errors import RoostError
from roost.settings import Settings
from tests.unit.api.kit import Served


def test_one_daemon_a_data_directory(tmp_path: Path) -> None:
    with daemon.lock(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        with pytest.raises(RoostError) as found, daemon.lock(tmp_path / "data"):
            pass
        assert found.value.code == "DATA_DIR_IN_USE"
        assert found.value.details["pid"] == str(os.getpid())
    with daemon.lock(tmp_path / "data"):
        pass


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RoostError) as found, daemon.lock(tmp_path / "file"):
        pass
    assert found.value.code == "CONFIG_INVALID"


def test_settings_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_PORT", "70000")
    with pytest.raises(RoostError) as found:
        daemon.load_settings()
    assert found.value.code == "CONFIG_INVALID" and "ROOST_PORT" in found.value.message


def test_root_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RoostError) as found:
        daemon.require_root(Settings.model_validate({"drivers": "qemu,runc"}))
    assert found.value.code == "FORBIDDEN" and "needs root" in found.value.message
    daemon.require_root(Settings.model_validate({"drivers": "fake"}))
    daemon.require_root(Settings.model_validate({}))  # there are workspaces among them


def test_places_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ROOST_DATA_DIR", "ROOST_RUN_DIR", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    of_root = Settings()
    assert (of_root.data_dir, of_root.run_dir) == (Path("/var/lib/roost"), Path("/run/roost"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    kept = tmp_path / ".local/share/roost"
    found = Settings()
    assert (found.data_dir, found.run_dir) == (kept, kept / "run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative, and so ignored")
    assert Settings().run_dir == kept / "run"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    found = Settings()
    assert (found.data_dir, found.run_dir) == (
        tmp_path / "elsewhere/roost",
        Path("/run/user/1000/roost"),
    )
    assert (_config.data_dir(), _daemon.run_dir()) == (found.data_dir, found.run_dir)
    monkeypatch.setenv("ROOST_DATA_DIR", "/told")
    assert Settings().data_dir == _config.data_dir() == Path("/told")


def test_urls() -> None:
    for host, url in (
        ("127.0.0.1", "http://127.0.0.1:7676"),
        ("0.0.0.0", "http://127.0.0.1:7676"),
        ("::1", "http://[::1]:7676"),
    ):
        assert daemon.url(Settings.model_validate({"host": host})) == url


async def test_a_port_in_use_is_told_before_anything_is_made(bare: Served, tmp_path: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "ROOST_DATA_DIR": str(tmp_path / "data"),
        "ROOST_RUN_DIR": str(tmp_path / "run"),
        "ROOST_PORT": str(bare.port),
    }
    done = subprocess.run(
        [sys.executable, "-m", "roost.daemon"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "PORT_IN_USE" in done.stderr and "Traceback" not in done.stderr
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["lock"]
    assert not (tmp_path / "run").exists()
