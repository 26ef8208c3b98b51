"""The account that machines without root run everything as, given to whatever image they start from.

By the same name, number and home everywhere, so that their owners find it the same, and on the disk itself: it is
there on every other rung, too, should the machine climb. Whoever wrote the image may have been hostile: see
``host.safefs``. What cannot be written is left: programs then run as a number without a name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from roost.drivers.confined import HOME, NAME, UID, WORKSPACE
from roost.errors import MachineError
from roost.host.safefs import Tree

_SMALL = 1 << 20
_SHELLS = ("bash", "sh")
_HELPER = "usr/local/bin/roost"  # elsewhere the agent puts it there itself
_SCRIPT = b'#!/bin/sh\nexec /run/roost/roost "$@"\n'


def prepare(root: Path) -> None:
    """Before each start. Raises MACHINE_FAILED where it cannot have its home."""
    with Tree(root) as tree:
        shell = _shell(tree)
        _rewrite(tree, "etc/passwd", lambda text: with_user(text, shell))
        _rewrite(tree, "etc/group", with_group)
        home = HOME.lstrip("/")
        try:
            tree.make_directories(home, 0o755)
            tree.give(home, UID, UID)
        except OSError as exc:
            raise MachineError(
                f"{HOME} cannot be made on the machine's disk: {exc.strerror}. The template needs a directory there, "
                "or nothing.",
                code="MACHINE_FAILED",
            ) from exc
        with contextlib.suppress(OSError):
            if not tree.has(_HELPER):
                tree.write(_HELPER, _SCRIPT, 0o755)


def homes(root: Path, uid: int) -> list[str]:
    """What is the user's, who has that number there: the home and, where the template gave one, the place to work."""
    with Tree(root) as tree:
        return [HOME, *(p for p in (WORKSPACE,) if tree.owner(p.lstrip("/")) == uid)]


def alone(root: Path, number: int) -> tuple[str, str]:
    """passwd and group of a machine whose user has the host's number for it."""
    passwd = f"root:x:0:0::/root:/bin/sh\n{NAME}:x:{number}:{number}::{HOME}:{_shell_of(root)}\n"
    return passwd, f"root:x:0:\n{NAME}:x:{number}:\n"


def _shell_of(root: Path) -> str:
    with Tree(root) as tree:
        return _shell(tree)


def with_user(passwd: str, shell: str) -> str:
    """Whoever has that number, too, comes after: of two names for a number the first is its name."""
    ours, at = f"{NAME}:x:{UID}:{UID}::{HOME}:{shell}", None
    kept: list[str] = []
    for line in _lines(passwd):
        fields = line.split(":")
        is_ours = fields[0] == NAME
        if at is None and (is_ours or fields[2:3] == [str(UID)]):
            at = len(kept)
        if not is_ours:
            kept.append(line)
        elif len(fields) == 7 and fields[2:4] == [str(UID)] * 2:
            ours = ":".join([*fields[:5], HOME, fields[6] or shell])
    at = len(kept) if at is None else at
    return "\n".join([*kept[:at], ours, *kept[at:]]) + "\n"


def with_group(group: str) -> str:
    lines = _lines(group)
    if any(line.split(":")[2:3] == [str(UID)] for line in lines):
        return group
    kept = [line for line in lines if line.split(":")[0] != NAME]
    return "\n".join([*kept, f"{NAME}:x:{UID}:"]) + "\n"


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _shell(tree: Tree) -> str:
    found = (n for n in _SHELLS if tree.has(f"bin/{n}") or tree.has(f"usr/bin/{n}"))
    return f"/bin/{next(found, 'sh')}"


def _rewrite(tree: Tree, path: str, change: Callable[[str], str]) -> None:
    """Bytes that are no UTF-8 stay as they are."""
    found = tree.read(path, _SMALL)
    if found is None and tree.has(path):
        return
    was = (found or b"").decode(errors="surrogateescape")
    if (now := change(was)) != was:
        with contextlib.suppress(OSError):
            tree.write(path, now.encode(errors="surrogateescape"), 0o644)
