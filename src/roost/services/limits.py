"""What a machine may be asked to be; SPECIFICATION's limits, checked in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from roost import ids
from roost.drivers.interface import Size
from roost.engine.tools import OFF
from roost.errors import InvalidRequestError
from roost.errors import bad as bad
from roost.services.models import UNSET, CreateMachine
from roost.templates import reference
from roost.units import MAX_SECONDS

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?", re.ASCII)
_LABEL = re.compile(r'[^\x00-\x1f\x7f"\\=]{1,128}')
EXPIRIES = ("destroy", "sleep")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
DEFAULT_SIZE: Mapping[str, float] = {"vcpu": 1.0, "memory_mib": 1024, "storage_gib": 10}


def check_create(req: CreateMachine) -> None:
    """Raises VALIDATION_FAILED naming the field."""
    template(req.template)
    if req.key is not None:
        key(req.key)
        no_id("key", req.key)
    name(req.name)
    no_id("name", req.name)
    if req.vcpu is not None:
        vcpu(req.vcpu)
    if req.memory_mib is not None:
        memory(req.memory_mib)
    if req.storage_gib is not None:
        storage(req.storage_gib)
    env(req.env)
    labels(req.labels)
    seconds("autosleep", req.autosleep_seconds)
    if req.hibernate_after_seconds is not UNSET:
        seconds("hibernate_after", req.hibernate_after_seconds)
    seconds("ttl", req.ttl_seconds)
    expiry(req.expiry)
    flag("autowake", req.autowake)
    if req.unrestricted and req.tools != OFF:
        raise bad("unrestricted", "and tools exclude each other: no policy holds in such a machine")
    run_as(req.run_as)
    if not req.memory and req.snapshot is None:
        raise bad("memory", "is of a snapshot: name one, or leave it out")


def size(req: CreateMachine, config: Mapping[str, Any]) -> Size:
    """As asked for, else as the template says (``size``), else the default. Raises VALIDATION_FAILED."""
    said = config.get("size")
    its = said if isinstance(said, Mapping) else {}
    chosen = {
        name: its.get(name, default) if (asked := getattr(req, name)) is None else asked
        for name, default in DEFAULT_SIZE.items()
    }
    vcpu(chosen["vcpu"])
    memory(chosen["memory_mib"])
    storage(chosen["storage_gib"])
    return Size(float(chosen["vcpu"]), chosen["memory_mib"], chosen["storage_gib"])


def template(value: str) -> None:
    """A name, name:tag, name@digest or id."""
    try:
        reference.parse(value)
    except InvalidRequestError as failure:
        raise bad("template", f"cannot be found: {failure.message}") from failure


def key(value: str) -> None:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise bad("key", "is 1-128 of [A-Za-z0-9._:@-], starting with a letter or digit")


def name(value: str | None) -> None:
    if value is not None and (not isinstance(value, str) or not _NAME.fullmatch(value)):
        raise bad("name", "is 1-63 of [a-z0-9-], starting and ending with a letter or digit")


def no_id(field: str, value: str | None) -> None:
    """Of what is given anew: an id names one machine in all the world, so no name or key may look like one."""
    if value is not None and ids.formed(value):
        raise bad(field, "is 26 of [a-z2-7], the form of an id: choose another")


def vcpu(value: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0.1 <= value <= 64:
        raise bad("vcpu", "is a number from 0.1 to 64")


def memory(value: int) -> None:
    if not _whole(value) or not 64 <= value <= 1_048_576:
        raise bad("memory_mib", "is a whole number from 64 to 1048576")


def storage(value: int) -> None:
    if not _whole(value) or not 1 <= value <= 1024:
        raise bad("storage_gib", "is a whole number from 1 to 1024")


def seconds(field: str, value: int | None) -> None:
    if value is not None and (not _whole(value) or not 1 <= value <= MAX_SECONDS):
        raise bad(field, "is from 1 s to 10 years")


def labels(value: Mapping[str, str]) -> None:
    if len(value) > 64:
        raise bad("labels", "are 64 at most")
    for label, text in value.items():
        if not isinstance(label, str) or not _LABEL.fullmatch(label) or not utf8(label):
            raise bad(
                "labels", 'have names of 1-128 characters without ", =, \\ and control characters'
            )
        if not isinstance(text, str) or len(text) > 2048 or "\0" in text or not utf8(text):
            raise bad("labels", "have values of at most 2048 characters")


def expiry(value: str) -> None:
    if value not in EXPIRIES:
        raise bad("expiry", f"is one of {', '.join(EXPIRIES)}")


def run_as(value: object) -> None:
    """None and "" are the template's."""
    if value is None:
        return
    if value == "":
        return
    if not isinstance(value, str) or len(value) > 64 or not _USER.fullmatch(value):
        raise bad("run_as", "a user name, number or user:group, at most 64 characters")


def flag(field: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise bad(field, "is true or false")


def volume_name(value: str) -> None:
    if not isinstance(value, str) or not _VOLUME.fullmatch(value):
        raise bad("name", "is 1-63 of [A-Za-z0-9._-], starting with a letter or digit")
    no_id("name", value)


def volume_size(value: int) -> None:
    if not _whole(value) or not 1 <= value <= 1024:
        raise bad("size_gib", "is a whole number from 1 to 1024")


def env(value: Mapping[str, str]) -> None:
    if len(value) > 256:
        raise bad("env", "has 256 names at most")
    size = 0
    for variable, text in value.items():
        if not isinstance(variable, str) or not _ENV.fullmatch(variable):
            raise bad("env", "has names of [A-Za-z_][A-Za-z0-9_]*")
        if not isinstance(text, str) or "\0" in text or not utf8(text):
            raise bad("env", "has values of text without NUL")
        size += len(variable) + len(text.encode()) + 2
    if size > 128 * 1024:
        raise bad("env", "is 128 KiB at most")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
