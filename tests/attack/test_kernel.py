"""11-20: what a machine's programs, root among them where there is one, get of the kernel under them and of the host.

On the rungs that share the host's kernel all of it is refused. gVisor and a microVM have one of their own: what that
grants stays inside, so there the host is looked at.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import RoostError
from tests.system.conftest import Daemon

from .record import case, escapes, untested
from .rung import Rung, harm, until

SURFACE = Path(__file__).with_name("surface.py")
SHARED = ("workspace", "user", "runc")  # the host's kernel
NOT_THERE = {
    "ENOENT",
    "ENODEV",
    "ENXIO",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "EROFS",
}
REFUSED = {"EPERM", "EACCES", "ENOSYS"}
NO_BOUNDARY = (
    "workspaces' programs run as one ordinary account of the host, behind nothing but Landlock"
)

FILES = """core_pattern modprobe panic overcommit drop_caches sysrq-trigger binfmt uevent_helper power release_agent
release_agent_of_rdma cgroup.procs firmware"""
NAMESPACES = """mount unshare_mount unshare_user unshare_network unshare_pid setns setns_user pivot_root fsopen open_tree
mount_setattr open_by_handle_at breakout"""
DEVICES = """node_of_memory node_of_kvm node_of_tun node_of_fuse node_of_loop-control node_of_a_loop node_of_a_disk
node_of_a_virtual_disk /dev/mem /dev/kmsg /dev/kvm /dev/loop0 /dev/fuse /dev/vsock iopl"""
SOCKETS = "packet alg vsock netlink_uevent netlink_netfilter bluetooth can tipc xdp"
PAIRS = """pair_of_unix pair_of_packet pair_of_alg pair_of_vsock pair_of_bluetooth pair_of_can pair_of_tipc
pair_of_xdp"""
CALLS = """init_module finit_module delete_module bpf perf io_uring userfaultfd keyctl add_key kexec reboot swapon acct
syslog clock"""
# Values of the host's that a machine may not change, whatever it is granted inside.
HOSTS = [
    Path(f"/proc/sys/{name}")
    for name in (
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/panic",
        "kernel/hostname",
        "vm/overcommit_memory",
        "net/ipv4/ip_forward",
    )
]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls of x86-64")


@pytest.fixture
def untouched() -> Iterator[None]:
    before = {path: path.read_bytes() for path in HOSTS if path.exists()}
    yield
    with harm():
        assert {path: path.read_bytes() for path in before} == before


@pytest.fixture
def unmounted() -> Iterator[None]:
    """The host's mounts are what they were, but for what daemons do there."""

    def look() -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line for line in lines if "roost" not in line and " - nsfs " not in line]

    before = look()
    yield
    with harm():
        assert look() == before


def probed(rung: Rung, names: str) -> dict[str, str]:
    """What came of each."""
    rung.machine.files.write(f"{rung.home}/surface.py", SURFACE.read_bytes())
    restrained = ["restrained"] if rung.name == "workspace" else []
    done = rung.machine.exec(
        ["python3", f"{rung.home}/surface.py", *restrained],
        stdin=json.dumps(names.split()),
        timeout=120,
    )
    done.check()
    found: dict[str, str] = json.loads(done.stdout)
    return found


def granted(found: dict[str, str], *also_refusals: str) -> dict[str, str]:
    return {k: v for k, v in found.items() if v not in REFUSED | set(also_refusals)}


@case(11)
def test_no_knob_of_the_kernels_is_turned(rung: Rung, untouched: None) -> None:
    found = probed(rung, FILES)
    if rung.name in SHARED:
        assert granted(found, *NOT_THERE) == {}


@case(11)
@untested(*SHARED, reason="it has no kernel of its own to change")
def test_a_kernel_of_its_own_is_changed_alone(rung: Rung, untouched: None) -> None:
    """Set to something else for good, where it lets itself be set at all."""
    for name, value in (
        ("kernel/core_pattern", "|/canary"),
        ("kernel/hostname", "canary"),
        ("kernel/panic", "77"),
    ):
        rung.machine.exec(["sh", "-c", f"echo '{value}' >/proc/sys/{name}"])
    rung.machine.exec("hostname $(cat /etc/hostname); echo 0 >/proc/sys/kernel/panic")


@case(12)
@escapes("workspace", reason=NO_BOUNDARY)
def test_no_mount_and_no_namespace(rung: Rung, untouched: None, unmounted: None) -> None:
    found = probed(rung, NAMESPACES)
    if rung.name in SHARED:
        assert granted(found) == {}
    if rung.name != "qemu":  # where it may find the RAM disk that it was booted from
        assert found["breakout"] != "done"


@case(13)
def test_no_device(rung: Rung, untouched: None) -> None:
    """Beside those that the host gives to everybody, where it is the host's everybody."""
    found = probed(rung, DEVICES)
    if rung.name == "workspace":
        found = {k: v for k, v in found.items() if not k.startswith("/dev/")}
    if rung.name in SHARED:
        assert granted(found, *NOT_THERE) == {}


@case(15)
@escapes("workspace", reason=NO_BOUNDARY)
def test_no_socket_but_of_the_internet(rung: Rung, untouched: None) -> None:
    """Nor a pair of them: to find that a family has none the kernel makes two of its sockets, so where a filter stands
    before it nothing else may have answered."""
    found = probed(rung, f"{SOCKETS} {PAIRS}")
    assert found.pop("pair_of_unix") == "done"
    if rung.name in SHARED:
        assert granted(found, *NOT_THERE, "EINVAL") == {}
    if rung.name in ("user", "runc"):
        pairs = {k: v for k, v in found.items() if k.startswith("pair_of_")}
        assert pairs and {k: v for k, v in pairs.items() if v != "EPERM"} == {}


@case(16)
@escapes("workspace", reason=NO_BOUNDARY)
def test_no_code_for_the_kernel_and_nothing_that_watches_it(rung: Rung, untouched: None) -> None:
    found = probed(rung, CALLS)
    if rung.name in SHARED:
        assert granted(found) == {}


# --- others on the host ---------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host's, with a canary in its environment, its memory and its working directory."""
    with tempfile.TemporaryDirectory(prefix="roost-stranger-") as place:
        Path(place, "canary").write_text("roost-stranger-file")
        process = subprocess.Popen(
            ["sleep", "987654"], cwd=place, env={"CANARY": "roost-stranger-environment"}
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


REACH = """
import ctypes, json, os, signal, sys
pid, canary = map(int, sys.argv[1:]); found = {}
libc = ctypes.CDLL(None, use_errno=True)
def tell(name, what):
    try: found[name] = str(what())
    except (OSError, ValueError) as exc: found[name] = "refused: " + type(exc).__name__
def call(number, *args):
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in args]
    if libc.syscall(number, *given) < 0: raise OSError(ctypes.get_errno(), "")
def copied():  # process_vm_readv
    into = ctypes.create_string_buffer(64)
    here, there = ((ctypes.c_size_t * 2)(at, 64) for at in (ctypes.addressof(into), canary))
    call(310, pid, here, 1, there, 1, 0)
    return into.raw
def memory():
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(canary)
        return file.read(64)
def seen():
    for each in os.listdir("/proc"):
        if each.isdigit() and each != str(os.getpid()):
            try:
                if "987654" in open(f"/proc/{each}/cmdline").read(): return "roost-stranger seen"
            except OSError: pass
    raise OSError
tell("seen", seen)
tell("environment", lambda: open(f"/proc/{pid}/environ").read())
tell("directory", lambda: open(f"/proc/{pid}/cwd/canary").read())
tell("root", lambda: os.listdir(f"/proc/{pid}/root/tmp"))
tell("memory", memory)
tell("copied", copied)
tell("attach", lambda: call(101, 16, pid, 0, 0))
tell("stop", lambda: os.kill(pid, signal.SIGUSR1))
tell("all", lambda: os.kill(-1, 0))
print(json.dumps(found))
"""


@case(14)
@escapes("workspace", reason=NO_BOUNDARY)
def test_no_process_of_the_hosts(rung: Rung, stranger: subprocess.Popen[bytes]) -> None:
    environment = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[47]
    asked = ["python3", "-c", REACH, str(stranger.pid), environment]
    done = rung.machine.exec(asked, timeout=60).check()
    with harm():
        assert stranger.poll() is None, "its signal came through"
    found = json.loads(done.stdout)
    del found["all"]  # who is sent a signal with everybody is its own
    assert {k: v for k, v in found.items() if not v.startswith("refused")} == {}


@case(14)
@escapes("workspace", reason=NO_BOUNDARY)
def test_no_process_of_the_neighbours(rung: Rung) -> None:
    """By its command line, nor by any signal that is sent to everybody."""
    neighbour = rung.neighbour.start(["sleep", "876543"])
    try:
        seen = rung.machine.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        assert "sleep 876543" not in seen
        rung.machine.exec("pkill -9 -f '[s]leep 876543'")
        assert neighbour.refresh().status == "running"
    finally:
        neighbour.kill()


@case(39)
def test_nothing_of_the_daemons_is_read(rung: Rung, led: Daemon) -> None:
    """Its database, keys, pool, sockets: by the paths that they have on the host."""
    names = ("key", "roost.db", "secret", "secrets.key", "pool.xfs", "pool/images", "vmm", "logs")
    paths = [str(led.data_dir / name) for name in names]
    paths += [str(led.run_dir), str(led.run_dir / "machines"), str(led.run_dir / "egress.sock")]
    said = rung.machine.exec(["sh", "-c", 'for p; do cat "$p" || ls "$p/"; done', "-", *paths])
    assert said.stdout == "", said.stdout[:500]


@case(18)
def test_a_program_inherits_three_descriptors(rung: Rung, led: Daemon) -> None:
    """And none of those that the machine's other processes hold is a file of the host's."""
    said = rung.machine.exec(
        [
            "python3",
            "-c",
            "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])",
        ]
    )
    assert said.stdout.strip() == "[0, 1, 2]", said
    if rung.name == "workspace":
        return
    held = rung.machine.exec("ls -l /proc/[0-9]*/fd 2>/dev/null | grep -o '[-]> .*'").stdout
    theirs = {
        line for line in held.split("\n") if str(led.data_dir) in line or str(led.run_dir) in line
    }
    own = (
        led.run_dir / "machines" / rung.name / rung.machine.id / "console"
    )  # a pipe, its agent's output
    assert theirs <= {f"-> {own}"}, theirs


@case(19)
@escapes("workspace", reason=NO_BOUNDARY)
def test_no_socket_of_the_hosts(rung: Rung) -> None:
    """Neither those that programs look for nor one in the abstract, where paths confine nobody."""
    name = f"roost-canary-{os.getpid()}"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        said = rung.machine.exec(
            [
                "python3",
                "-c",
                "import socket, sys; socket.socket(socket.AF_UNIX).connect(chr(0) + sys.argv[1])",
                name,
            ]
        )
        assert said.exit_code != 0 and "refused" in said.stderr, said
    found = rung.machine.exec(
        "env | grep -E '^(SSH_AUTH_SOCK|DBUS_|DOCKER_|XDG_RUNTIME_DIR|GPG_AGENT)'; "
        "ls -d /run/docker.sock /var/run/docker.sock /run/containerd /run/dbus/system_bus_socket /run/user/* 2>/dev/null"
    ).stdout
    assert found == ""


@case(17)
@untested(
    "workspace",
    "runc",
    "gvisor",
    "qemu",
    reason="root is within reach there, and is the machine's own",
)
def test_setuid_makes_nobody_root(rung: Rung) -> None:
    assert rung.machine.exec("grep NoNewPrivs /proc/self/status").stdout.split()[1] == "1"
    rung.machine.exec("cp /bin/bash ~/rootly; chmod 4755 ~/rootly")
    assert rung.machine.exec("~/rootly -p -c 'id -u'").stdout.strip() not in ("", "0")
    for each in ("sudo -n id -u", "su -c 'id -u' </dev/null", "pkexec id -u"):
        assert rung.machine.exec(each, timeout=20).stdout.strip() != "0", each
    with contextlib.suppress(RoostError):
        rung.machine.files.write(f"{rung.home}/other", b"#!/bin/sh\nid -u\n", mode=0o4755)
        assert rung.machine.exec("~/other").stdout.strip() != "0"


LITTER = """
ipcmk -Q; ipcmk -M 65536; ipcmk -S 2
echo x >/dev/shm/roost-litter; echo x >/tmp/roost-litter; echo x >/var/tmp/roost-litter
echo '* * * * * true' | crontab -; echo true | at now + 1 hour
(setsid nohup sleep 765432 >/dev/null 2>&1 &)
"""


def litter() -> dict[str, object]:
    ipc = {
        kind: Path(f"/proc/sysvipc/{kind}").read_text().count("\n")
        for kind in ("msg", "shm", "sem")
    }
    places = ("/tmp", "/var/tmp", "/dev/shm", "/var/spool/cron", "/dev/mqueue")
    files = [str(p) for place in places for p in Path(place).glob("*litter*")]
    jobs = [str(p) for p in Path("/var/spool/cron").glob("**/*") if p.is_file()]
    running = subprocess.run(
        ["pgrep", "-f", "sleep 765432"], capture_output=True, check=False
    ).stdout
    return {**ipc, "files": files, "jobs": jobs, "running": running}


@case(20)
@escapes("workspace", reason="its `/tmp`, shared memory and IPC are the host's", run=False)
def test_nothing_of_it_is_left_on_the_host(rung: Rung) -> None:
    before = litter()
    with rung.another() as m:
        m.exec(LITTER, timeout=30)
        until(lambda: m.exec("pgrep -fx 'sleep 765432'").ok)
        made = m.exec("ls -d /tmp/roost-litter && pgrep -fx 'sleep 765432'")
        assert len(made.check().stdout.split()) == 2, made
    assert litter() == before
