#!/usr/bin/env python3
"""Makes the sync SDK from the async one: ``src/roost/client/_async`` -> ``src/roost/client/_sync``.

``--check`` changes nothing and fails when the trees differ in any way: content, missing files, files
that have no source. Files in ``HAND_WRITTEN`` are written by hand on both sides.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/roost/client/_async"
TARGET = ROOT / "src/roost/client/_sync"
HAND_WRITTEN = {"_io.py", "_socket.py"}

DROPPED = {"async", "await"}
NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "aclose": "close",
    "aiter_raw": "iter_raw",
    "anext": "next",
    "aread": "read",
    "asynccontextmanager": "contextmanager",
    "_async": "_sync",
}
TEXT = re.compile(r"\b(?:async (?=with|for|def)|await )|\bAsync(?=[A-Z])|\b_async\b")


def name(text: str) -> str:
    if text.startswith("Async") and text[5:6].isupper():
        return text[5:]
    if text.startswith("StopAsync"):
        return "Stop" + text[9:]
    return NAMES.get(text, text)


def prose(text: str) -> str:
    return TEXT.sub(lambda found: "_sync" if found[0] == "_async" else "", text)


def transform(source: str) -> str:
    """The sync twin of async source, token by token; layout is left to the formatter."""
    lines = source.splitlines(keepends=True)
    out: list[str] = []
    row, column = 1, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        start_row, start_column = token.start
        while row < start_row:
            out.append(lines[row - 1][column:])
            row, column = row + 1, 0
        gap = lines[row - 1][column:start_column] if row <= len(lines) else ""
        out.append(gap)
        row, column = token.end
        if token.type == tokenize.NAME and token.string in DROPPED:
            column += 1  # and the space after it
            continue
        if token.type == tokenize.NAME:
            out.append(name(token.string))
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            out.append(prose(token.string))
        else:
            out.append(token.string)
    return "".join(out)


def generate(into: Path) -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name in HAND_WRITTEN:
            continue
        target = into / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(transform(path.read_text()))
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml")]
    first = ["check", "--quiet", "--isolated", "--select=I,UP028,C416", "--fix", "--unsafe-fixes"]
    first += ["--config", "lint.isort.known-first-party=['roost']", "--line-length=100"]
    subprocess.run([*ruff, *first, str(into)], check=True)
    subprocess.run([*ruff, "format", "--quiet", *config, str(into)], check=True)


def tree(root: Path) -> dict[Path, str]:
    """Every Python file below it that is generated."""
    files = (p for p in root.rglob("*.py") if p.name not in HAND_WRITTEN)
    return {p.relative_to(root): p.read_text() for p in files}


def main(check: bool) -> int:
    with tempfile.TemporaryDirectory() as made:
        generate(Path(made))
        new, old = tree(Path(made)), tree(TARGET)
        stale = sorted(str(p) for p in new.keys() | old.keys() if new.get(p) != old.get(p))
        if check:
            for path in stale:
                print(
                    f"stale: src/roost/client/_sync/{path}: run scripts/generate", file=sys.stderr
                )
            return 1 if stale else 0
        for path in old.keys() - new.keys():
            (TARGET / path).unlink()
        for path, text in new.items():
            (TARGET / path).parent.mkdir(parents=True, exist_ok=True)
            (TARGET / path).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
