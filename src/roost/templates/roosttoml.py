"""``roost.toml``, beside a Dockerfile: what it cannot say of a machine's start. All keys are optional.

description = "..."
start  = "command for /bin/sh -c"           # or a list of arguments; instead of CMD and ENTRYPOINT
ready  = { port = 9222, timeout_s = 60, interval_s = 0.5 }   # or command, or url; instead of HEALTHCHECK
warmup = ["command", ...]                   # run once, before memory is kept
size   = { vcpu = 2, memory_mib = 2048, storage_gib = 20 }   # of machines that do not say
ports  = [8080]                             # besides EXPOSE
labels = { team = "x" }                     # besides LABEL
bake   = ["container", "microvm"]           # rungs (or drivers) whose memory is kept ahead
no_new_privs = false
"""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from roost.errors import InvalidRequestError

FILE = "roost.toml"
MAX_BYTES = 256 * 1024
# What tomllib takes for a dotted key grows with the square of its parts; no key of ours has more than two.
_DEEP = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*){50}""", re.ASCII
)
BAKE = ("container", "microvm", "gvisor", "runc", "qemu")
# What is the Dockerfile's to say.
_ELSEWHERE = {
    "env": "ENV",
    "user": "USER",
    "workdir": "WORKDIR",
    "from": "FROM",
    "cmd": "CMD",
    "entrypoint": "ENTRYPOINT",
}
Command = Annotated[str, Field(min_length=1, max_length=65536)]
Arguments = Annotated[
    list[Annotated[str, Field(max_length=65536)]], Field(min_length=1, max_length=1000)
]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Ready(_Model):
    """When a started machine is ready; one of ``command``, ``port`` and ``url``."""

    command: Command | Arguments | None = None
    port: Port | None = None
    url: (
        Annotated[
            str, Field(pattern=r"^http://(localhost|127\.0\.0\.1|\[::1\])[:/]", max_length=2048)
        ]
        | None
    ) = None
    timeout_s: Annotated[float, Field(gt=0, le=1800)] = 60.0
    interval_s: Annotated[float, Field(gt=0, le=600)] = 0.5

    @model_validator(mode="after")
    def _one(self) -> Ready:
        if sum(each is not None for each in (self.command, self.port, self.url)) != 1:
            raise ValueError("is one of command, port and url")
        return self


class Size(_Model):
    vcpu: Annotated[float, Field(gt=0, le=256)] | None = None
    memory_mib: Annotated[int, Field(ge=64, le=1 << 22)] | None = None
    storage_gib: Annotated[int, Field(ge=1, le=1024)] | None = None


class RoostToml(_Model):
    description: Annotated[str, Field(max_length=1000)] | None = None
    start: Command | Arguments | None = None
    ready: Ready | None = None
    warmup: Command | Annotated[list[Command], Field(max_length=100)] | None = None
    size: Size | None = None
    ports: Annotated[list[Port], Field(max_length=100)] | None = None
    labels: (
        Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] | None
    ) = None
    bake: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=8)] | None = None
    no_new_privs: bool | None = None

    @model_validator(mode="after")
    def _rungs(self) -> RoostToml:
        for each in self.bake or ():
            if each not in BAKE:
                raise ValueError(f"bake: {each!r} is none of {', '.join(BAKE)}")
        return self

    def config(self) -> dict[str, Any]:
        """The keys of a template's config that it sets."""
        found = self.model_dump(exclude_none=True)
        if isinstance(found.get("warmup"), str):
            found["warmup"] = [found["warmup"]]
        return found


def parse(text: str, file: str = FILE) -> RoostToml:
    """Raises DOCKERFILE_INVALID, naming the key and the near one where there is none of that name."""
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise _wrong(file, f"it is larger than {MAX_BYTES} bytes")
    if _DEEP.search(text):
        raise _wrong(file, "there is a key of more than 50 parts in it")
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as failure:  # a number of thousands of digits is the former
        raise _wrong(file, str(failure)) from failure
    try:
        return RoostToml.model_validate(data)
    except ValidationError as failure:
        raise _wrong(file, "; ".join(_said(each) for each in failure.errors()[:5])) from failure


def _said(failure: Any) -> str:
    # Of an alternative (a command or arguments) pydantic adds which it tried.
    where = [
        str(part)
        for n, part in enumerate(failure["loc"])
        if n == 0 or not re.match(r"constrained|list\[|function|str$", str(part))
    ]
    name = ".".join(where)
    if failure["type"] != "extra_forbidden":
        said = failure["msg"].removeprefix("Value error, ")
        return f"{name}: {said}" if name else said
    models: dict[str, type[BaseModel]] = {"ready": Ready, "size": Size}
    model = models.get(where[0], RoostToml)
    if len(where) == 1 and where[0] in _ELSEWHERE:
        return f"{name} is the Dockerfile's to say, with {_ELSEWHERE[where[0]]}"
    near = get_close_matches(where[-1], model.model_fields, 1)
    known = ", ".join(model.model_fields)
    return f"there is no key {name!r}: " + (
        f"did you mean {near[0]!r}?" if near else f"there are {known}"
    )


def _wrong(file: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{file}: {why}.", code="DOCKERFILE_INVALID", details={"file": file})
