"""What each rung is, what it can and what it defends against: the one source of every claim.

A machine's claim is the sentence of its driver, a contract the lines below it. Each line says how it is known:

    measured      found on this host just now (by the driver's probe or a check of the host)
    tested        held by tests of this project, which are named
    unverified    nobody could look

"sandboxed" is a word of rungs 2 and 3. Rungs 0 and 1 are isolated workspaces: they keep what one trusts apart, and say so.
Pure: who looks at the host hands in what was found (``Facts``). Drivers, API, command line and documents take it from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

MEASURED, TESTED, UNVERIFIED = "measured", "tested", "unverified"

# What was found on this host, by name; what is not in it nobody looked at.
Facts = Mapping[str, bool]

FACTS = {
    "cgroups": "the host's cgroup controllers",
    "kvm": "a guest that was to boot under KVM",
    "landlock": "the kernel's Landlock",
    "memory": "the driver's settings and probe",
}

ADVICE = (
    "Put agents that read what strangers write, or that nobody watches, on another host than the one you work on, or on"
    " rung 3; rungs 0 and 1 are for code you would run yourself."
)

UNRESTRICTED = (
    "Every command runs unasked: no tool policy holds, and on rungs 0 and 1 neither Landlock nor the agent's resource"
    " limits. The rest of the boundary around the machine stays as it is."
)


@dataclass(frozen=True, slots=True)
class Line:
    """``by``: the tests, or what looked; of one that is unverified, why."""

    text: str
    known: str
    by: str


@dataclass(frozen=True, slots=True)
class Contract:
    driver: str
    level: int
    claim: str
    boundary: str
    can: tuple[Line, ...]
    defends_against: tuple[Line, ...]
    does_not: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Says:
    """A line before anybody looked. ``fact``: true of this host only where that is; where it is not, ``otherwise``
    stands on the other side."""

    text: str
    tests: str = ""
    fact: str = ""
    otherwise: str = ""
    untried: str = ""


@dataclass(frozen=True, slots=True)
class _Rung:
    level: int
    claim: str
    boundary: str
    can: tuple[_Says, ...]
    defends: tuple[_Says, ...]
    not_: tuple[_Says, ...]


_DRIVERS = "tests/system/host/test_drivers.py"
_WORKSPACE = "tests/system/test_workspace.py"
_KERNEL = "tests/attack/test_kernel.py"
_RESOURCES = "tests/attack/test_resources.py"

_EGRESS = _Says(
    "reaching what its egress policy, the host or a neighbour does not allow",
    "tests/attack/test_packets.py",
)
_QUOTA = _Says(
    "taking more memory, processor time or processes than its size",
    fact="cgroups",
    otherwise="taking the host's memory, processor time and processes: cgroups cannot be used here",
)
_DISK = _Says("filling the host's disk: its own is of the size asked for", _RESOURCES)
_FILES = _Says("a path or link that leads the files API out of it", "tests/attack/test_files.py")
_TREE = _Says("what a command leaves behind: its timeout ends the whole tree", _RESOURCES)
_HELPERS = _Says(
    "a command whose root keeps the agent's helpers from their work: it may outlive its timeout, until the machine sleeps or ends",
    untried="it depends on who is faster",
)
_OTHERS = _Says("seeing or ending processes and files of the host or of others", _KERNEL)
_HOSTS_KERNEL = _Says(
    "flaws of the host's kernel, which its programs call themselves",
    untried="a flaw that nobody knows cannot be tried",
)
_SIDE = _Says("side channels of a processor that is shared", untried="not tried")

_RUNGS = {
    "workspace": _Rung(
        0,
        "isolated workspace: a directory of its own, for code one trusts; nothing keeps its programs from "
        "the host's network and processes, nor its storage from growing but file by file",
        "none: a directory of the host, whose programs are the host's and run side by side as one ordinary "
        "user; paths of the files API do not leave it",
        (
            _Says("start without root", _WORKSPACE),
            _Says(
                "run the host's own programs, and fork and snapshot its directory",
                _WORKSPACE,
            ),
        ),
        (
            _FILES,
            _TREE,
            _Says(
                "mistakes that write outside its directory, /tmp, /var/tmp and /dev (a guardrail: it can be led around)",
                fact="landlock",
                otherwise="mistakes that write outside its directory: the kernel has no Landlock",
            ),
        ),
        (
            _Says(
                "a program that means harm: it reads, ends and changes what its user on this host can, its own agent "
                "among it, and may run on when the machine is gone",
                _KERNEL,
            ),
            _Says(
                "its network: there is no egress policy, and its servers listen on the host's own address",
                _WORKSPACE,
            ),
            _Says("other workspaces: their programs are one user's, side by side", _KERNEL),
            _Says(
                "what it writes outside its directory, to /tmp, /var/tmp or /dev/shm: that stays when it is gone",
                untried="not tried: nothing takes it away",
            ),
        ),
    ),
    "user": _Rung(
        1,
        "isolated workspace: one user without root (no sudo, no installing of packages), who writes "
        "to a home of its own alone; it shares the host's kernel",
        "One unprivileged user of a block of its own: Linux namespaces, no capabilities, a read-only "
        "system, a seccomp allow-list, cgroups, and Landlock where the kernel has it and the machine is not unrestricted; "
        "shares the host's kernel",
        (
            _Says(
                "have a network and a disk of its own; be forked, kept and put to sleep",
                "tests/system/test_user.py",
            ),
            _Says("be taken up to rung 2 or 3 with its disk", "tests/system/test_promotion.py"),
        ),
        (
            _EGRESS,
            _QUOTA,
            _DISK,
            _FILES,
            _TREE,
            _OTHERS,
            _Says("becoming root by setuid files", _KERNEL),
        ),
        (
            _HOSTS_KERNEL,
            _SIDE,
            _Says(
                "work that needs root in it: sudo and apt do not work", "tests/system/test_user.py"
            ),
        ),
    ),
    "runc": _Rung(
        2,
        "sandboxed by runc",
        "Linux namespaces (root in the machine is nobody on the host), cgroups, dropped capabilities "
        "and a seccomp allow-list; shares the host's kernel",
        (
            _Says("run as root inside", _DRIVERS),
            _Says(
                "fork and snapshot its disk; sleep ends its processes", "tests/system/test_forks.py"
            ),
        ),
        (
            _EGRESS,
            _QUOTA,
            _DISK,
            _FILES,
            _TREE,
            _OTHERS,
        ),
        (_HOSTS_KERNEL, _SIDE),
    ),
    "gvisor": _Rung(
        2,
        "sandboxed by gVisor",
        "gVisor's own kernel in user space (systrap), in namespaces and an empty root of its own "
        "behind seccomp; the host's kernel serves it a narrow set of calls",
        (
            _Says("run as root inside, under a kernel of its own", _DRIVERS),
            _Says(
                "fork, snapshot and sleep with memory",
                fact="memory",
                otherwise="keeping memory in forks, snapshots and sleep: it is switched off",
            ),
        ),
        (
            _EGRESS,
            _QUOTA,
            _DISK,
            _FILES,
            _TREE,
            _Says(
                "its programs' system calls reaching the host's kernel, but for the few that gVisor makes",
                _KERNEL,
            ),
            _OTHERS,
        ),
        (
            _Says("flaws of gVisor and of the calls it makes", untried="not tried"),
            _SIDE,
            _HELPERS,
            _Says(
                "a memory bomb or fork bomb ending the machine itself; its disk is whole",
                "tests/system/host/test_drivers.py",
            ),
        ),
    ),
    "qemu": _Rung(
        3,
        "sandboxed by a QEMU microVM ({how})",
        "a virtual machine with a kernel of its own (QEMU microvm, {how}); the monitor is an "
        "unprivileged user in an empty root and namespaces of its own, behind seccomp",
        (
            _Says(
                "run as root inside, with a Linux kernel of its own, containers included",
                "tests/system/test_microvm.py",
            ),
            _Says("fork, snapshot and sleep with memory", "tests/system/test_microvm.py"),
            _Says(
                "run at the processor's own speed",
                fact="kvm",
                otherwise="speed: KVM does not work here, so its processor is emulated",
            ),
        ),
        (
            _EGRESS,
            _QUOTA,
            _DISK,
            _FILES,
            _TREE,
            _Says("its programs' system calls reaching the host's kernel", _KERNEL),
            _Says(
                "a guest that takes over its monitor: that is a user of its own in an empty root, behind seccomp",
                "tests/system/qemu/test_vmm.py",
            ),
        ),
        (
            _Says(
                "flaws of QEMU's devices together with flaws of the host's kernel, and, where it is used, flaws of KVM",
                untried="not tried",
            ),
            _SIDE,
            _HELPERS,
        ),
    ),
}

# The same by another hand, that nobody has tried with machines.
_RUNGS["systemd"] = replace(
    _RUNGS["user"],
    boundary="One user of the host that is nobody else, in a transient unit of systemd: no capabilities, a "
    "read-only system, system calls refused, cgroups, and Landlock where the kernel has it and the machine is not "
    "unrestricted; shares the host's kernel and its numbers of processes",
    can=(_Says("what `user` can, as units of systemd", untried="not tried with machines"),),
    defends=(_Says("what `user` does, by systemd's means", untried="not tried with machines"),),
)

_HOW = {True: "KVM", False: "full emulation"}


_ISOLATIONS = ("workspace", "user", "container", "microvm")


def names() -> list[str]:
    """Drivers with a contract, the lowest rung first."""
    return list(_RUNGS)


def isolation(driver: str) -> str:
    return _ISOLATIONS[_RUNGS[driver].level]


def claim(driver: str, *, accelerated: bool = False) -> str:
    return _RUNGS[driver].claim.format(how=_HOW[accelerated])


def boundary(driver: str, *, accelerated: bool = False) -> str:
    return _RUNGS[driver].boundary.format(how=_HOW[accelerated])


def sentences(driver: str) -> set[str]:
    """Every claim that machines of this driver may make."""
    return {claim(driver, accelerated=how) for how in _HOW}


def contract(driver: str, facts: Facts) -> Contract | None:
    """Of a driver, on a host where that was found; None for one that claims nothing (a test's)."""
    rung = _RUNGS.get(driver)
    if rung is None:
        return None
    lacking: list[Line] = []
    can = tuple(_told(rung.can, facts, lacking))
    defends = tuple(_told(rung.defends, facts, lacking))
    accelerated = bool(facts.get("kvm"))
    return Contract(
        driver,
        rung.level,
        claim(driver, accelerated=accelerated),
        boundary(driver, accelerated=accelerated),
        can,
        defends,
        (*lacking, *_told(rung.not_, facts, lacking)),
    )


def _told(lines: Iterable[_Says], facts: Facts, lacking: list[Line]) -> Iterable[Line]:
    for each in lines:
        if each.tests:
            yield Line(each.text, TESTED, each.tests)
        elif not each.fact:
            yield Line(each.text, UNVERIFIED, each.untried)
        elif each.fact not in facts:
            yield Line(each.text, UNVERIFIED, f"not looked at here: {FACTS[each.fact]}")
        elif facts[each.fact]:
            yield Line(each.text, MEASURED, FACTS[each.fact])
        elif each.otherwise:
            lacking.append(Line(each.otherwise, MEASURED, FACTS[each.fact]))


def tests() -> set[str]:
    """All that are named."""
    return {
        each.tests
        for rung in _RUNGS.values()
        for each in (*rung.can, *rung.defends, *rung.not_)
        if each.tests
    }


def warnings(level: int, unrestricted: bool) -> list[str]:
    """What the owner of a machine ought to know of how it runs."""
    if not unrestricted:
        return []
    if level < 2:
        return [
            "Unrestricted on an isolated workspace: nothing asks before a command runs, and no guardrail is left. "
            + ADVICE
        ]
    return [
        "Unrestricted: nothing asks before a command runs; the boundary around it is all there is."
    ]
