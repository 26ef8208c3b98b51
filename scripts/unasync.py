#!/usr/bin/env python3
"""Makes the sync halves from the async ones: ``_async`` -> ``_sync`` in ``src/roost/client`` and ``src/roost/tools``.

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
TREES = [
    (ROOT / f"src/roost/{part}/_async", ROOT / f"src/roost/{part}/_sync")
    for part in ("client", "tools")
]
HAND_WRITTEN = {"_forward.py", "_io.py", "_parallel.py", "_socket.py"}

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
    "handle_async_request": "handle_request",
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


def generate(source: Path, into: Path) -> None:
    for path in sorted(source.rglob("*.py")):
        if path.name in HAND_WRITTEN:
            continue
        target = into / path.relative_to(source)
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


def renew(source: Path, target: Path, check: bool) -> bool:
    """Whether the target is the source's twin; without ``check`` it is made so."""
    with tempfile.TemporaryDirectory() as made:
        generate(source, Path(made))
        new, old = tree(Path(made)), tree(target)
    stale = sorted(p for p in new.keys() | old.keys() if new.get(p) != old.get(p))
    if check:
        for path in stale:
            print(f"stale: {target / path}: run scripts/generate", file=sys.stderr)
        return not stale
    for path in old.keys() - new.keys():
        (target / path).unlink()
    for path, text in new.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text)
    return True


def main(check: bool) -> int:
    return (
        0 if min([renew(*each, check) for each in TREES]) else 1
    )  # all of them, whatever the first says


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
