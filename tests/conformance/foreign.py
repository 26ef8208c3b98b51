"""The real packages of other services, each version in an environment of its own: their pins clash with ours.

A worker is a process of that environment which runs snippets of Python that a test sends, in one namespace, so that
a test reads like a user's program: ``worker.run("box = Boxd()...")``, ``worker.value("box.id")``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
NEWEST = bool(os.environ.get("ROOST_CONFORMANCE_NEWEST"))
CLIENTS = ("boxd", "dedalus-sdk", "pandastack", "e2b", "e2b-code-interpreter")


class Raised(Exception):
    """What the foreign code raised: ``kind`` is the exception's class, ``kinds`` it and its bases by name."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        super().__init__(f"{said['kind']}: {said['text']}")
        self.kind: str = said["kind"]
        self.kinds: list[str] = said["kinds"]
        self.text: str = said["text"]
        self.fields: dict[str, Any] = said["fields"]


def environment(name: str) -> Path:
    """The interpreter of ``requirements/conformance-<name>.txt``, made when missing or when that file changed; with
    ROOST_CONFORMANCE_NEWEST of the newest release instead (``scripts/drift``)."""
    text = (REPO / "requirements" / f"conformance-{name}.txt").read_text()
    place = _place(name)
    stamp, want = place / ".roost", hashlib.sha256(text.encode()).hexdigest()
    python = place / "bin" / "python"
    if not (stamp.exists() and stamp.read_text() == want):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if NEWEST:
            # The client itself, not what it needs: whatever that is today comes with it.
            named = [n for n in CLIENTS if re.search(rf"^{re.escape(n)}==", text, re.MULTILINE)]
            command += named
        else:
            file = place / "requirements.txt"
            file.write_text(text)
            command += ["--require-hashes", "-r", str(file)]
        subprocess.run(command, check=True, timeout=600)
        stamp.write_text(want)
    return python


def node_environment(directory: Path) -> Path:
    """Where the npm packages of a suite's lock file are, its ``worker.mjs`` beside them; made when missing or when that
    file changed. Raises FileNotFoundError without npm."""
    place = _place(f"{directory.name}-node")
    lock = (directory / "package-lock.json").read_text()
    stamp = place / ".roost"
    if not (stamp.exists() and stamp.read_text() == lock):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copy(directory / "package.json", place)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if NEWEST:
            names = json.loads((directory / "package.json").read_text())["dependencies"]
            command[1:2] = ["install", *(f"{name}@latest" for name in names)]
        else:
            shutil.copy(directory / "package-lock.json", place)
        subprocess.run(command, cwd=place, check=True, timeout=600, stdout=subprocess.DEVNULL)
        stamp.write_text(lock)
    shutil.copy(directory / "worker.mjs", place)
    return place


def _place(name: str) -> Path:
    return REPO / ".venv-conformance" / (f"newest-{name}" if NEWEST else name)


class _Asked:
    """A process that is sent a JSON object a line, and answers each with one."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> None:
        self.env = {**clean(), **env}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.env,
            cwd=cwd,
            text=True,
        )

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


class Worker(_Asked):
    def __init__(self, python: Path, env: Mapping[str, str]) -> None:
        super().__init__([str(python), "-u", "-P", str(WORKER)], env, None)

    def run(self, code: str, timeout: float = 120, **given: Any) -> None:
        """Runs statements; top-level ``await`` works. Raises ``Raised``, TimeoutError."""
        self._ask({"run": code, "given": given}, timeout)

    def value(self, code: str, timeout: float = 120, **given: Any) -> Any:
        """The value of an expression, as JSON has it (bytes: ``{"bytes": base64}``, others: their ``repr``)."""
        return self._ask({"value": code, "given": given}, timeout)


class NodeWorker(_Asked):
    """The same of JavaScript: a snippet is the body of an async function that shares ``g`` with all others."""

    def __init__(self, place: Path, env: Mapping[str, str]) -> None:
        super().__init__(["node", str(place / "worker.mjs")], env, place)
        self.place = place

    def run(self, code: str, timeout: float = 120, **given: Any) -> Any:
        """What the snippet returns, as JSON. Raises ``Raised``, TimeoutError."""
        return self._ask({"run": code, "given": given}, timeout)


def clean() -> dict[str, str]:
    """Our environment without what would lead a client elsewhere."""
    ours = ("ROOST_", "DEDALUS_", "BOXD_", "PANDASTACK_", "E2B_", "PYTHON", "NODE_")
    return {
        k: v for k, v in os.environ.items() if not k.startswith(ours) and "proxy" not in k.lower()
    }


def main() -> None:
    """Installs all there are."""
    for file in sorted((REPO / "requirements").glob("conformance-*.txt")):
        environment(file.stem.removeprefix("conformance-"))
    for lock in sorted(Path(__file__).parent.glob("*/package-lock.json")):
        node_environment(lock.parent)


if __name__ == "__main__":
    main()
