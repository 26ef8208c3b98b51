"""Volumes as a machine has them: which, where, and who may have one at the same time. Pure.

    nobody --read-write--> one machine's, alone        raw_written: a virtual machine had it read-write, so its
    nobody --read-only---> any number of machines'     blocks are what a guest made of them: a microVM's from then on

A volume is a machine's from the transaction of its row until it is destroyed, asleep too: memory that is kept knows
the volume's content, so nobody else may change it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roost.errors import ConflictError, InvalidRequestError, UnsupportedError

MAX_MOUNTS = 8  # of one machine
MAX_PATH = 120  # together they go on a guest kernel's command line
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9.@+_-]+)+", re.ASCII)
# What the machine's own rung mounts or the agent lives in.
_RESERVED = ("/proc", "/sys", "/dev", "/run", "/lib/modules", "/.roost")


@dataclass(frozen=True, slots=True)
class Mount:
    """One volume of one machine."""

    volume_id: str
    name: str
    path: str
    read_only: bool

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def all_from_json(data: Sequence[Mapping[str, Any]] | None) -> tuple[Mount, ...]:
        """Of a column; NULL is none."""
        return tuple(Mount(**each) for each in data or ())


def check_paths(paths: Sequence[str]) -> None:
    """Raises VALIDATION_FAILED."""
    if len(paths) > MAX_MOUNTS:
        raise _bad(f"a machine has {MAX_MOUNTS} at most")
    for path in paths:
        if not isinstance(path, str) or len(path) > MAX_PATH or not _PATH.fullmatch(path):
            raise _bad(
                f"path is absolute, without . or .., of [A-Za-z0-9.@+_-] and at most {MAX_PATH} characters:"
                f" not {str(path)[:MAX_PATH]!r}"
            )
        for taken in _RESERVED:
            if _below(path, taken) or _below(taken, path):
                raise _bad(f"path {path} is in the way of {taken}, which the machine needs")
    for i, path in enumerate(paths):
        for other in (*paths[:i], *paths[i + 1 :]):
            if _below(path, other):
                raise _bad(f"{path} is below {other}: volumes lie side by side")


def check_free(mount: Mount, others: Collection[tuple[str, bool]]) -> None:
    """``others``: (machine id, read-only) of those that have the volume. Raises VOLUME_IN_USE."""
    writers = [machine for machine, read_only in others if not read_only]
    if not others or (mount.read_only and not writers):
        return
    holders = writers or sorted(machine for machine, _ in others)
    how = "read-write" if writers else "read-only"
    advice = (
        "Only one machine may write a volume, and none may read it meanwhile: destroy that machine first."
        if writers
        else "Take it read-only, too, or destroy those machines first."
    )
    raise ConflictError(
        f"Volume {mount.name} is {how} in use by machine {', '.join(holders[:5])}. {advice}",
        code="VOLUME_IN_USE",
        details={"volume": mount.name, "volume_id": mount.volume_id, "machine_ids": holders[:100]},
    )


def check_trusted(mount: Mount, raw_written: bool, raw_disk: bool) -> None:
    """``raw_disk``: the machine is a virtual one. Raises UNSUPPORTED."""
    if raw_written and not raw_disk:
        raise UnsupportedError(
            f"Volume {mount.name} was written by a microVM, whose guest makes its blocks: the host does not mount"
            " it any more. Ask for isolation microvm.",
            details={"volume": mount.name, "volume_id": mount.volume_id, "isolation": "microvm"},
        )


def _below(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}/")


def _bad(rule: str) -> InvalidRequestError:
    return InvalidRequestError(f"volumes: {rule}.", details={"field": "volumes"})
