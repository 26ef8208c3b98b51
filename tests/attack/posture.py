"""How a machine's processes stand, seen from the host and from inside: numbers, rights, filters, namespaces, descriptors,
mounts, groups. What differs from host to host and from machine to machine is left out or said in a word.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Posture = dict[str, list[Facts]]  # by the process's name: each way that one of them stands

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
_FLAGS = ("ro", "rw", "nosuid", "nodev", "noexec")
_KERNEL = re.compile(r"/lib/modules/[^/]+")
_COVERS = {
    ("devtmpfs", "rw"),
    ("tmpfs", "ro"),
}  # /dev/null over a file, an empty one over a directory
_HIGHEST_OF_PEOPLE = 1 << 17  # above that numbers are reserved


def outside(pids: Iterable[int], words: dict[str, str], masked: Collection[str] = ()) -> Posture:
    """``words``: what to say for what is this machine's or this daemon's alone. ``masked``: see ``mounts``."""
    found: Posture = {}
    for pid in pids:
        try:
            name, facts = _outside(Path(f"/proc/{pid}"), words, masked)
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if facts not in found.setdefault(name, []):
            found[name].append(facts)
    return ordered(found)


def ordered(found: Posture) -> Posture:
    return {name: sorted(found[name], key=json.dumps) for name in sorted(found)}


def _outside(process: Path, words: dict[str, str], masked: Collection[str]) -> tuple[str, Facts]:
    status = _status((process / "status").read_text(errors="replace"))
    if status["State"][0] in "ZX":
        raise ValueError("it ended")
    host = Path("/proc/self/ns")
    apart = [n for n in NAMESPACES if os.readlink(process / "ns" / n) != os.readlink(host / n)]
    uid_map, gid_map = ((process / name).read_text() for name in ("uid_map", "gid_map"))
    return status["Name"], {
        "uid": _ids(status["Uid"], uid_map),
        "gid": _ids(status["Gid"], gid_map),
        "groups": sorted(_number(each, gid_map) for each in _supplementary(status)),
        "uid_map": _map(uid_map),
        "gid_map": _map(gid_map),
        **{key: status[key] for key in _STATUS if apart or key != "CapBnd"},  # else the host's
        "namespaces": apart,
        "root": "its own" if _place(process / "root") != _place(Path("/")) else "the host's",
        "descriptors": sorted(
            {_descriptor(os.readlink(fd)) for fd in (process / "fd").iterdir() if fd.is_symlink()}
        ),
        "mounts": mounts((process / "mountinfo").read_text(), masked)
        if "mnt" in apart
        else ["the host's"],
        "cgroups": _groups((process / "cgroup").read_text(), words),
    }


def _place(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def inside(
    told: str, names: set[str] | None, words: dict[str, str], masked: Collection[str] = ()
) -> Posture:
    """What ``TELL`` printed in the machine, of processes of these names (None: of all); the rest as in ``outside``. What a kernel of
    another kind does not tell is left out. Namespaces are those that are not the looking program's."""
    found: Posture = {}
    for line in told.splitlines():
        said = json.loads(line)
        status = _status(said["status"])
        if names is not None and status["Name"] not in names:
            continue
        facts = {
            "uid": _ids(status["Uid"]),
            "gid": _ids(status["Gid"]),
            **{name: _map(said[name]) for name in ("uid_map", "gid_map") if name in said},
            **{key: status[key] for key in _STATUS if key in status},
            "descriptors": sorted({_descriptor(each) for each in said["fds"]}),
            "mounts": mounts(said["mountinfo"], masked),
        }
        if "Groups" in status:
            facts["groups"] = sorted(map(str, _supplementary(status)))
        if "apart" in said:
            facts["namespaces"] = said["apart"]
        if "cgroup" in said:
            facts["cgroups"] = _groups(said["cgroup"], words)
        if facts not in found.setdefault(status["Name"], []):
            found[status["Name"]].append(facts)
    return ordered(found)


# Of every process that it may look at, in one line of JSON each.
TELL = r"""
import json, os
for pid in sorted(int(n) for n in os.listdir("/proc") if n.isdigit()):
    try:
        said = {n: open(f"/proc/{pid}/{n}").read() for n in ("status", "uid_map", "mountinfo")}
        if "kthread" in said["status"] and "Kthread:\t1" in said["status"] or "VmSize" not in said["status"]:
            continue
        for n in ("gid_map", "cgroup"):
            if os.path.exists(f"/proc/{pid}/{n}"):
                said[n] = open(f"/proc/{pid}/{n}").read()
        if os.path.isdir(f"/proc/{pid}/ns"):
            said["apart"] = sorted(n for n in os.listdir(f"/proc/{pid}/ns") if not n.endswith("_for_children")
                                   and os.readlink(f"/proc/{pid}/ns/{n}") != os.readlink(f"/proc/self/ns/{n}"))
        said["fds"] = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")
                       if os.path.lexists(f"/proc/{pid}/fd/{n}")]
        print(json.dumps(said))
    except OSError:
        pass
"""


def _status(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.split("\n") if ":" in line)
    return {key: value.strip() for key, value in pairs}


def _supplementary(status: dict[str, str]) -> set[int]:
    """The groups that it is in beside its own."""
    return {int(each) for each in status["Groups"].split()} - {int(status["Gid"].split()[1])}


def _ids(line: str, mapped: str = "") -> str:
    """Real, effective, saved and of the file system: one where they are the same."""
    return "/".join(dict.fromkeys(_number(int(each), mapped) for each in line.split()))


def _number(number: int, mapped: str) -> str:
    """As the host has it, in a word where it is reserved."""
    for row in mapped.splitlines():
        first, host, count = map(int, row.split())
        if host <= number < host + count and host > _HIGHEST_OF_PEOPLE:
            return f"reserved, {first + number - host} inside"
    return "reserved" if number > _HIGHEST_OF_PEOPLE else str(number)


def _map(text: str) -> list[str]:
    rows = [list(map(int, line.split())) for line in text.splitlines()]
    return [
        f"{first} -> {'reserved' if host > _HIGHEST_OF_PEOPLE else host}, {count}"
        for first, host, count in rows
    ]


def _descriptor(target: str) -> str:
    if target.startswith(("socket:", "pipe:")):
        return target.partition(":")[0]
    if target.startswith("anon_inode:"):
        return re.sub(r"\d+", "N", target)
    if target.startswith("/memfd:"):
        return "memory"
    if target.startswith(("/dev/pts/", "/proc/", "/sys/")) or re.fullmatch(r"host:\[\d+\]", target):
        return re.sub(r"\d+", "N", target)
    return target if target.startswith("/dev/") and "shm" not in target else "file"


def mounts(text: str, masked: Collection[str] = ()) -> list[str]:
    """Where, of what kind, and how; those below a mount point of the same kind as often as they are.

    ``masked``: paths of /proc and /sys that nobody in the machine is to see, where it has these. Which of them there are
    is the host's kernel's; so they are told of only where one that is there is not covered.
    """
    found, covered = [], set()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        where, kind = _KERNEL.sub("/lib/modules/KERNEL", fields[4]), after.split()[0]
        flags = ",".join(flag for flag in fields[5].split(",") if flag in _FLAGS)
        if where in masked and (kind, flags) in _COVERS:
            covered.add(where)
        else:
            found.append(f"{where} {kind} {flags}")
    has = tuple(f"{line.split()[0]}/" for line in found if line.split()[1] in ("proc", "sysfs"))
    bare = (path for path in masked if path not in covered and path.startswith(has))
    return sorted([*found, *(f"{path} not masked" for path in bare if os.path.lexists(path))])


def _groups(text: str, words: dict[str, str]) -> list[str]:
    paths = {line.split(":", 2)[2] for line in text.splitlines()}
    for what, word in words.items():
        paths = {path.replace(what, word) for path in paths}
    return sorted(path for path in paths if "roost" in path)
