"""The program of issue 7 that E2B's users would run, as it stands but for URL and key."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conformance.foreign import clean, environment
from tests.conformance.record import record

from .conftest import PYTHON, VERSIONS


def test_code_interpreter_style(at: dict[str, str]) -> None:
    program = Path(__file__).with_name("program_code_interpreter.py")
    ran = subprocess.run(
        [environment("e2b"), "-P", program],
        env={**clean(), **at},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0 and ran.stdout == "done\n", ran.stderr[-4000:]
    record(PYTHON, VERSIONS[PYTHON], "program: code-interpreter style", "works")
