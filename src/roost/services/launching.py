"""What an execution and a terminal have in common: where, as whom and with which environment they run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from roost.agent.v1 import agent_pb2 as pb
from roost.engine.tools import LOGIN_SHELL, Call, Mode, Tools
from roost.errors import ForbiddenError, InvalidRequestError
from roost.services.models import Live, Machine

MAX_ENV_NAMES = 256
MAX_ENV_BYTES = 128 * 1024
MAX_USER = 64
MAX_CWD = 4096
MAX_ARGS = 10_000
MAX_ARG_BYTES = 128 * 1024  # what the kernel takes in one argument
MAX_COMMAND_BYTES = 1024 * 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Asked(Protocol):
    """What an execution and a terminal say of what they run."""

    @property
    def command(self) -> str | list[str] | None: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def user(self) -> str | None: ...
    @property
    def ours(self) -> bool: ...


def argv(command: str | list[str] | None) -> list[str]:
    """As it is run; None is the login shell."""
    if isinstance(command, str):
        return ["/bin/sh", "-c", command]
    return [LOGIN_SHELL] if command is None else command


def allowed(machine: Machine, spec: Asked) -> bool:
    """Whether it may be run without asking; False: where somebody approves. Raises TOOL_DENIED."""
    if machine.tools.mode is Mode.OFF or spec.ours:
        return True
    call = Call(argv(spec.command), spec.env, spec.user or None, isinstance(spec.command, str))
    if machine.tools.allows(call):
        return True
    if machine.tools.mode is Mode.DENY:
        raise denied(machine.tools, call.argv[0], "what is not on its list is refused")
    return False


def denied(tools: Tools, program: str, why: str) -> ForbiddenError:
    return ForbiddenError(
        f"This machine has a list of the programs that may be run in it, and {why}: {program[:200]!r} is not on it as"
        " it was asked for. Its owner may allow it (roost tools).",
        code="TOOL_DENIED",
        details={"program": program[:200], "mode": tools.mode.value},
    )


def environment(live: Live, asked: Mapping[str, str]) -> list[pb.EnvVar]:
    """The template's, then the machine's, what its secrets need, then what was asked for; checked."""
    check_env(asked)
    merged: dict[str, str] = {}
    base = live.config.get("env")
    if isinstance(base, Mapping):
        merged.update({str(k): str(v) for k, v in base.items()})
    merged.update(live.machine.env)
    merged.update(live.told)
    merged.update(asked)
    return [pb.EnvVar(name=name, value=value) for name, value in merged.items()]


def user(live: Live, asked: str | None) -> str:
    return asked or live.machine.run_as or user_of_start(live)


def user_of_start(live: Live) -> str:
    """Whom what the template starts runs as: it may run before its machine is anybody's."""
    return "" if live.machine.capabilities.one_user else _text(live.config, "user")


def directory(live: Live, asked: str | None, as_user: str | None) -> str:
    """The template's is for its own user; another one starts at home, and so do all where nobody can be that user."""
    elsewhere = as_user or live.machine.run_as or live.machine.capabilities.one_user
    return asked or ("" if elsewhere else _text(live.config, "workdir"))


def directory_of_start(live: Live) -> str:
    """Where what the template starts begins: its files lie there, for whoever may only read them, too."""
    workdir = _text(live.config, "workdir")
    roots = workdir == "/root" or workdir.startswith("/root/")
    return "" if roots and live.machine.capabilities.one_user else workdir


def check_env(env: Mapping[str, str]) -> None:
    if len(env) > MAX_ENV_NAMES:
        raise _invalid("env", f"at most {MAX_ENV_NAMES} names")
    if sum(len(n.encode()) + len(v.encode()) for n, v in env.items()) > MAX_ENV_BYTES:
        raise _invalid("env", f"at most {MAX_ENV_BYTES} bytes in all")
    for name, value in env.items():
        if len(name) > 256 or not _NAME.fullmatch(name):
            raise _invalid("env", f"{name[:40]!r} is not a name ([A-Za-z_][A-Za-z0-9_]*)")
        if "\0" in value:
            raise _invalid("env", f"the value of {name[:40]} has a NUL")


def check_place(cwd: str | None, as_user: str | None) -> None:
    if cwd and (not cwd.startswith("/") or "\0" in cwd or len(cwd.encode()) > MAX_CWD):
        raise _invalid("cwd", "an absolute path without NUL, at most 4096 bytes")
    if as_user and (len(as_user) > MAX_USER or not as_user.isprintable()):
        raise _invalid("user", "a user name, number or user:group, at most 64 characters")


def check_command(command: str | list[str]) -> None:
    """A shell string or an argv with a program in it."""
    parts = [command] if isinstance(command, str) else command
    if not parts or not parts[0]:
        raise _invalid("command", "an argv with a program, or a shell string; not empty")
    if len(parts) > MAX_ARGS:
        raise _invalid("command", f"at most {MAX_ARGS} arguments")
    sizes = [len(part.encode()) for part in parts]
    if max(sizes) >= MAX_ARG_BYTES or sum(sizes) > MAX_COMMAND_BYTES:
        raise _invalid("command", "an argument below 128 KiB and 1 MiB in all; send more as stdin")
    if any("\0" in part for part in parts):
        raise _invalid("command", "no NUL")


def _text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) else ""


def _invalid(field: str, wanted: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {wanted}.", details={"field": field})
