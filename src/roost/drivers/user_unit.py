"""A machine of one user as a transient unit of systemd, pure: what confines it, and the command that starts it.

The same image as under a runtime, mounted for a block of users of the host by numbers of their own; what namespaces of
a runtime's would hide, systemd's properties do. Its processes are numbered as the host numbers them (systemd has no
user namespace that maps), so a passwd of the machine's own is laid over the image's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.drivers import confined, oci
from roost.drivers.interface import StartSpec
from roost.host.cgroups import Limits
from roost.network.addresses import AGENT_PORT

Properties = list[tuple[str, str]]  # a name may come again

_PREFIX, _SUFFIX = "roost-user-", ".service"

# From what services usually call. resources: priorities, affinity and limits of its own, which programs set as a matter
# of course; the limits of others need privileges.
_CALLS = "@system-service memfd_create mlock mlock2 mlockall munlock munlockall"
_REFUSED = (
    "@clock @cpu-emulation @debug @keyring @module @mount @obsolete @privileged @raw-io @reboot @swap "
    "bpf chroot io_uring_enter io_uring_register io_uring_setup kcmp name_to_handle_at open_by_handle_at "
    "perf_event_open pidfd_getfd process_madvise process_vm_readv process_vm_writev setns unshare userfaultfd"
)
# What of @privileged is no privilege: of a file's owner, of whoever changes to itself.
_ALLOWED_AGAIN = "chown fchown fchownat lchown capset setuid setgid setresuid setresgid setreuid setregid setfsuid setfsgid"

# Yes to all: what a service can be kept from without being kept from its work.
_SWITCHES = (
    "LockPersonality NoNewPrivileges PrivateDevices PrivateIPC PrivateMounts PrivateTmp PrivateUsers ProtectClock "
    "ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables RemoveIPC "
    "RestrictNamespaces RestrictRealtime RestrictSUIDSGID"
)


@dataclass(frozen=True, slots=True)
class Places:
    """On the host, in the table that systemd mounts from."""

    root: Path  # the image, shown by the block's numbers
    passwd: Path
    group: Path
    environment: Path  # a file that only root reads: what a unit's properties say everybody may
    console: Path
    volumes: Path


def name(machine_id: str) -> str:
    return f"{_PREFIX}{machine_id}{_SUFFIX}"


def machine(name: str) -> str | None:
    """Whose unit that is."""
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        return None
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX)


def limits(of: Limits) -> Properties:
    return [
        ("CPUQuota", f"{max(1, round(of.vcpu * 100))}%"),
        ("MemoryMax", str(of.memory_bytes)),
        ("TasksMax", str(of.pids)),
    ]


def number(spec: StartSpec) -> int:
    """Whom it runs as, on the host and in the machine."""
    assert spec.slot is not None
    assert spec.slot.users is not None
    return spec.slot.users.first + confined.UID


def properties(
    spec: StartSpec, *, size: Limits, places: Places, homes: Sequence[str], part_of: str
) -> Properties:
    """``homes``: what its user may write of the image; ``part_of``: the slice."""
    assert spec.slot is not None
    who, shm = str(number(spec)), max(64, spec.size.memory_mib // 2)
    return [
        ("Type", "exec"),
        ("Slice", part_of),
        ("User", who),
        ("Group", who),
        ("SupplementaryGroups", ""),
        ("EnvironmentFile", str(places.environment)),
        ("StandardInput", "null"),
        ("StandardOutput", f"file:{places.console}"),
        ("StandardError", f"file:{places.console}"),
        # What it sees.
        ("RootDirectory", str(places.root)),
        ("MountAPIVFS", "yes"),
        ("NetworkNamespacePath", str(spec.slot.netns)),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "tmpfs"),
        ("ProtectProc", "invisible"),
        *(("BindPaths", f"{places.root / home.lstrip('/')}:{home}") for home in homes),
        *(("ReadWritePaths", f"+{home}") for home in homes),
        ("BindReadOnlyPaths", f"{places.passwd}:/etc/passwd"),
        ("BindReadOnlyPaths", f"{places.group}:/etc/group"),
        # The host's own would be there, and what is left in them.
        ("TemporaryFileSystem", f"/run:mode=1777,nosuid,nodev,size={shm}m"),
        ("TemporaryFileSystem", f"/dev/shm:mode=1777,nosuid,nodev,noexec,size={shm}m"),  # noqa: S108
        *(
            (
                "BindReadOnlyPaths" if each.read_only else "BindPaths",
                f"{places.volumes / str(at)}:{each.path}",
            )
            for at, each in enumerate(spec.volumes)
        ),
        # What it may do.
        *((each, "yes") for each in _SWITCHES.split()),
        ("CapabilityBoundingSet", ""),
        ("AmbientCapabilities", ""),
        ("DevicePolicy", "closed"),
        ("KeyringMode", "private"),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
        ("SystemCallArchitectures", "native"),
        ("SystemCallFilter", _CALLS),
        ("SystemCallFilter", f"~{_REFUSED}"),
        ("SystemCallFilter", _ALLOWED_AGAIN),
        ("SystemCallErrorNumber", "EPERM"),
        ("UMask", "0022"),
        # How much.
        *limits(size),
        ("MemorySwapMax", "0"),
        ("LimitNOFILE", str(oci.file_limit())),
        ("LimitCORE", "0"),
        ("OOMScoreAdjust", "500"),
        ("OOMPolicy", "continue"),
        # How it ends.
        ("KillMode", "control-group"),
        ("TimeoutStopSec", "5"),
    ]


def program(spec: StartSpec, homes: Sequence[str]) -> list[str]:
    """The agent, which is no first process there."""
    writable = [*homes, *(each.path for each in spec.volumes if not each.read_only)]
    return [
        oci.AGENT_PATH,
        *("--listen", f"tcp:0.0.0.0:{AGENT_PORT}"),
        *("--inside", "/run/roost/socket"),
        *confined.arguments(writable, not spec.unrestricted),
    ]


def environment(spec: StartSpec, told: Mapping[str, str]) -> str:
    """For ``EnvironmentFile``: the agent's, the token among it."""
    values = {
        "PATH": oci.PATH,
        "LANG": "C.UTF-8",
        "container": "roost",
        **told,
        **spec.env,
        "HOME": confined.HOME,
        "ROOST_AGENT_TOKEN": spec.agent_token,
    }
    return "".join(f"{key}={_quoted(value)}\n" for key, value in values.items())


def text(made: Properties, argv: Sequence[str]) -> str:
    """As a unit file says it."""
    lines = [f"{key}={value}" for key, value in made]
    return "\n".join(["[Service]", f"ExecStart={' '.join(argv)}", *lines, ""])


def command(unit: str, made: Properties, argv: Sequence[str]) -> list[str]:
    """Returns when it was started, or could not be."""
    said = [f"--property={key}={value}" for key, value in made]
    return ["systemd-run", "--quiet", "--collect", f"--unit={unit}", *said, "--", *argv]


def _quoted(value: str) -> str:
    """Between double quotes systemd takes all as it stands but these."""
    escaped = "".join(f"\\{c}" if c in '"\\`$' else c for c in value)
    return f'"{escaped}"'
