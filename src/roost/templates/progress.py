"""How far a build is, told from what its programs say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

# (stage, percent of the whole or None, what is happening)
Progress = Callable[[str, int | None, str], None]

_NEW = re.compile(r"(\d+) newly installed")
_SECOND_PHASE = "installing remaining"
_STAGES = {
    "running apt-get update": "reading the package lists",
    "downloading packages": "downloading packages",
    "extracting archives": "unpacking the base system",
    "installing essential": "setting up the base system",
    "installing remaining": "installing packages",
    "cleaning package lists": "cleaning up",
}
# The base system comes first, then, with a count of its own, what the recipe asks for.
_BOUNDS = ((2, 35), (35, 80))


@dataclass(slots=True)
class PackagesProgress:
    """Fed with mmdebstrap's lines. Each package counts twice: fetched, set up."""

    tell: Progress
    message: str = "starting"
    phase: int = 0
    expected: int = 0
    seen: int = 0
    last: tuple[int, str] = (-1, "")

    def line(self, line: str) -> None:
        if line.startswith("I: "):
            self._stage(line[3:])
        elif match := _NEW.search(line):
            self.expected += 2 * int(match[1])
        elif self.expected and line.startswith(("Get:", "Setting up ")):
            self.seen += 1
        else:
            return
        low, high = _BOUNDS[self.phase]
        share = min(1.0, self.seen / self.expected) if self.expected else 0.0
        now = (low + int((high - low) * share), self.message)
        if now != self.last:
            self.last = now
            self.tell("packages", *now)

    def _stage(self, text: str) -> None:
        for start, message in _STAGES.items():
            if text.startswith(start):
                self.message = message
                if start == _SECOND_PHASE:
                    self.phase, self.expected, self.seen = 1, 0, 0
