"""The real packages of other services, each version in an environment of its own: their pins clash with ours.

A worker is a process of that environment which runs snippets of Python that a test sends, in one namespace, so that
a test reads like a user's program: ``worker.run("box = Boxd()...")``, ``worker.value("box.id")``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")


class Raised(Exception):
    """What the foreign code raised: ``kind`` is the exception's class, ``kinds`` it and its bases by name."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        super().__init__(f"{said['kind']}: {said['text']}")
        self.kind: str = said["kind"]
        self.kinds: list[str] = said["kinds"]
        self.text: str = said["text"]
        self.fields: dict[str, Any] = said["fields"]


def environment(name: str) -> Path:
    """The interpreter of ``requirements/conformance-<name>.txt``, made when missing or when that file changed."""
    file = REPO / "requirements" / f"conformance-{name}.txt"
    place = REPO / ".venv-conformance" / name
    stamp, want = place / ".roost", hashlib.sha256(file.read_bytes()).hexdigest()
    python = place / "bin" / "python"
    if not (stamp.exists() and stamp.read_text() == want):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, "--require-hashes", "-r", str(file)], check=True, timeout=600)
        stamp.write_text(want)
    return python


class Worker:
    def __init__(self, python: Path, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(python), "-uP", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**_clean(), **env},
            text=True,
        )

    def run(self, code: str, timeout: float = 120, **given: Any) -> None:
        """Runs statements; top-level ``await`` works. Raises ``Raised``, TimeoutError."""
        self._ask({"run": code, "given": given}, timeout)

    def value(self, code: str, timeout: float = 120, **given: Any) -> Any:
        """The value of an expression, as JSON has it (bytes: ``{"bytes": base64}``, others: their ``repr``)."""
        return self._ask({"value": code, "given": given}, timeout)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, what: Mapping[str, Any], timeout: float) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        watch = threading.Timer(timeout, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise TimeoutError(f"the worker ended, or did not answer in {timeout:g} s")
        said = json.loads(line)
        if "raised" in said:
            raise Raised(said["raised"])
        return said.get("value")


def _clean() -> dict[str, str]:
    """Without what would lead a client elsewhere."""
    return {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("ROOST_", "DEDALUS_", "BOXD_", "PANDASTACK_", "E2B_", "PYTHON"))
        and "proxy" not in k.lower()
    }
