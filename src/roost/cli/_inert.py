"""Text from machines made harmless to the terminal it is shown on.

``plain`` is for names and messages, and for what people decide on: one line, every control character visible, and
every other that has no look of its own, so that no two texts look alike for what is not seen of one. ``Inert`` is
for a live stream on a person's terminal: colours, tabs and line ends pass, and what scripts and emoji are joined
with; everything else that could move the cursor far, set titles, write the clipboard, make the terminal answer or
hide what is there is shown instead of obeyed. Output that goes to a pipe or a file is never touched.
"""

from __future__ import annotations

import re

# Line and paragraph separators, what reorders text, format characters, fillers, tags, lone surrogates: nothing is
# seen of them. Arabic's signs around numbers have a look, and pass.
_UNSEEN = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    r"\ufff0-\ufffb\ud800-\udfff\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_JOINERS = r"\u180b-\u180f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"  # and marks of variants
_BLANKS = r"\xa0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000"  # as a space looks
_EMOJI = r"\xa9\xae\u203c-\u3299\U0001f000-\U0001faff"
# Both begin with one class, which is looked for faster than one thing or another. C0, DEL, C1, and those; but behind
# an emoji the mark by which it is one.
_PLAIN = re.compile(
    rf"[\x00-\x1f\x7f-\x9f{_UNSEEN}{_JOINERS}{_BLANKS}](?<![{_EMOJI}][\ufe0e\ufe0f])"
)
_LIVE = re.compile(
    rf"[\x00-\x06\x0b\x0c\x0e-\x1f\x7f-\x9f{_UNSEEN}]"
    r"(?:(?<=\x1b)\[[0-9;:]{0,64}[mK])?"  # colours; erase to the end of the line
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;:]{0,64})?\Z")


def plain(value: object) -> str:
    """One line, safe to show."""
    return _PLAIN.sub(_visible, str(value))


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
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
