"""E2B's build steps as a Dockerfile and what stands beside it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from roost.dialects.e2b.control.bodies import StartBuild, Step
from roost.dialects.serving import not_served
from roost.errors import InvalidRequestError

# What E2B's own images are here.
IMAGES = {"e2bdev/base": "base", "e2bdev/code-interpreter": "code-interpreter"}
USER, HOME = "user", "/home/user"
# E2B's builder puts its user into any image; an image of ours has it.
_PROVISION = (
    "id user >/dev/null 2>&1 || "
    "if command -v useradd >/dev/null; then useradd -m -s /bin/bash user; "
    "else adduser -D -s /bin/sh user; fi; "
    "if [ -d /etc/sudoers.d ]; then echo 'user ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/user && "
    "chmod 0440 /etc/sudoers.d/user; fi; "
    "mkdir -p /home/user && chown user: /home/user"
)
_BASH = 'if command -v bash >/dev/null; then exec bash -c "$0"; else exec sh -c "$0"; fi'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recipe:
    """``archives``: the hash of the archive whose content is to stand at each place of the context."""

    base: str
    lines: tuple[str, ...]
    roost_toml: str | None
    archives: Mapping[str, str]
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def dockerfile(self) -> str:
        return "\n".join((f"FROM {self.base}", *self.lines)) + "\n"

    def beginning_with(self, base: str) -> Recipe:
        return replace(self, base=base)


def recipe(asked: StartBuild, cpu: float | None, memory_mib: int | None) -> Recipe:
    """Raises VALIDATION_FAILED, UNSUPPORTED."""
    base, ours = _base(asked)
    lines = ["USER root"] if ours else ["USER root", f"RUN {_PROVISION}"]
    lines += [f"USER {USER}", f"WORKDIR {HOME}"] if asked.from_template is None else []
    user = USER
    archives: dict[str, str] = {}
    if asked.from_template is not None:
        lines = []
    for number, step in enumerate(asked.steps):
        made, user = _step(step, number, user, archives)
        lines += made
    return Recipe(
        base, tuple(lines), _beside(asked, cpu, memory_mib), archives, _credentials(asked, base)
    )


def _base(asked: StartBuild) -> tuple[str, bool]:
    """What FROM names, and whether that is an image of ours."""
    if asked.from_template is not None:
        if not asked.from_template or re.search(r"\s", asked.from_template):
            raise _bad("fromTemplate", "names a template")
        return asked.from_template, True
    image = asked.from_image or ""
    if not image or re.search(r"\s", image):
        raise _bad("fromImage", "names an image")
    plain = image.partition("@")[0].rpartition("/")
    short = f"{plain[0].rpartition('/')[2]}/{plain[2].partition(':')[0]}" if plain[0] else image
    if short in IMAGES:
        return IMAGES[short], True
    return f"docker://{image}", False


def _step(step: Step, number: int, user: str, archives: dict[str, str]) -> tuple[list[str], str]:
    args = step.args
    match step.type.upper():
        case "RUN":
            _need(step, 1)
            command = args[0]
            if not command.strip() or "\0" in command:
                raise _bad("steps", f"RUN without a command (step {number + 1})")
            line = f"RUN {_listed('/bin/sh', '-c', _BASH, command)}"
            return _as(args[1] if len(args) > 1 else "", user, [line]), user
        case "COPY":
            _need(step, 2)
            if not step.files_hash:
                raise _bad("steps", f"COPY without files (step {number + 1})")
            place = f"step-{number}"
            archives[place] = step.files_hash
            owner = args[2] if len(args) > 2 and args[2] else user
            mode = f"--chmod={_mode(args[3], number)} " if len(args) > 3 and args[3] else ""
            source = args[0].strip().lstrip("/")
            source = re.sub(r"^(\./)+", "", source).rstrip("/")
            at = f"{place}/{source}" if source not in ("", ".") else f"{place}/"
            return [f"COPY --chown={_user(owner)} {mode}{_listed(at, args[1])}"], user
        case "ENV":
            if len(args) % 2 or not args:
                raise _bad("steps", f"ENV with names and values in turn (step {number + 1})")
            # One by one: a later value may name an earlier variable.
            said = [
                f"ENV {_variable(name)}={_quoted(value)}"
                for name, value in zip(args[::2], args[1::2], strict=True)
            ]
            return said, user
        case "WORKDIR":
            _need(step, 1)
            return [f"WORKDIR {_line(args[0])}"], user
        case "USER":
            _need(step, 1)
            return [f"USER {_user(args[0])}"], args[0]
    raise not_served(f"build steps of type {step.type[:32]}")


def _as(asked: str, user: str, lines: list[str]) -> list[str]:
    if not asked or asked == user:
        return lines
    return [f"USER {_user(asked)}", *lines, f"USER {_user(user)}"]


def _beside(asked: StartBuild, cpu: float | None, memory_mib: int | None) -> str | None:
    lines = []
    if asked.start_cmd:
        lines.append(f"start = {_toml(asked.start_cmd)}")
    if asked.ready_cmd:
        lines.append(f"ready = {{ command = {_toml(asked.ready_cmd)}, timeout_s = 300 }}")
    size = []
    if cpu is not None:
        size.append(f"vcpu = {float(cpu)}")
    if memory_mib is not None:
        size.append(f"memory_mib = {memory_mib}")
    if size:
        lines.append(f"size = {{ {', '.join(size)} }}")
    return "\n".join(lines) + "\n" if lines else None


def _credentials(asked: StartBuild, base: str) -> dict[str, dict[str, str]]:
    given: dict[str, Any] = asked.from_image_registry or {}
    if not given:
        return {}
    if given.get("type") != "registry":
        raise not_served(
            "registries with credentials of a cloud", "Give a user's name and a password."
        )
    image = base.removeprefix("docker://")
    host = image.partition("/")[0]
    if "." not in host and ":" not in host and host != "localhost":
        host = "docker.io"
    return {
        host: {
            "username": str(given.get("username", "")),
            "password": str(given.get("password", "")),
        }
    }


def _need(step: Step, count: int) -> None:
    if len(step.args) < count:
        raise _bad("steps", f"{step.type[:32]} needs {count} arguments")


def _mode(text: str, number: int) -> str:
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise _bad("steps", f"COPY with a mode such as 0755 (step {number + 1})")
    return text


def _user(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_.-]+)?", text, re.ASCII):
        raise _bad("steps", f"{text[:32]!r} is no user")
    return text


def _variable(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise _bad("steps", f"{text[:32]!r} is no variable's name")
    return text


def _line(text: str) -> str:
    if re.search(r"[\r\n\0]", text) or not text.strip():
        raise _bad("steps", "have arguments of one line")
    return text


def _quoted(text: str) -> str:
    """In double quotes: what a Dockerfile expands stays to be expanded."""
    if re.search(r"[\r\n\0]", text):
        raise _bad("steps", "ENV has values of one line")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _listed(*args: str) -> str:
    """A list of strings as instructions have it; what would begin a here-document there begins none."""
    return json.dumps(args).replace("<<", "<\\u003c")


def _toml(text: str) -> str:
    """TOML knows no pairs of surrogates, and wants DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _bad(field: str, rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {rule}.", details={"field": field})
