"""Text from machines made harmless to the terminal it is shown on.

``plain`` is for names and messages: one line, every control character visible. ``Inert`` is for a live
stream on a person's terminal: colours, tabs and line ends pass, everything else that could
move the cursor far, set titles, write the clipboard or make the terminal answer is shown instead of
obeyed. Output that goes to a pipe or a file is never touched.
"""

from __future__ import annotations

import re

# C0, DEL, C1, line and paragraph separators, and what reorders text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LIVE = re.compile(
    r"\x1b\[[0-9;:]{0,64}[mK]"  # colours; erase to the end of the line
    r"|[\x00-\x06\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:]{0,64})?\Z")


def plain(value: object) -> str:
    """One line, safe to show."""
    return _CONTROL.sub(_visible, str(value))


class Inert:
    """``feed`` pieces of a stream, in order; sequences cut in two are put together."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> str:
        text, self._rest = self._rest + text, ""
        if found := _UNFINISHED.search(text):
            text, self._rest = text[: found.start()], found[0]
        return _LIVE.sub(_keep, text)

    def end(self) -> str:
        rest, self._rest = self._rest, ""
        return _LIVE.sub(_keep, rest)


def _keep(found: re.Match[str]) -> str:
    return found[0] if len(found[0]) > 1 else _visible(found)


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code == 0x1B:
        return "^["
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
