"""Variables and quotes in a Dockerfile's words: ``$X``, ``${X}``, ``${X:-word}``, ``${X:+word}``, ``${X:?word}``.

In single quotes nothing is replaced; the escape character takes the next one as it is. Without a colon only a
variable that is not there counts as empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_CHARACTERS = 1 << 20
_DEPTH = 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#]", re.ASCII)


class Unreadable(ValueError):
    """Says why; the caller knows the line."""


def word(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """With quotes taken off. Raises ``Unreadable``."""
    return _Reader(text, variables, escape).until("")


def expand(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """Of a here-document: quotes are characters like others. Raises ``Unreadable``."""
    return _Reader(text, variables, escape, quotes=False).until("")


def split(text: str, escape: str = "\\") -> list[str]:
    """At blanks outside quotes; quotes and variables stay in the words. Raises ``Unreadable``."""
    words: list[str] = []
    now: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'" and at + 1 < len(text):
            now.append(text[at : at + 2])
            at += 2
            continue
        if quote:
            if char == quote:
                quote = ""
            now.append(char)
        elif char in "\"'":
            quote = char
            now.append(char)
        elif char.isspace():
            if now:
                words.append("".join(now))
                now = []
        else:
            now.append(char)
        at += 1
    if quote:
        raise Unreadable(f"a {quote} is not closed")
    if now:
        words.append("".join(now))
    return words


@dataclass(slots=True)
class _Reader:
    text: str
    variables: Mapping[str, str]
    escape: str
    quotes: bool = True
    at: int = 0
    depth: int = 0
    given: int = 0  # characters that variables became

    def until(self, end: str) -> str:
        """Up to the character ``end``, which is taken; "" is the end of the text."""
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if end and char == end:
                self.at += 1
                return "".join(out)
            self.at += 1
            if char == self.escape:
                out.append(self._escaped(end))
            elif char == "'" and self.quotes:
                out.append(self._single())
            elif char == '"' and self.quotes:
                out.append(self._double())
            elif char == "$":
                out.append(self._variable())
            else:
                out.append(char)
        if end:
            raise Unreadable(f"a {end} is missing")
        return "".join(out)

    def _escaped(self, end: str) -> str:
        if self.at >= len(self.text):
            return self.escape
        char = self.text[self.at]
        if not self.quotes and char not in ("$", self.escape, end):
            return self.escape
        self.at += 1
        return char

    def _single(self) -> str:
        end = self.text.find("'", self.at)
        if end < 0:
            raise Unreadable("a ' is not closed")
        found, self.at = self.text[self.at : end], end + 1
        return found

    def _double(self) -> str:
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char == '"':
                return "".join(out)
            if char == "$":
                out.append(self._variable())
            elif (
                char == self.escape
                and self.at < len(self.text)
                and self.text[self.at] in ('"', "$", self.escape)
            ):
                out.append(self.text[self.at])
                self.at += 1
            else:
                out.append(char)
        raise Unreadable('a " is not closed')

    def _variable(self) -> str:
        if self.at < len(self.text) and self.text[self.at] == "{":
            self.at += 1
            return self._braced()
        match = _NAME.match(self.text, self.at)
        if match is None:
            return "$"
        self.at = match.end()
        return self._value(self.variables.get(match[0], ""))

    def _value(self, value: str) -> str:
        """Counted before it is put together: a short text may name a long variable often."""
        self.given += len(value)
        if self.given > MAX_CHARACTERS:
            raise Unreadable("it becomes longer than it may be")
        return value

    def _braced(self) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise Unreadable("${ is not followed by a variable's name")
        name = match[0]
        self.at = match.end()
        if self.at >= len(self.text):
            raise Unreadable("a } is missing")
        value = self.variables.get(name)
        char = self.text[self.at]
        self.at += 1
        if char == "}":
            return self._value(value or "")
        there = value is not None
        if char == ":":
            there = bool(value)
            char = self.text[self.at : self.at + 1]
            self.at += 1
        if char not in ("-", "+", "?") or not char:
            raise Unreadable(f"${{{name}...}}: only :-, :+ and :? (or without the colon) are known")
        self.depth += 1
        if self.depth > _DEPTH:
            raise Unreadable("variables are nested too deep")
        other = self.until("}")
        self.depth -= 1
        if char == "-":
            return self._value(value or "") if there else other
        if char == "+":
            return other if there else ""
        if not there:
            raise Unreadable(f"{name} is not set{': ' + other if other else ''}")
        return self._value(value or "")
