"""How a machine's processes stand, seen from the host and from inside: numbers, rights, filters, namespaces, descriptors,
mounts, groups. What differs from host to host and from machine to machine is left out or said in a word.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Posture = dict[str, list[Facts]]  # by the process's name: each way that one of them stands

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
_FLAGS = ("ro", "rw", "nosuid", "nodev", "noexec")
_HIGHEST_OF_PEOPLE = 1 << 17  # above that numbers are reserved


def outside(pids: Iterable[int], words: dict[str, str]) -> Posture:
    """``words``: what to say for what is this machine's or this daemon's alone."""
    found: Posture = {}
    for pid in pids:
        try:
            name, facts = _outside(Path(f"/proc/{pid}"), words)
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if facts not in found.setdefault(name, []):
            found[name].append(facts)
    return ordered(found)


def ordered(found: Posture) -> Posture:
    return {name: sorted(found[name], key=json.dumps) for name in sorted(found)}


def _outside(process: Path, words: dict[str, str]) -> tuple[str, Facts]:
    status = _status((process / "status").read_text(errors="replace"))
    if status["State"][0] in "ZX":
        raise ValueError("it ended")
    host = Path("/proc/self/ns")
    apart = [n for n in NAMESPACES if os.readlink(process / "ns" / n) != os.readlink(host / n)]
    return status["Name"], {
        "uid": _numbers(status["Uid"], process / "uid_map"),
        "gid": _numbers(status["Gid"], process / "gid_map"),
        "uid_map": _map((process / "uid_map").read_text()),
        **{key: status[key] for key in _STATUS if apart or key != "CapBnd"},  # else the host's
        "namespaces": apart,
        "root": "its own" if _place(process / "root") != _place(Path("/")) else "the host's",
        "descriptors": sorted(
            {_descriptor(os.readlink(fd)) for fd in (process / "fd").iterdir() if fd.is_symlink()}
        ),
        "mounts": mounts((process / "mountinfo").read_text()) if "mnt" in apart else ["the host's"],
        "cgroups": _groups((process / "cgroup").read_text(), words),
    }


def _place(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def inside(told: str, names: set[str]) -> Posture:
    """What ``TELL`` printed in the machine, of processes of these names."""
    found: Posture = {}
    for line in told.splitlines():
        said = json.loads(line)
        status = _status(said["status"])
        if status["Name"] not in names:
            continue
        facts = {
            "uid": status["Uid"].split()[1],
            "gid": status["Gid"].split()[1],
            "uid_map": _map(said["uid_map"]),
            **{key: status[key] for key in _STATUS if key in status},
            "descriptors": sorted({_descriptor(each) for each in said["fds"]}),
            "mounts": mounts(said["mountinfo"]),
        }
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
        said["fds"] = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")
                       if os.path.lexists(f"/proc/{pid}/fd/{n}")]
        print(json.dumps(said))
    except OSError:
        pass
"""


def _status(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.split("\n") if ":" in line)
    return {key: value.strip() for key, value in pairs}


def _numbers(line: str, uid_map: Path) -> str:
    """The effective one as the host has it, in a word where it is reserved."""
    number = int(line.split()[1])
    for row in uid_map.read_text().splitlines():
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


def mounts(text: str) -> list[str]:
    """Where, of what kind, and how; those below a mount point of the same kind as often as they are."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        flags = [flag for flag in fields[5].split(",") if flag in _FLAGS]
        found.append(f"{fields[4]} {after.split()[0]} {','.join(flags)}")
    return sorted(found)


def _groups(text: str, words: dict[str, str]) -> list[str]:
    paths = {line.split(":", 2)[2] for line in text.splitlines()}
    for what, word in words.items():
        paths = {path.replace(what, word) for path in paths}
    return sorted(path for path in paths if "roost" in path)
