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


def test_up_beside_a_daemon_of_anothers_names_another_port(
    stub: Stub, roost: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.on("GET", "/healthz", lambda _: {"status": "ok"})
    stub.on("GET", "/v1/host", lambda _: Answer(wire("AUTH_INVALID", "No such key."), 401))
    assert roost("up") != 0
    seen = capsys.readouterr()
    assert seen.out == "" and "[PORT_IN_USE]" in seen.err
    assert "hint: export ROOST_PORT=7686; roost up\n" in seen.err
