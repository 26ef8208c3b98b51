"""Every target over what is kept for it, and for a moment under the fuzzer, the same way each time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.target import HERE, NAMES, load

ROOT = HERE.parent.parent
RUNS = 1500
SLOW = {"context": 300, "parcel": 300, "untar": 200}  # each input is files
needs_fuzzer = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine"
)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_breaks_no_promise(name: str) -> None:
    target = load(name)
    for label, data in target.inputs():
        try:
            target.one(data)
        except Exception as failure:
            raise AssertionError(f"{name}: {label}") from failure


def _fuzzed(name: str, work: Path, *how: str, timeout_s: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "--work", str(work), *how]
    before = os.environ.get("PYTHONPATH", "")
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{before}",
        "PYTHONHASHSEED": "0",  # the order of sets is chance, too
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]


@needs_fuzzer
@pytest.mark.parametrize("name", NAMES)
def test_a_moment_under_the_fuzzer(name: str, tmp_path: Path) -> None:
    """From one seed of chance, so that only a change of the code changes what is found; by hand: ``scripts/fuzz``."""
    runs = SLOW.get(name, RUNS)
    _fuzzed(name, tmp_path, "--runs", str(runs), "--seed", "1", timeout_s=280)


@needs_fuzzer
@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", NAMES)
def test_long_under_the_fuzzer(name: str, tmp_path: Path) -> None:
    _fuzzed(name, tmp_path, "--seconds", "600", timeout_s=900)


def test_what_is_kept_has_a_target() -> None:
    """No corpus and no regression is left behind by a target that is called otherwise now."""
    kept = {path.stem for path in (HERE / "corpora").glob("*.txt")}
    kept |= {path.name for path in (HERE / "regressions").iterdir()}
    assert kept <= set(NAMES)
    assert all(
        any((HERE / "regressions" / each).iterdir())
        for each in kept
        if (HERE / "regressions" / each).is_dir()
    )
