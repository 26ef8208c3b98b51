"""What is known of a target, and its inputs."""

from __future__ import annotations

import base64
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in (HERE / "targets").glob("[!_]*.py"))


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    one: Callable[[bytes], None]
    covers: tuple[str, ...]  # modules and packages whose branches tell the fuzzer how far it came
    seeds: tuple[bytes, ...]
    longest: int  # bytes of an input
    words: tuple[bytes, ...]  # what inputs of this kind are made of

    @property
    def corpus(self) -> Path:
        return HERE / "corpora" / f"{self.name}.txt"

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """Each with what to call it."""
        for number, data in enumerate(self.seeds):
            yield f"seed {number}", data
        if self.corpus.exists():
            for number, line in enumerate(self.corpus.read_text().split(), 1):
                yield f"{self.corpus.name}:{number}", base64.b64decode(line)
        for path in sorted((HERE / "regressions" / self.name).glob("*")):
            yield path.name, path.read_bytes()


def load(name: str) -> Target:
    module = importlib.import_module(f"tests.fuzz.targets.{name}")
    return Target(
        name,
        module.one,
        module.COVERS,
        tuple(module.SEEDS),
        getattr(module, "LONGEST", 4096),
        tuple(getattr(module, "WORDS", ())),
    )
