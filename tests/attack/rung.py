"""A machine that attacks, on one rung, and what it does."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass
class Rung:
    """``machine`` attacks, ``neighbour`` is a bystander on the same host. ``home``: where either may write, as a path
    in it."""

    name: str
    machine: Machine
    neighbour: Machine
    wild: Internet | None

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
        assert done.ok, done
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
    started = machine.exec(
        "mkfifo ~/attempts ~/outcomes && nohup python3 ~/inside.py stay >/dev/null 2>&1 &"
    )
    assert started.ok, started
    until(lambda: machine.exec("test -p ~/outcomes").ok)


@functools.cache
def _home(machine_id: str) -> str:
    return Machine.get(machine_id).exec("cd && pwd -P", check=True).stdout.strip()


def home(machine: Machine) -> str:
    return _home(machine.id)


def until(what: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def request(host: str, path: str = "/", method: str = "GET", *headers: str) -> str:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines)
