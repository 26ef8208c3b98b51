"""What a machine may ask of its daemon from inside, beyond looking at itself. Its owner says so; nothing is the default.

    expose   show a port of its own to its owner       fork    copies of itself, ``forks`` in its life
    publish  show it to everybody                      sleep   until somebody needs it

A copy has none of it unless that was said, and one that was made from inside never may fork: however it asks, a machine
has at most ``forks`` descendants that nobody outside asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from roost.errors import InvalidRequestError

ALLOWABLE = ("expose", "publish", "fork", "sleep")
FORKS = 8
MAX_FORKS = 1000
NAMES = 8  # of ports that it may take in its life: a name stays its tenant's for good


@dataclass(frozen=True, slots=True)
class Allowance:
    """``forked`` copies and ``named`` names it took already."""

    allow: tuple[str, ...] = ()
    forks: int = FORKS
    forked: int = 0
    named: int = 0

    @staticmethod
    def of(allow: Iterable[str], forks: int = FORKS) -> Allowance:
        """Raises VALIDATION_FAILED."""
        asked = set(allow)
        if unknown := sorted(map(str, asked - set(ALLOWABLE))):
            raise InvalidRequestError(
                f"allow_inside is of {', '.join(ALLOWABLE)}, not {unknown[0][:40]!r}.",
                details={"field": "allow_inside"},
            )
        if isinstance(forks, bool) or not isinstance(forks, int) or not 0 <= forks <= MAX_FORKS:
            raise InvalidRequestError(
                f"inside_forks is from 0 to {MAX_FORKS}.", details={"field": "inside_forks"}
            )
        return Allowance(tuple(each for each in ALLOWABLE if each in asked), forks)

    def may(self, what: str) -> bool:
        return what in self.allow

    @property
    def for_copies(self) -> Allowance:
        """What the copies it makes itself may at most."""
        return Allowance(tuple(each for each in self.allow if each != "fork"), 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "allow": list(self.allow),
            "forks": self.forks,
            "forked": self.forked,
            "named": self.named,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any] | None) -> Allowance:
        """Of a column; NULL is nothing."""
        return NOTHING if data is None else Allowance(**{**data, "allow": (*data["allow"],)})


NOTHING = Allowance()
