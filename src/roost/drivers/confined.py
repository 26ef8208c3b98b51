"""A container's bundle made one of a machine without root, pure.

Everything runs as one ordinary user of the machine (1000, ``user``): no capabilities, none to be had by executing
anything, fewer system calls, and nothing to write but its home and what is gone with the machine's end. The agent says
the same once more of itself and all it starts, by Landlock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roost.drivers import seccomp

UID = 1000
NAME = "user"
HOME = "/home/user"
WORKSPACE = "/workspace"  # of templates that have one, and gave it to the user

# What it may write beside its homes. /proc: of its own processes only; /dev: terminals, /dev/null, what is shared.
_WRITABLE = ("/tmp", "/run", "/dev", "/proc")  # noqa: S108
_NO_SYS = "/sys"  # what it tells is of the host


def bundle(
    made: Mapping[str, Any],
    *,
    rootfs: Path,
    homes: Sequence[str] = (HOME,),
    volumes: Sequence[str] = (),
    guarded: bool = True,
) -> dict[str, Any]:
    """Of what ``oci.spec`` made. ``rootfs``: where the image is mounted; ``homes`` are bound from there. ``volumes``:
    where those that can be written are. Not ``guarded``: the agent says nothing of it once more."""
    process, linux = dict(made["process"]), dict(made["linux"])
    env = [each for each in process["env"] if not each.startswith("HOME=")]
    process |= {
        "user": {"uid": UID, "gid": UID},
        "args": [*process["args"], *arguments([*homes, *volumes], guarded)],
        "env": [*env, f"HOME={HOME}"],
        "capabilities": {key: [] for key in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
    }
    linux["seccomp"] = seccomp.profile(seccomp.ALLOWED_WITHOUT_ROOT)
    return {
        **made,
        "root": {**made["root"], "readonly": True},
        "process": process,
        "mounts": _mounts(made["mounts"], rootfs, homes),
        "linux": linux,
    }


def arguments(writable: Sequence[str], guarded: bool = True) -> list[str]:
    """Of the agent: where it lives, and all that it and what it starts may write."""
    places = (*writable, *_WRITABLE) if guarded else ()
    return ["--workdir", HOME, *(word for path in places for word in ("--writable", path))]


def _mounts(
    made: Sequence[Mapping[str, Any]], rootfs: Path, homes: Sequence[str]
) -> list[dict[str, Any]]:
    """Volumes, which come last, may lie in a home."""
    kept = [dict(each) for each in made if each["destination"] != _NO_SYS]
    for each in kept:
        if each["destination"] == "/run":
            size = next(o for o in each["options"] if o.startswith("size="))
            each["options"] = [*each["options"], f"uid={UID}", f"gid={UID}"]
        if each["type"] == "bind":  # as it is mounted: what is not said would be taken away
            each["options"] = [*each["options"], "nosuid"]
    at = next((n for n, each in enumerate(kept) if each["type"] == "bind"), len(kept))
    ours = [
        {
            "destination": "/tmp",  # noqa: S108
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", size],
        },
        *(
            {
                "destination": home,
                "type": "bind",
                "source": str(rootfs / home.lstrip("/")),
                "options": ["bind", "nosuid", "nodev", "rw"],
            }
            for home in homes
        ),
    ]
    return [*kept[:at], *ours, *kept[at:]]
