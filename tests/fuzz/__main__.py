"""``python -m tests.fuzz NAME [--seconds N | --runs N] [--keep]``: one target under the fuzzer.

What is found on the way is kept in ``.fuzz/NAME``; an input that breaks a promise is left beside it. ``--keep`` fuzzes
nothing: of what was found it writes the inputs that lead where no smaller one does into the corpus of the repository.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gc
import sys
import tempfile
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import atheris

from tests.fuzz.target import NAMES, Target, load

WORK = Path(".fuzz")
KEPT_BYTES = 1024  # of one input; longer ones are seldom worth their place
KEPT = 200
SLOW_S = 10  # for one input, then it counts as a hang
MEMORY_MIB = 2048

Step = tuple[str, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--runs", type=int, default=-1)
    parser.add_argument("--seed", type=int, default=0, help="of chance; 0 is another one each time")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--keep", action="store_true")
    said = parser.parse_args()
    target = load(said.name)
    found: Path = said.work / target.name
    found.mkdir(parents=True, exist_ok=True)
    if said.keep:
        keep(target, found)
        return
    with tempfile.TemporaryDirectory() as directory:
        given = Path(directory) / "given"
        given.mkdir()
        lay_out(target, given)
        words = Path(directory) / "words"
        words.write_text("".join(f'"{escaped(word)}"\n' for word in (*target.words, b"\0")))
        fuzz(
            target,
            f"-max_len={target.longest}",
            f"-dict={words}",
            f"-max_total_time={said.seconds}",
            f"-runs={said.runs}",
            f"-seed={said.seed}",
            f"-artifact_prefix={said.work}/{target.name}-",
            str(found),
            str(given),
        )


def fuzz(target: Target, *arguments: str) -> None:
    """Ends the process."""
    instrument(target.covers)
    bounds = (f"-timeout={SLOW_S}", f"-rss_limit_mb={MEMORY_MIB}", "-print_final_stats=1")
    atheris.Setup([sys.argv[0], *bounds, *arguments], target.one)
    atheris.Fuzz()


def instrument(covers: tuple[str, ...]) -> None:
    """Only what is looked at: all that a target imports would take half a minute."""
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and _within(str(each.__module__), covers):
            with contextlib.suppress(Exception):  # one that cannot be rewritten runs as it is
                atheris.instrument_func(each)


def _within(module: str, covers: tuple[str, ...]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in covers)


def lay_out(target: Target, directory: Path) -> None:
    for number, (_, data) in enumerate(target.inputs()):
        (directory / f"{number:06}").write_bytes(data)


def keep(target: Target, found: Path) -> None:
    """The smallest inputs first; each that leads where none before it led is kept."""
    before = {data for _, data in target.inputs()}
    inputs = before | {path.read_bytes() for path in found.iterdir()}
    known = set(target.seeds)
    seen: set[Step] = set()
    for data in known:
        seen |= steps(target, data)
    kept = []
    for data in sorted(inputs - known, key=lambda each: (len(each), each)):
        if len(data) <= KEPT_BYTES and (way := steps(target, data) - seen):
            seen |= way
            kept.append(data)
    lines = [base64.b64encode(data).decode() for data in kept[:KEPT]]
    if lines:
        target.corpus.write_text("".join(f"{line}\n" for line in lines))
    print(f"{target.corpus}: {len(lines)} of {len(inputs)} inputs")


def steps(target: Target, data: bytes) -> set[Step]:
    """From which line to which, in what the target covers."""
    taken: set[Step] = set()

    def enter(frame: FrameType, event: str, _: object) -> Any:
        if not _within(str(frame.f_globals.get("__name__")), target.covers):
            return None
        code, last = frame.f_code.co_qualname, 0

        def follow(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                taken.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return follow

        return follow

    sys.settrace(enter)
    try:
        target.one(data)
    finally:
        sys.settrace(None)
    return taken


def escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
