"""Which programs may be run in a machine without asking: pure.

    off    whatever is asked for        deny   what the list covers; the rest is refused
                                        ask    what the list covers; the rest waits for somebody's approval

A rule covers a call by its words as they are: nothing is looked up, split or expanded. ``git`` is what the machine's PATH
has by that name, ``/usr/bin/git`` that file, and neither stands for the other. The text of a shell is one argument of the
program ``sh``. A guard against mistakes and against what an agent was talked into, not a boundary: who may write files
may write over a program that is allowed, and a program that is allowed may start others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from roost.errors import InvalidRequestError

RULES = 128
ARGS = 32
PATTERN = 1024  # characters
WORD = 4096  # characters that a wildcard is tried on
TRIED = (
    32 * 1024
)  # characters of patterns and words for one call: beyond them no wildcard covers anything
NAMES = 32
REST = "..."  # the last of ``args``: whatever follows
ANYTHING = "**"
LOGIN_SHELL = "$SHELL"  # a terminal that names no program: the login shell of its user
SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "busybox"})
# Variables that say how to speak, and choose no program and no library.
HARMLESS = frozenset(
    {"LANG", "LANGUAGE", "TERM", "COLORTERM", "NO_COLOR", "COLUMNS", "LINES", "TZ"}
    | {"SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY"}
)
_UP = re.compile(r"\.\.(?:/|$)")
_VARIABLE = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?]*", re.ASCII)


class Mode(StrEnum):
    OFF = "off"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be run, as it was asked for."""

    argv: Sequence[str]
    env: Iterable[str] = ()  # names of what is added to the machine's own
    user: str | None = None  # None: the machine's own
    shell: bool = False  # it was given as a text

    @property
    def names(self) -> Iterator[str]:
        """Of ``env``: those that must be allowed."""
        return (each for each in self.env if each not in HARMLESS and not each.startswith("LC_"))


@dataclass(frozen=True, slots=True)
class Rule:
    """``program``: a name or an absolute path. ``args``: a pattern for each argument, ``...`` last for any more; None: any.
    ``env``, ``users``: patterns of variables that may be added, and of users that may be named; the machine's own user
    may always."""

    program: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    users: tuple[str, ...] = ()

    def covers(self, call: Call, trial: Trial) -> bool:
        if call.argv[0] != self.program and not (call.shell and self.program == "sh"):
            return False
        if call.user is not None and not trial.some(self.users, call.user):
            return False
        if self.args is not None:
            wanted, last = self.args, len(call.argv)
            if wanted and wanted[-1] == REST:
                wanted = wanted[:-1]
                last = min(last, 1 + len(wanted))
            if last != 1 + len(wanted) or not all(map(trial.fits, wanted, call.argv[1:last])):
                return False
        return all(trial.some(self.env, name) for name in call.names)

    @staticmethod
    def read(said: Mapping[str, Any]) -> Rule:
        """Raises VALIDATION_FAILED."""
        unknown = sorted(map(str, said.keys() - {"program", "args", "env", "users"}))
        if unknown:
            raise _bad(f"a rule has no {unknown[0][:40]!r}")
        args = said.get("args")
        rule = Rule(
            _text("program", said.get("program")),
            None if args is None else _texts("args", args, ARGS),
            _texts("env", said.get("env") or (), NAMES),
            _texts("users", said.get("users") or (), NAMES),
        )
        rule._check()
        return rule

    def _check(self) -> None:
        if self.program != LOGIN_SHELL:
            if "/" in self.program and not self.program.startswith("/"):
                raise _bad(f"program: a name or an absolute path, not {self.program[:80]!r}")
            if not self.program or any(each in self.program for each in "*?\0"):
                raise _bad("program: a name or an absolute path, spelled out")
        if self.args and REST in self.args[:-1]:
            raise _bad(f"args: {REST!r} is the last one")
        for name in self.env:
            if _VARIABLE.fullmatch(name) is None:
                raise _bad(f"env: {name[:40]!r} is no pattern of names of variables")
        # A text that only begins or ends as wanted can hold any other command.
        if self.program.rpartition("/")[2] in SHELLS:
            for option, text in zip(self.args or (), (self.args or ())[1:], strict=False):
                if re.fullmatch(r"-[a-z]*c", option) and ("*" in text or "?" in text):
                    raise _bad("args: a shell's text is allowed word for word, or any (no args)")

    def to_json(self) -> dict[str, Any]:
        """What it does not say is left out; ``args`` null is any."""
        shown: dict[str, Any] = {
            "program": self.program,
            "args": None if self.args is None else list(self.args),
        }
        for name in ("env", "users"):
            if value := getattr(self, name):
                shown[name] = list(value)
        return shown


@dataclass(frozen=True, slots=True)
class Tools:
    mode: Mode = Mode.OFF
    allow: tuple[Rule, ...] = ()

    def allows(self, call: Call) -> bool:
        trial = Trial()
        return self.mode is Mode.OFF or any(each.covers(call, trial) for each in self.allow)

    @staticmethod
    def read(said: str | Mapping[str, Any]) -> Tools:
        """Of ``{"mode", "allow": [rule]}`` or a mode alone; a list alone is of ``ask``. Raises VALIDATION_FAILED."""
        if isinstance(said, str):
            said = {"mode": said}
        allow = said.get("allow") or ()
        mode = said.get("mode") or ("ask" if "allow" in said else "off")
        if mode not in set(Mode):
            raise _bad(f"mode is one of {', '.join(Mode)}")
        if len(allow) > RULES:
            raise _bad(f"at most {RULES} rules")
        if allow and mode == Mode.OFF:
            raise _bad("mode off allows everything: leave out the list, or take ask or deny")
        rules = tuple(dict.fromkeys(Rule.read(each) for each in allow))
        return Tools(Mode(mode), rules)

    def to_json(self) -> dict[str, Any]:
        return {"mode": self.mode.value, "allow": [each.to_json() for each in self.allow]}

    @staticmethod
    def from_json(data: Mapping[str, Any] | None) -> Tools:
        """Of a column; NULL is off."""
        if data is None:
            return OFF
        return Tools(
            Mode(data["mode"]),
            tuple(
                Rule(
                    each["program"],
                    None if each["args"] is None else (*each["args"],),
                    (*each.get("env", ()),),
                    (*each.get("users", ()),),
                )
                for each in data["allow"]
            ),
        )


OFF = Tools()


class Trial:
    """Patterns on the words of one call: each pair once, and no more than ``TRIED``, whoever wrote the list."""

    def __init__(self) -> None:
        self._left = TRIED
        self._globs: dict[str, _Glob] = {}
        self._known: dict[tuple[str, str], bool] = {}

    def some(self, patterns: Sequence[str], word: str) -> bool:
        return word in patterns or any(self.fits(each, word) for each in patterns)

    def fits(self, pattern: str, word: str) -> bool:
        """Whole and in its case. ``*`` and ``?`` stand for no slash, ``**`` for anything. What a wildcard stands for
        never goes up a directory (``..``), and is of no word that is very long, unless the pattern is ``**`` alone."""
        if pattern == word:
            return True
        self._left -= 1
        if self._left < 0 or not ("*" in pattern or "?" in pattern):
            return False
        if pattern == ANYTHING:
            return True
        pair = pattern, word
        if (known := self._known.get(pair)) is None:
            known = self._known[pair] = len(word) <= WORD and self._tried(pattern, word)
        return known

    def _tried(self, pattern: str, word: str) -> bool:
        if (glob := self._globs.get(pattern)) is None:
            self._left -= len(pattern)
            glob = self._globs[pattern] = _Glob.of(pattern)
        fits, tried = glob.fits(word)
        self._left -= tried
        return fits and len(_UP.findall(word)) <= len(_UP.findall(pattern))


@dataclass(frozen=True, slots=True)
class _Glob:
    """All places in the pattern at once, a bit each: a step a character, whatever the pattern is."""

    words: Mapping[str, int]  # by character: the places that it takes a step further
    one: int  # places of ``?``
    some: int  # of ``*``
    any: int  # of ``**``
    end: int

    @staticmethod
    def of(pattern: str) -> _Glob:
        words: dict[str, int] = {}
        wild = {"?": 0, "*": 0, "**": 0}
        place = 1
        for piece in re.findall(r"\*\*+|.", pattern, re.DOTALL):
            kind = "**" if piece.startswith("**") else piece
            if kind in wild:
                wild[kind] |= place
            else:
                words[piece] = words.get(piece, 0) | place
            place <<= 1
        return _Glob(words, wild["?"], wild["*"], wild["**"], place)

    def fits(self, word: str) -> tuple[bool, int]:
        """And on how many characters it was tried."""
        stars = self.some | self.any
        at = 1
        at |= (at & stars) << 1
        for tried, each in enumerate(word, 1):
            step, stay = self.words.get(each, 0), self.any
            if each != "/":
                step, stay = step | self.one, stay | self.some
            at = (at & step) << 1 | at & stay
            at |= (at & stars) << 1
            if not at:
                return False, tried
        return bool(at & self.end), len(word)


def _texts(field: str, said: Any, most: int) -> tuple[str, ...]:
    if isinstance(said, str) or not isinstance(said, Sequence) or len(said) > most:
        raise _bad(f"{field}: a list of at most {most}")
    return tuple(_text(field, each) for each in said)


def _text(field: str, said: Any) -> str:
    if not isinstance(said, str) or len(said) > PATTERN or "\0" in said:
        raise _bad(f"{field}: text of at most {PATTERN} characters, without NUL")
    return said


def _bad(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"tools: {what}.", details={"field": "tools"})
