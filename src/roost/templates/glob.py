"""Names with ``*``, ``?`` and ``[a-z]``, matched in time that grows with their length alone: patterns are strangers'."""

from __future__ import annotations

from collections.abc import Callable

_Test = Callable[[str], bool]
_KNOWN = 65_536  # characters that are remembered


class Pattern:
    """Of one name, without slashes. All that may have been matched so far is one number: its bit ``n`` says that the
    first ``n`` tests were, so a character costs the same however many stars there are."""

    def __init__(self, text: str) -> None:
        self._tests: list[_Test] = []
        self._stars = 0  # bit n: any number of characters before test n
        self._known: dict[str, int] = {}
        at = 0
        while at < len(text):
            char = text[at]
            at += 1
            if char == "*":
                self._stars |= 1 << len(self._tests)
            elif char == "?":
                self._tests.append(lambda c: True)
            elif char == "[" and (end := text.find("]", at + 1)) > 0:
                self._tests.append(_class(text[at:end]))
                at = end + 1
            else:
                if char == "\\" and at < len(text):
                    char = text[at]
                    at += 1
                self._tests.append(lambda c, wanted=char: c == wanted)  # type: ignore[misc]

    def matches(self, name: str) -> bool:
        if len(self._tests) > len(name):
            return False
        states = 1
        for char in name:
            states = (states & self._passed(char)) << 1 | (states & self._stars)
            if not states:
                return False
        return bool(states >> len(self._tests) & 1)

    def _passed(self, char: str) -> int:
        """The tests that a character passes."""
        found = self._known.get(char)
        if found is None:
            found = sum(1 << n for n, test in enumerate(self._tests) if test(char))
            if len(self._known) < _KNOWN:
                self._known[char] = found
        return found


def _class(text: str) -> _Test:
    negated = text[:1] in ("^", "!")
    body = text[1:] if negated else text
    ranges = []
    at = 0
    while at < len(body):
        low = body[at]
        if at + 2 < len(body) and body[at + 1] == "-":
            ranges.append((low, body[at + 2]))
            at += 3
        else:
            ranges.append((low, low))
            at += 1
    return lambda c: any(low <= c <= high for low, high in ranges) != negated
