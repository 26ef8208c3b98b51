"""A machine that attacks, on one rung, and what it does."""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost import Machine
from tests.system.internet import Internet, Seen

INSIDE = Path(__file__).with_name("inside.py")
PATIENCE_S = 90.0
MEMORY_MIB = 256
ICMP_UNREACHABLE = 3  # its type

Attempt = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    ok: bool
    said: str
    attempt: Attempt

    def __str__(self) -> str:
        return f"{self.attempt} -> {'said' if self.ok else 'failed'}: {self.said[:300]!r}"


@dataclass(frozen=True)
class Known:
    """A process of a machine, which no other boot of it has, and a file."""

    tell: str
    said: str

    @staticmethod
    def plant(machine: Machine) -> Known:
        kept = secrets.token_hex(32)
        machine.files.write(f"{home(machine)}/known", kept, sync=True)
        pid = machine.exec("nohup sleep 1000007 >/dev/null 2>&1 & echo $!").check().stdout.strip()
        known = Known(f"tr '\\0' ' ' </proc/{pid}/cmdline; cat ~/known", f"sleep 1000007 {kept}")
        until(lambda: machine.exec(known.tell).stdout == known.said)
        return known


@dataclass
class Rung:
    """``machine`` attacks, ``neighbour`` is a bystander on the same host. ``home``: where either may write, as a path
    in it."""

    name: str
    machine: Machine
    neighbour: Machine
    wild: Internet | None
    known: Known = field(init=False)  # by what the neighbour is known again

    def __post_init__(self) -> None:
        self.known = Known.plant(self.neighbour)

    @property
    def internet(self) -> Internet:
        assert self.wild is not None, "the test is not marked own_network"
        return self.wild

    @property
    def home(self) -> str:
        return home(self.machine)

    @property
    def keeps_memory(self) -> bool:
        return self.name in ("gvisor", "qemu")

    def another(self, **options: Any) -> Machine:
        """Of the same rung; the caller's to destroy."""
        return Machine.create(
            driver=self.name, **{"memory_mib": MEMORY_MIB, "autosleep": "never", **options}
        )

    def leash(self, mode: str, *allow: str, observe: bool = False) -> None:
        leash(self.machine, mode, *allow, observe=observe)

    def attempt(self, *attempts: Attempt, machine: Machine | None = None) -> list[Outcome]:
        """All at once; in their order."""
        stays = machine is None or machine is self.neighbour
        command = "cat >~/attempts && cat ~/outcomes" if stays else "python3 ~/inside.py"
        done = (machine or self.machine).exec(
            command, stdin=json.dumps(attempts), timeout=PATIENCE_S
        )
        done.check()
        results = json.loads(done.stdout)
        return [
            Outcome(each["ok"], each["said"], attempt)
            for each, attempt in zip(results, attempts, strict=True)
        ]

    def reached(self, address: str, since: float = 0.0) -> list[Seen]:
        """What came to an attacker; whatever was sent has arrived by then."""
        time.sleep(0.1)
        return self.internet.seen("packet", to=address, since=since)

    def ports(self, address: str) -> set[tuple[str, int]]:
        """By protocol; an ICMP error is no attempt but what a closed socket says to an answer."""
        return {
            (each.said, each.port)
            for each in self.reached(address)
            if each.said != "icmp" or each.more["head"][0] != ICMP_UNREACHABLE
        }

    def asked(self, since: float) -> set[str]:
        """Names that the resolver of the internet was asked for."""
        time.sleep(0.1)
        return {each.said for each in self.internet.seen("dns", since=since)}


def leash(machine: Machine, mode: str, *allow: str, observe: bool = False) -> None:
    allowed = list(allow) if mode == "allowlist" else None
    machine.set_egress(mode, allow=allowed, observe=observe)


def prepare(machine: Machine, internet: Internet) -> None:
    """With what attacks in it, and stays there."""
    machine.files.write(f"{home(machine)}/inside.py", INSIDE.read_bytes())
    machine.files.write(f"{home(machine)}/internet-ca.pem", internet.ca.read_bytes())
    machine.exec(
        "mkfifo ~/attempts ~/outcomes && nohup python3 ~/inside.py stay >/dev/null 2>&1 &"
    ).check()
    until(lambda: machine.exec("test -p ~/outcomes").ok)


@functools.cache
def _home(machine_id: str) -> str:
    return Machine.get(machine_id).exec("cd && pwd -P", check=True).stdout.strip()


def home(machine: Machine) -> str:
    return _home(machine.id)


def until(what: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """TimeoutError where it does not come, which is no escape that a test expects."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not come")
        time.sleep(0.05)


class HarmError(Exception):
    """The oracle's: no escape that a test expects (those are AssertionErrors) hides it."""


@contextlib.contextmanager
def harm() -> Iterator[None]:
    """What is asserted in it is the oracle's."""
    try:
        yield
    except AssertionError as exc:
        raise HarmError(str(exc)) from exc


def request(host: str, path: str = "/", method: str = "GET", *headers: str) -> str:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines)
