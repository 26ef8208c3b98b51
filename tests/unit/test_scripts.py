"""What scripts/test answers with: what everybody, CI first, takes its word for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
say() { echo "==> $*"; }
die() { echo "error: $1" >&2; exit 1; }
need_root() { :; }; install_system() { :; }; install_tests() { :; }; install_python() { :; }
install_mitmproxy() { :; }; install_conformance() { :; }; build_agent() { :; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
"""
# Stands for pytest: the lane that FAILS names fails.
PYTHON = """#!/bin/sh
case " $* " in *" tests/unit "*) lane=units ;; *) lane=machines ;; esac
echo "these were the $lane"
[ "$FAILS" != "$lane" ] || { echo "FAILED tests/a/test_b.py::test_c - of the $lane"; exit 1; }
"""


@pytest.mark.parametrize("fails", ["", "units", "machines"])
def test_it_succeeds_if_and_only_if_all_tests_do(tmp_path: Path, fails: str) -> None:
    (tmp_path / "scripts/lib").mkdir(parents=True)
    (tmp_path / "agent").mkdir()
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts/test")
    (tmp_path / "scripts/lib/setup.sh").write_text(SETUP)
    for program, text in ((".venv/bin/python", PYTHON), ("bin/cargo", "#!/bin/sh\n")):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    kept = tmp_path / "tmp"
    kept.mkdir()
    done = subprocess.run(
        [tmp_path / "scripts/test"],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "TMPDIR": str(kept),
            "FAILS": fails,
        },
    )
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    assert "these were the machines" in done.stdout and "these were the units" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert (last == f"FAILED tests/a/test_b.py::test_c - of the {fails}") == bool(fails)
    assert not list(kept.iterdir())
