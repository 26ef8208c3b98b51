"""The OCI bundle of a machine, pure: what the runtime is told of confinement, mounts and limits."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.drivers.interface import StartSpec
from roost.host.cgroups import Limits
from roost.host.idmaps import Block
from roost.network.addresses import AGENT_PORT

AGENT_PATH = "/.roost/agent"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What apt, pip, sudo, sshd and ping need as root of a machine; no mounting, tracing of others, modules,
# clock, raw disks or network administration.
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SETFCAP "
    "MKNOD NET_RAW"
)
CAPABILITIES = [f"CAP_{name}" for name in _CAPABILITIES.split()]

# What tells of the host, or of other machines: their disks' names and traffic, whose memory lies where.
MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/class/block",
    "/sys/dev/block",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/ext4",
    "/sys/fs/xfs",
    "/sys/kernel/vmcoreinfo",
]
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_WANTED_FILES = 65536


@dataclass(frozen=True, slots=True)
class Places:
    """Where the runtime finds what is mounted for the machine."""

    root: Path
    volumes: Path  # below it, by number


@dataclass(frozen=True, slots=True)
class Users:
    """The machine's own, and what they stand for on the host."""

    namespace: str  # a path of the user namespace
    block: Block


def file_limit() -> int:
    """A runtime may not raise the limit past the daemon's own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)


def spec(
    start: StartSpec,
    *,
    limits: Limits,
    cgroup: str,
    environment: Mapping[str, str],
    seccomp: Mapping[str, Any] | None,
    network_namespace: str | None,
    places: Places = Places(Path("rootfs"), Path("volumes")),
    users: Users | None = None,
    apparmor: str | None = None,
) -> dict[str, Any]:
    """``network_namespace``: a path, or None where the launcher is in it already. ``users``: None where they are the
    host's own. ``apparmor``: a profile that is loaded."""
    files = file_limit()
    env = {
        "PATH": PATH,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "container": "roost",
        **environment,
        **start.env,
        "ROOST_AGENT_TOKEN": start.agent_token,
    }
    shm = max(64, start.size.memory_mib // 2)
    network: dict[str, str] = {"type": "network"}
    if network_namespace is not None:
        network["path"] = network_namespace
    return {
        "ociVersion": "1.0.2",
        "hostname": start.hostname,
        "root": {"path": str(places.root), "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": [AGENT_PATH, "--listen", f"tcp:0.0.0.0:{AGENT_PORT}"],
            "env": [f"{key}={value}" for key, value in env.items()],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            # Of a machine with users of its own the runtime has them already: it may not give another user's process
            # any where the daemon lacks CAP_SYS_RESOURCE.
            **(
                {}
                if users
                else {"rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}]}
            ),
            "noNewPrivileges": start.no_new_privs,
            "oomScoreAdj": 500,  # before anything of the host's
            **({"apparmorProfile": apparmor} if apparmor else {}),
        },
        "mounts": [
            _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=1m"),
            _mount(
                "/dev/pts",
                "devpts",
                "devpts",
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ),
            _mount(
                "/dev/shm",  # noqa: S108
                "tmpfs",
                "shm",
                "nosuid",
                "noexec",
                "nodev",
                "mode=1777",
                f"size={shm}m",
            ),
            _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            _mount("/run", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=755", f"size={shm}m"),
            *(
                _mount(
                    each.path,
                    "bind",
                    str(places.volumes / str(number)),
                    "bind",
                    "nodev",
                    "ro" if each.read_only else "rw",
                )
                for number, each in enumerate(start.volumes)
            ),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"},
                network,
                *([{"type": "user", "path": users.namespace}] if users else []),
            ],
            **(
                {"uidMappings": users.block.mappings, "gidMappings": users.block.mappings}
                if users
                else {}
            ),
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "cpu": {
                    "quota": limits.quota_us,
                    "period": limits.period_us,
                    "shares": limits.shares,
                },
                "memory": {"limit": limits.memory_bytes},
                "pids": {"limit": limits.pids},
            },
            "maskedPaths": MASKED,
            "readonlyPaths": _READONLY,
            **({"seccomp": seccomp} if seccomp is not None else {}),
        },
    }


def _mount(destination: str, fstype: str, source: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": fstype,
        "source": source,
        "options": list(options),
    }
