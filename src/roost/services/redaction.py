"""Takes the values of build secrets out of what programs say, in the ways they are commonly written."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

from roost.secrets.boundary import redaction

# Of a shorter one so much would be hidden that is none.
SHORTEST = redaction.BEGINNING + 1
_WRAP = 76  # of base64's own program


class Redaction:
    """Of one build."""

    def __init__(self, values: Iterable[str]) -> None:
        found = sorted(
            {each for value in values for each in _parts(value) if len(each.encode()) >= SHORTEST}
        )
        self._needles = redaction.Needles(found) if found else None

    def stream(self) -> redaction.Redactor | None:
        """For one stream of bytes; None: there is nothing to look for."""
        return None if self._needles is None else redaction.Redactor(self._needles)

    def text(self, text: str) -> str:
        stream = self.stream()
        if stream is None:
            return text
        raw = text.encode(errors="replace")
        return (stream.feed(raw) + stream.end()).decode(errors="replace")


def _parts(value: str) -> Iterator[str]:
    """Also each line of one that has several: programs show lines."""
    yield value
    yield value.strip()
    lines = [line.strip() for line in value.splitlines()]
    if len(lines) > 1:
        yield from lines
    wrapped = base64.b64encode(value.encode()).decode()
    if len(wrapped) > _WRAP:
        for at in range(0, len(wrapped), _WRAP):
            if len(line := wrapped[at : at + _WRAP]) >= 8:
                yield line
