"""``python -m tests.fuzz NAME [--seconds N | --runs N] [--keep]``: one target under the fuzzer.

What is found on the way is kept in ``.fuzz/NAME``; an input that breaks a promise is left beside it. ``--keep`` fuzzes
nothing: it writes the fewest inputs that reach all that was ever reached into the corpus of the repository.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gc
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FunctionType

import atheris

from tests.fuzz.target import NAMES, Target, load

WORK = Path(".fuzz")
KEPT_BYTES = 1024  # of one input; longer ones are seldom worth their place
KEPT = 200
SLOW_S = 10  # for one input, then it counts as a hang
MEMORY_MIB = 2048


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
    """The fuzzer's own merge, in a process of its own since it ends the one it is in."""
    with tempfile.TemporaryDirectory() as directory:
        least, given = Path(directory) / "least", Path(directory) / "given"
        least.mkdir()
        given.mkdir()
        lay_out(target, given)
        merge = (
            "import sys\n"
            "from tests.fuzz.target import load\n"
            "from tests.fuzz.__main__ import fuzz\n"
            "target = load(sys.argv[1])\n"
            "fuzz(target, '-merge=1', f'-max_len={target.longest}', *sys.argv[2:])\n"
        )
        command = [sys.executable, "-c", merge, target.name, str(least), str(given), str(found)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        inputs = sorted((each.read_bytes() for each in least.iterdir()), key=lambda d: (len(d), d))
    lines = [base64.b64encode(data).decode() for data in inputs if len(data) <= KEPT_BYTES]
    known = set(target.seeds)
    lines = [line for line in lines if base64.b64decode(line) not in known][:KEPT]
    target.corpus.write_text("".join(f"{line}\n" for line in lines))
    print(f"{target.corpus}: {len(lines)} of {len(inputs)} inputs")
    shutil.rmtree(found)


def escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
