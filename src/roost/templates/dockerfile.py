"""A Dockerfile's text as instructions, each with its line. Pure; what it means is ``plan``'s.

The grammar is the one of Docker's reference (docs.docker.com/reference/dockerfile): parser directives, comments,
continuation lines, flags, JSON and shell forms, here-documents. Of several stages, and of what a build of one
machine's disk cannot do, it says so with the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from roost.errors import InvalidRequestError

MAX_BYTES = 1 << 20
MAX_INSTRUCTIONS = 500
MAX_FLAGS = 100  # of one
KEYWORDS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
# Those ``plan`` then refuses by name are among them.
FLAGS = {
    "FROM": {"platform"},
    "RUN": {"mount", "network", "security"},
    "COPY": {"chown", "chmod", "from", "link"},
    "ADD": {"chown", "chmod", "link", "checksum", "keep-git-dir"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
}
_HEREDOCS = {"RUN", "COPY", "ADD"}
_JSON = {"RUN", "CMD", "ENTRYPOINT", "SHELL", "COPY", "ADD", "VOLUME"}
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.*?)\s*")
_HEREDOC = re.compile(r"(?<![<\w])(\d*)<<(-?)\s*([\"']?)([A-Za-z_][A-Za-z0-9_]*)\3(?=[\s;|&)<>]|$)")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """``raw``: its delimiter was quoted, so nothing in it is replaced."""

    name: str
    content: str
    raw: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """``text`` is what follows keyword and flags, continuation lines joined; ``words`` the JSON form's."""

    keyword: str
    line: int  # the first, from 1
    text: str
    flags: tuple[tuple[str, str], ...] = ()
    words: tuple[str, ...] | None = None
    heredocs: tuple[Heredoc, ...] = ()

    def flag(self, name: str) -> str | None:
        """The last of that name."""
        found = [value for key, value in self.flags if key == name]
        return found[-1] if found else None

    @property
    def shown(self) -> str:
        """For people, in one line."""
        flags = "".join(f"--{key}={value} " for key, value in self.flags)
        return " ".join(f"{self.keyword} {flags}{self.text}".split())


@dataclass(frozen=True, slots=True)
class Dockerfile:
    instructions: tuple[Instruction, ...]
    escape: str = "\\"


def wrong(line: int, why: str, *, file: str = "Dockerfile") -> InvalidRequestError:
    return InvalidRequestError(
        f"{file}, line {line}: {why}",
        code="DOCKERFILE_INVALID",
        details={"file": file, "line": line},
    )


def parse(text: str) -> Dockerfile:
    """Raises DOCKERFILE_INVALID with the line."""
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise wrong(1, f"it is larger than {MAX_BYTES} bytes")
    if "\0" in text:
        raise wrong(text[: text.index("\0")].count("\n") + 1, "there is a NUL in it")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    escape, begin = _directives(lines)
    found = tuple(_instructions(lines, begin, escape))
    if not found:
        raise wrong(1, "there is no instruction in it: begin with FROM, e.g. FROM base")
    _check_order(found)
    return Dockerfile(found, escape)


def _directives(lines: list[str]) -> tuple[str, int]:
    """The escape character, and the first line that is none of them."""
    escape = "\\"
    for number, line in enumerate(lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or match[1].lower() not in ("escape", "syntax", "check"):
            return escape, number
        if match[1].lower() == "escape":
            if match[2] not in ("\\", "`"):
                raise wrong(number + 1, f"the escape character is \\ or `, not {match[2]!r}")
            escape = match[2]
    return escape, len(lines)


def _instructions(lines: list[str], at: int, escape: str) -> Iterator[Instruction]:
    ends = re.compile(rf"{re.escape(escape)}[ \t]*$")
    count = 0
    while at < len(lines):
        stripped = lines[at].strip()
        if not stripped or stripped.startswith("#"):
            at += 1
            continue
        first = at
        parts: list[str] = []
        while at < len(lines):
            line = lines[at]
            at += 1
            if parts and (not line.strip() or line.lstrip().startswith("#")):
                continue  # comments and empty lines between continuation lines
            parts.append(ends.sub("", line))
            if not ends.search(line):
                break
        joined = "".join(parts).strip()
        count += 1
        if count > MAX_INSTRUCTIONS:
            raise wrong(first + 1, f"there are more than {MAX_INSTRUCTIONS} instructions")
        keyword, _, rest = joined.partition(" ") if " " in joined else joined.partition("\t")
        if (tab := keyword.find("\t")) >= 0:
            keyword, rest = joined[:tab], joined[tab + 1 :]
        upper = keyword.upper()
        if upper not in KEYWORDS:
            near = get_close_matches(upper, KEYWORDS, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise wrong(first + 1, f"there is no instruction {keyword[:40]!r}{hint}")
        flags, rest = _flags(upper, rest.strip(), first + 1)
        heredocs: tuple[Heredoc, ...] = ()
        if upper in _HEREDOCS and "<<" in rest:
            heredocs, at = _heredocs(rest, lines, at, first + 1)
        if not rest:
            raise wrong(first + 1, f"{upper} says nothing")
        yield Instruction(
            upper, first + 1, rest, flags, json_form(rest) if upper in _JSON else None, heredocs
        )


def _flags(keyword: str, text: str, line: int) -> tuple[tuple[tuple[str, str], ...], str]:
    known = FLAGS.get(keyword)
    found: list[tuple[str, str]] = []
    while known is not None and text.startswith("--"):
        match = _FLAG.match(text)
        if match is None:
            raise wrong(line, f"{text.split()[0][:40]!r} is no flag")
        if match[1] not in known:
            near = get_close_matches(match[1], known, 1)
            hint = f": did you mean --{near[0]}?" if near else ""
            raise wrong(line, f"{keyword} has no flag --{match[1]}{hint}")
        found.append((match[1], match[2] if match[2] is not None else "true"))
        if len(found) > MAX_FLAGS:
            raise wrong(line, f"{keyword} has more than {MAX_FLAGS} flags")
        text = text[match.end() :]
    return tuple(found), text


def json_form(text: str) -> tuple[str, ...] | None:
    """What is no list of strings is the shell's."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        return None
    return tuple(found)


def _heredocs(text: str, lines: list[str], at: int, line: int) -> tuple[tuple[Heredoc, ...], int]:
    """Those the text opens, in order, and the line after the last of them."""
    found = []
    for match in _HEREDOC.finditer(text):
        name, strip = match[4], bool(match[2])
        content = []
        while True:
            if at >= len(lines):
                raise wrong(line, f"the here-document <<{name} has no end: a line that is {name}")
            each = lines[at].lstrip("\t") if strip else lines[at]
            at += 1
            if each == name:
                break
            content.append(f"{each}\n")
        found.append(Heredoc(name, "".join(content), bool(match[3])))
    return tuple(found), at


def _check_order(found: tuple[Instruction, ...]) -> None:
    begun = False
    for each in found:
        if each.keyword == "FROM":
            if begun:
                raise wrong(
                    each.line,
                    "a second FROM: a template is built in one stage. Build the first one as a template of its own, and "
                    "begin with it, or do both in one machine",
                )
            begun = True
        elif not begun and each.keyword != "ARG":
            raise wrong(each.line, f"{each.keyword} before FROM: only ARG may stand there")
    if not begun:
        raise wrong(found[-1].line, "there is no FROM: begin with one, e.g. FROM base")
