"""docs/hardening.md says what the code does: no capability, call or advisory is missing there, and none is too many."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from roost.drivers import oci, seccomp
from roost.host.advisories import ADVISORIES

PAGE = Path(__file__).parents[3] / "docs" / "hardening.md"
# capabilities(7); what a newer kernel adds is left out, too, for the list of those given is one of names.
_ALL = """
AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER
FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE
NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE
SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM
"""
_PROTOCOLS = {0: "NETLINK_ROUTE", 4: "NETLINK_SOCK_DIAG"}


def _table(name: str) -> list[str]:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /", PAGE.read_text(), re.DOTALL)
    assert found, name
    return found[1].splitlines()


def _names(name: str, column: int) -> list[str]:
    cells = [line.split("|")[column] for line in _table(name)[2:]]
    return [each for cell in cells for each in re.findall(r"`([A-Za-z0-9_]+)`", cell)]


def test_every_capability_is_given_or_left_out_with_a_reason() -> None:
    given, left_out = _names("capabilities given", 1), _names("capabilities left out", 1)
    assert [f"CAP_{name}" for name in given] == oci.CAPABILITIES
    assert sorted(given + left_out) == sorted(_ALL.split())


def test_every_call_that_may_be_made_is_there_once_with_a_reason() -> None:
    given = _names("calls given", 3)
    assert sorted(given) == sorted(seccomp.ALLOWED)
    for line in _table("calls given")[2:]:
        assert len(line.split("|")[2].split()) > 2


def test_every_call_that_may_be_made_with_some_arguments_is_there_with_them_and_a_reason() -> None:
    rows = {}
    for line in _table("calls given by arguments")[2:]:
        _, name, given, reason, _ = line.split("|")
        rows[name.strip(" `")] = set(re.findall(r"`(\w+)`", given))
        assert len(reason.split()) > 2
    assert rows == {name: _told(name, args) for name, args in _by_arguments().items()}


def _by_arguments() -> dict[str, list[list[int]]]:
    """What is allowed so."""
    found: dict[str, list[list[int]]] = {}
    for rule in seccomp.profile()["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" in rule:
            for name in rule["names"]:
                found.setdefault(name, []).append([each["value"] for each in rule["args"]])
    return found


def _told(name: str, allowed: list[list[int]]) -> set[str]:
    if name == "clone":
        return {"CLONE_NEW"}
    if name == "personality":
        return {f"{value:#x}" for (value,) in allowed}
    families = {socket.AddressFamily(family).name for family, *_ in allowed}
    return families | {_PROTOCOLS[protocol] for _, *rest in allowed for protocol in rest}


def test_no_call_that_is_said_to_be_left_out_may_be_made() -> None:
    assert not set(_names("calls left out", 1)) & {*seccomp.ALLOWED, *_by_arguments()}


def test_none_that_may_be_made_with_some_arguments_may_be_made_with_all() -> None:
    for allowed in (seccomp.ALLOWED, seccomp.ALLOWED_WITHOUT_ROOT):
        assert not set(_by_arguments()) & set(allowed)


def test_every_known_way_out_is_on_the_page_as_the_code_has_it() -> None:
    assert "\n".join(_table("advisories")) == advisories()


def advisories() -> str:
    rows = ["| id | program | what | mended in | here |", "|---|---|---|---|---|"]
    for it in ADVISORIES:
        mended = ", ".join((*it.fixed, *it.debian))
        rows.append(f"| {it.id} | {it.program} | {it.what} | {mended} | {it.here or 'refused'} |")
    return "\n".join(rows)
