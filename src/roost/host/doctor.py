"""What the daemon needs of the host, looked at: each check says what it found and what mends it.

``checks`` changes nothing that lasts and works without root as far as it can. Whether a driver can run is
the drivers' own ``probe``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roost.host import advisories, files, idmaps, mounts, run, syscalls
from roost.settings import Settings

_KERNEL = (5, 15)  # openat2, cgroup.kill, idmapped mounts, nftables' wildcards
_MIN_FREE_GIB = 5
_MIN_MEMORY_MIB = 1024
_DNS = "ROOST_DNS=ADDRESS"
_WITHOUT_ROOT = ("root", "kernel", "pool", "disk", "memory")
_TOOLS = {
    "nft": "nftables",
    "mkfs.xfs": "xfsprogs",
    "mke2fs": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "mmdebstrap": "mmdebstrap",
}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    detail: str
    remedy: str | None = None  # a command, where one exists
    warning: str | None = None  # worth knowing though nothing is wrong


async def checks(settings: Settings) -> list[dict[str, Any]]:
    """In the order a reader would mend them. A check that itself fails is a failed check."""
    return [asdict(check) for check in await asyncio.to_thread(_all, settings)]


def _all(settings: Settings) -> list[Check]:
    wanted: list[tuple[str, Callable[[], Check]]] = [
        ("root", _root),
        ("kernel", _kernel),
        ("tools", _tools),
        ("cgroups", _cgroups),
        ("namespaces", _namespaces),
        ("loop devices", _loops),
        ("pool", lambda: _pool(settings)),
        ("disk", lambda: _disk(settings)),
        ("memory", lambda: _memory(settings)),
        ("resolver", lambda: _resolver(settings)),
        ("network range", lambda: _range(settings)),
        ("forwarding", _forwarding),
        ("numbers of users", lambda: _numbers(settings)),
        ("known escapes", lambda: _escapes(settings)),
    ]
    if os.geteuid() != 0:  # the others are for rungs that it has not got
        wanted = [each for each in wanted if each[0] in _WITHOUT_ROOT]
    found = []
    for name, look in wanted:
        try:
            found.append(look())
        except Exception as exc:
            found.append(Check(name, False, f"could not be looked at: {exc}"))
    return found


def facts() -> dict[str, bool]:
    """What the contracts of the rungs (``roost.claims``) depend on; cheap."""
    found = {"cgroups": False, "landlock": syscalls.landlock_version() > 0}
    with contextlib.suppress(OSError):
        found["cgroups"] = _cgroups().ok
    return found


def _root() -> Check:
    ok = os.geteuid() == 0
    return Check(
        "root",
        ok,
        "running as root"
        if ok
        else "not root: there are workspaces alone; the other rungs need it for namespaces, mounts and cgroups",
        None if ok else "sudo roost up",
    )


def _kernel() -> Check:
    release = platform.release()
    parts = release.split(".")
    version = (int(parts[0]), int("".join(c for c in parts[1] if c.isdigit()) or 0))
    wanted = ".".join(map(str, _KERNEL))
    return Check("kernel", version >= _KERNEL, f"Linux {release}; {wanted} or newer is needed")


def _tools() -> Check:
    missing = {tool: package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if not missing:
        return Check("tools", True, "all there")
    packages = " ".join(sorted(set(missing.values())))
    return Check(
        "tools", False, f"missing: {', '.join(sorted(missing))}", f"apt-get install {packages}"
    )


def _cgroups() -> Check:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        there = set((root / "cgroup.controllers").read_text().split())
        kind = "v2"
    else:
        there = {p.name for p in root.iterdir() if (p / "cgroup.procs").exists()}
        kind = "v1"
    missing = {"cpu", "memory", "pids"} - there
    if kind == "v1":
        missing |= {"freezer"} - there
    if missing:
        return Check(
            "cgroups",
            False,
            f"{kind}, without {', '.join(sorted(missing))}",
            "add cgroup_enable=memory to the kernel's command line",
        )
    return Check("cgroups", True, kind)


def _namespaces() -> Check:
    missing = [
        n for n in ("net", "mnt", "pid", "ipc", "uts") if not Path("/proc/self/ns", n).exists()
    ]
    return Check(
        "namespaces", not missing, f"missing: {', '.join(missing)}" if missing else "all there"
    )


def _loops() -> Check:
    ok = Path("/dev/loop-control").exists()
    return Check(
        "loop devices",
        ok,
        "there" if ok else "/dev/loop-control is missing",
        None if ok else "modprobe loop",
    )


def _pool(settings: Settings) -> Check:
    pool = settings.data_dir / "pool"
    if mounts.is_mounted(pool):
        return Check("pool", True, f"mounted at {pool}")
    above = next(p for p in (settings.data_dir, *settings.data_dir.parents) if p.exists())
    if os.access(above, os.W_OK) and files.can_reflink(above):
        return Check("pool", True, f"{above} can reflink")
    if os.geteuid() != 0:
        return Check("pool", True, f"a directory below {above}: copies share no blocks")
    filesystems = Path("/proc/filesystems").read_text().split()
    module = Path("/lib/modules", platform.release()).exists()
    ok = "xfs" in filesystems or module
    return Check(
        "pool",
        ok,
        f"a sparse XFS file in {settings.data_dir}, since its file system cannot reflink"
        if ok
        else "the file system cannot reflink and the kernel has no XFS",
        None if ok else "modprobe xfs",
    )


def _disk(settings: Settings) -> Check:
    above = next(p for p in (settings.data_dir, *settings.data_dir.parents) if p.exists())
    stat = os.statvfs(above)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    reserve = total * settings.pool_reserve_percent / 100
    ok = free - reserve >= _MIN_FREE_GIB << 30
    return Check(
        "disk",
        ok,
        f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free under {above}, "
        f"{reserve / 2**30:.0f} of them kept in reserve",
        None if ok else "free space, or set ROOST_DATA_DIR to a larger disk",
    )


def _memory(settings: Settings) -> Check:
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    available = values["MemAvailable"] // 1024
    ok = available - settings.memory_reserve_mib >= _MIN_MEMORY_MIB
    return Check("memory", ok, f"{available} of {values['MemTotal'] // 1024} MiB available")


def _resolver(settings: Settings) -> Check:
    from roost.egress import upstream

    if settings.dns:
        asked = [settings.dns]
    else:
        try:
            asked = [address for address, _ in upstream.of_host()]
        except OSError as failure:
            return Check("resolver", False, f"/etc/resolv.conf: {failure}", _DNS)
    if not asked:
        return Check("resolver", False, "/etc/resolv.conf names no resolver", _DNS)
    return Check("resolver", True, f"machines' names are asked of {', '.join(asked)}")


def _range(settings: Settings) -> Check:
    from roost.network.addresses import Plan

    plan = Plan(settings.network_cidr, settings.run_dir, settings.uid_base)
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        name, destination, _, flags, *_rest = fields = line.split()
        mask = bin(int(fields[7], 16)).count("1")
        if mask == 0 or name.startswith("rst") or not int(flags, 16) & 1:
            continue
        address = ipaddress.IPv4Address(int(destination, 16).to_bytes(4, "little"))
        network = ipaddress.IPv4Network(f"{address}/{mask}", strict=False)
        if network.overlaps(plan.network):
            return Check(
                "network range",
                False,
                f"{plan.network} overlaps {network} on {name}",
                "set ROOST_NETWORK_CIDR to a free range, such as 10.213.0.0/16",
            )
    return Check("network range", True, f"{plan.network} is free, for {plan.capacity} machines")


def _forwarding() -> Check:
    """Our own rules cannot let through what another table drops."""
    listing = json.loads(run.run(["nft", "-j", "list", "chains"], timeout_s=10).stdout)
    for entry in listing["nftables"]:
        chain = entry.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            table = f"{chain['family']} {chain['table']}"
            docker = shutil.which("docker") is not None
            target = "DOCKER-USER" if docker else "FORWARD"
            return Check(
                "forwarding",
                False,
                f"table {table} drops what it does not know; unless it lets interfaces rst* through, "
                "machines have no network",
                f"iptables -I {target} -i rst+ -j ACCEPT && iptables -I {target} -o rst+ -j ACCEPT",
            )
    return Check("forwarding", True, "no other table drops forwarded packets")


def _numbers(settings: Settings) -> Check:
    first = settings.uid_base
    last = first + idmaps.COUNT * idmaps.capacity(first) - 1
    told = f"{first} to {last}, 65,536 a machine"
    taken = idmaps.taken(first, last)
    if taken:
        return Check(
            "numbers of users",
            False,
            f"machines' users are {told} on the host, where {', '.join(taken[:5])} are, too; no "
            "machine is given a block of such",
            "set ROOST_UID_BASE to numbers that are nobody's",
        )
    return Check(
        "numbers of users",
        True,
        f"{told}; nobody else has any by /etc and by what runs here (LDAP and the like are not asked)",
    )


def _escapes(settings: Settings) -> Check:
    found = {driver: advisories.look(driver) for driver in settings.driver_names}
    known = list(dict.fromkeys(each for all_of_it in found.values() for each in all_of_it))
    if bad := [each.text for each in known if each.refuses]:
        return Check("known escapes", False, "; ".join(bad), advisories.REMEDY)
    if not known:
        return Check("known escapes", True, "none of the versions here has one that is known to us")
    untold = sum(each.open for each in known)
    return Check(
        "known escapes",
        True,
        f"of {untold} it cannot be told whether the versions here have them"
        if untold
        else "none that leads out of a machine here, as far as is known to us",
        warning="\n".join(each.text for each in known),
    )
