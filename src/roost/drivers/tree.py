"""Our files on a machine's mounted disk: the agent, its name, its resolver, the host's authorities.

The machine's root writes this tree as it likes while it runs, so everything goes through
``host.safefs.Tree``. What cannot be written (a full disk, a directory where a file should be) is left,
but for the agent: without it there is no machine.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from roost.errors import InternalError, MachineError
from roost.host.safefs import Tree

AGENT_MODE = 0o555
# Runtimes lay mounts there and make files in them before the machine's root is theirs: a link would lead them out of it.
_MOUNT_POINTS = ("dev", "proc", "run", "sys")
_SMALL = 1 << 20
_CA_FILE = "etc/ssl/certs/roost-host.pem"
_HOST_CA = Path("/etc/ssl/certs/ca-certificates.crt")

CA_ENVIRONMENT = dict.fromkeys(
    (
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
    ),
    f"/{_CA_FILE}",
)


class AgentBinary:
    """The host's copy of the agent; read once and kept, since every start may need it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as exc:
            raise InternalError(
                f"The agent is not at {self.path}: run scripts/up, which builds it."
            ) from exc

    @functools.cached_property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"


def host_authorities() -> dict[str, bytes]:
    """What ``CA_ENVIRONMENT`` names; nothing where the host has none."""
    try:
        return {f"/{_CA_FILE}": _HOST_CA.read_bytes()}
    except OSError:
        return {}


def default_agent() -> Path:
    import roost

    return Path(roost.__file__).parent / "_bin" / "roost-agent"


def put_agent(tree: Tree, agent: AgentBinary) -> bool:
    """True where it had to be written."""
    found = tree.digest(".roost/agent", len(agent.content), AGENT_MODE)
    if found is not None and f"sha256:{found}" == agent.digest:
        return False
    tree.make_directory(".roost", 0o755)
    tree.write(".roost/agent", agent.content, AGENT_MODE)
    return True


def make_mount_points(root: Path, paths: Sequence[str]) -> None:
    """For all in the machine to pass: a runtime would make them root's alone. Where a link leads elsewhere it does."""
    with Tree(root) as made:
        for path in paths:
            with contextlib.suppress(OSError):
                made.make_directories(path.lstrip("/"), 0o755)


def prepare(
    root: Path,
    agent: AgentBinary,
    *,
    has_agent: bool,
    hostname: str,
    linux_id: str | None,
    nameserver: str,
    host_ca: bool,
) -> bool:
    """Before each start. ``has_agent``: the disk is fresh from an image that carries this very agent.
    ``linux_id``: of a fresh disk. True unless something of a fresh disk's identity is left for the agent to
    renew (SSH host keys: making them is a program of the machine's)."""
    with Tree(root) as tree:
        try:
            for name in _MOUNT_POINTS:
                tree.make_directory(name, 0o755)
            if not has_agent:
                put_agent(tree, agent)
        except OSError as exc:
            raise MachineError(
                f"What a machine starts with cannot be put on its disk: {exc.strerror}. Free space in the "
                "machine or grow its storage.",
                code="MACHINE_FAILED",
            ) from exc
        _put(tree, "etc/resolv.conf", f"nameserver {nameserver}\noptions timeout:2 attempts:3\n")
        _put(tree, "etc/hostname", f"{hostname}\n")
        # gVisor lays an empty /tmp over one that has nothing in it.
        _put(tree, "tmp/.roost-keep", "")
        own = f"127.0.1.1\t{hostname}"
        hosts = tree.read("etc/hosts", _SMALL)
        if hosts is None or own.encode() not in hosts.splitlines():
            _put(tree, "etc/hosts", f"127.0.0.1\tlocalhost\n{own}\n::1\tlocalhost ip6-localhost\n")
        if host_ca and _HOST_CA.exists():
            # Beside the distribution's own for programs told by CA_ENVIRONMENT (those that bring a list
            # of theirs), and in its place for all that ask the system.
            authorities = _HOST_CA.read_text()
            _put(tree, _CA_FILE, authorities)
            _put(tree, "etc/ssl/certs/ca-certificates.crt", authorities)
        return linux_id is None or _identify(tree, linux_id)


def _identify(tree: Tree, linux_id: str) -> bool:
    text = f"{linux_id}\n"
    _put(tree, "etc/machine-id", text, 0o444)
    if (
        tree.read("var/lib/dbus/machine-id", _SMALL) is not None
    ):  # a file of its own, not the usual link
        _put(tree, "var/lib/dbus/machine-id", text, 0o444)
    try:
        names = tree.names("etc/ssh")
    except FileNotFoundError:
        names = []
    except OSError:
        return False
    has_keys = any(name.startswith("ssh_host_") for name in names)
    return not has_keys and tree.read("etc/machine-id", _SMALL) == text.encode()


def _put(tree: Tree, path: str, text: str, mode: int = 0o644) -> None:
    data = text.encode()
    if tree.read(path, max(_SMALL, len(data))) != data:
        with contextlib.suppress(OSError):
            tree.write(path, data, mode)
