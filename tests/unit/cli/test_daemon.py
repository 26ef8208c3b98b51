"""The command line's own daemon, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from roost import defaults
from roost.cli import _daemon
from tests.unit.client.stub import Answer, Stub, wire


@pytest.mark.parametrize("others", [False, True])
def test_a_daemon_of_another_user_is_not_ours(
    others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's `roost down` does not end it: neither was told where to keep its things."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(_daemon, "data_dir", defaults.data_dir)
    process = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60; :", "roost.daemon"],
        env={},
        user=65534 if others else None,
        start_new_session=True,
    )
    try:
        while b"roost.daemon" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        assert _daemon._is_daemon(process.pid) is not others
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_settings_that_a_running_daemon_never_heard_of_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By what they mean, not how they are written; what is the client's alone is none."""
    its = {"ROOST_DATA_DIR": str(tmp_path), "ROOST_PROFILE": "indie", "ROOST_HOST_CA": "1"}
    ours = {
        "ROOST_DATA_DIR": f"{tmp_path}/.",
        "ROOST_RUN_DIR": defaults.run_dir(),
        "ROOST_PROFILE": "managed",
        "ROOST_HOST_CA": "true",
        "ROOST_PORT": "7676",
        "ROOST_UID_BASE": "none",
        "ROOST_EGRESS_PROXY": "http://me:secret@192.0.2.1:1",
        "ROOST_API_KEY": "roost_1",
    }
    for name, value in ours.items():
        monkeypatch.setenv(name, str(value))
    assert _daemon.unheard() == []  # none runs
    process = subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60; :", "roost.daemon"], env=its, start_new_session=True
    )
    try:
        while b"roost.daemon" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        assert _daemon.unheard() == ["ROOST_EGRESS_PROXY", "ROOST_PROFILE", "ROOST_UID_BASE"]
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_up_says_which_settings_come_too_late(
    stub: Stub,
    roost: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub.on("GET", "/healthz", lambda _: {"status": "ok"})
    stub.on("GET", "/v1/host", lambda _: {"rungs": [], "default_driver": "gvisor"})
    stub.on("GET", "/v1/templates/base", lambda _: {"name": "base", "status": "ready"})
    assert roost("up", "--no-machine") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_daemon, "unheard", lambda: ["ROOST_PROFILE"])
    assert roost("up", "--no-machine") == 0
    said = capsys.readouterr()
    assert "ROOST_PROFILE" in said.err and "roost down && roost up" in said.err
    assert "runs already" in said.out


def test_up_beside_a_daemon_of_anothers_names_another_port(
    stub: Stub, roost: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.on("GET", "/healthz", lambda _: {"status": "ok"})
    stub.on("GET", "/v1/host", lambda _: Answer(wire("AUTH_INVALID", "No such key."), 401))
    assert roost("up") != 0
    seen = capsys.readouterr()
    assert seen.out == "" and "[PORT_IN_USE]" in seen.err
    assert "hint: export ROOST_PORT=7686; roost up\n" in seen.err
