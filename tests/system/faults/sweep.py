"""A daemon killed with SIGKILL at one boundary of one operation, and looked at after the next one started.

Boundaries are found by a run that nothing disturbs: those of the journal, those around every other row that is
written, and one in the middle of each step that takes long enough to have one.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.conftest import Daemon
from tests.system.faults import state
from tests.system.faults.zygote import Zygote

MIDDLE_MS = 8.0  # a step that takes less is not cut in its middle
DIES_S = 60.0
# A process that counts, its count and its pid in memory alone; "kept" is on the disk.
COUNT = """
perl -e '$n = 0; while (1) { $n++; open F, ">", "/dev/shm/.n"; print F "$$ $n"; close F;
  rename "/dev/shm/.n", "/dev/shm/n"; select undef, undef, undef, 0.1 }' >/dev/null 2>&1 </dev/null &
until test -s /dev/shm/n; do sleep 0.05; done; echo kept >/root/kept; sync
"""


class Api:
    """What the sweep asks of a daemon, in the words of its API."""

    def __init__(self, daemon: Daemon, driver: str) -> None:
        self.daemon = daemon
        self.driver = driver
        # One that was cut off is left to time out: nothing may wait for it.
        self.http = daemon.http(timeout=90)

    def call(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, f"/v1{path}", **options)
        assert answer.status_code < 300, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def create(self, **body: Any) -> str:
        size = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}
        body = {"driver": self.driver, **size, **body}
        return str(self.call("POST", "/machines", json=body)["machine_id"])

    def running(self) -> str:
        machine_id = self.create()
        self.exec(machine_id, COUNT)
        return machine_id

    def exec(self, machine_id: str, command: str) -> str:
        done = self.call(
            "POST",
            f"/machines/{machine_id}/executions",
            params={"wait": "true"},
            json={"command": command},
        )
        assert done["exit_code"] == 0, done
        return str(done["stdout"]).strip()

    def count(self, machine_id: str) -> tuple[int, int]:
        """The pid that counts, and how far it is."""
        pid, count = self.exec(machine_id, "cat /dev/shm/n 2>/dev/null || echo 0 0").split()
        return int(pid), int(count)

    def machine(self, machine_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/machines/{machine_id}")
        return found

    def machines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/machines", params={"limit": 500})["items"]
        return found

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/snapshots", params={"limit": 500})["items"]
        return found

    def told(self, machine_id: str, event: str) -> list[str]:
        logs = self.call("GET", f"/machines/{machine_id}/logs")["items"]
        return [each["message"] for each in logs if each["event"] == event]


@dataclass(frozen=True)
class Scenario:
    """``prepare`` makes the machine, ``act`` is what is cut. ``phases``: where that may leave it, besides failed with
    a reason; ``memory``: its process must count on wherever it runs afterwards, and after it was woken."""

    prepare: Callable[[Api], str]
    act: Callable[[Api, str], Any]
    phases: frozenset[str]
    memory: bool = True


def _nothing(api: Api) -> str:
    return ""


def _asleep(tier: str) -> Callable[[Api], str]:
    def prepare(api: Api) -> str:
        machine_id = api.running()
        api.call("POST", f"/machines/{machine_id}/sleep", params={"tier": tier})
        return machine_id

    return prepare


def _with_snapshot(api: Api) -> str:
    machine_id = api.running()
    api.call("POST", f"/machines/{machine_id}/snapshots", json={"name": "before"})
    return machine_id


def _on(path: str, method: str = "POST", **options: Any) -> Callable[[Api, str], Any]:
    return lambda api, machine_id: api.call(method, f"/machines/{machine_id}{path}", **options)


def _fork(api: Api, machine_id: str) -> None:
    count = 1 if api.driver == "qemu" else 2  # where a CPU is emulated each takes many seconds
    api.call("POST", f"/machines/{machine_id}/fork", json={"count": count})


def _exec_waited(api: Api, machine_id: str) -> None:
    assert api.exec(machine_id, "sleep 0.3; echo done >/root/done; echo said") == "said"


def _exec_started(api: Api, machine_id: str) -> None:
    body = {"command": "sleep 0.3; echo done >/root/done"}
    started = api.call("POST", f"/machines/{machine_id}/executions", json=body)
    while (
        api.call("GET", f"/machines/{machine_id}/executions/{started['execution_id']}")["status"]
        == "running"
    ):
        time.sleep(0.05)


def _legal(*phases: str) -> frozenset[str]:
    return frozenset(phases)


SCENARIOS: dict[str, Scenario] = {
    "create": Scenario(
        _nothing, lambda api, _: api.create(key="subject"), _legal("running"), memory=False
    ),
    "exec": Scenario(Api.running, _exec_waited, _legal("running")),
    "exec started": Scenario(Api.running, _exec_started, _legal("running")),
    "sleep": Scenario(
        Api.running, _on("/sleep", params={"tier": "hibernated"}), _legal("running", "sleeping")
    ),
    "freeze": Scenario(
        Api.running, _on("/sleep", params={"tier": "frozen"}), _legal("running", "sleeping")
    ),
    "thaw": Scenario(_asleep("frozen"), _on("/wake"), _legal("sleeping", "running")),
    "sleep deeper": Scenario(
        _asleep("frozen"), _on("/sleep", params={"tier": "hibernated"}), _legal("sleeping")
    ),
    "stop": Scenario(
        Api.running,
        _on("/sleep", params={"tier": "stopped"}),
        _legal("running", "sleeping"),
        memory=False,
    ),
    "wake": Scenario(_asleep("hibernated"), _on("/wake"), _legal("sleeping", "running")),
    "wake from disk": Scenario(
        _asleep("stopped"), _on("/wake"), _legal("sleeping", "running"), memory=False
    ),
    "snapshot": Scenario(Api.running, _on("/snapshots", json={"name": "cut"}), _legal("running")),
    "fork": Scenario(Api.running, _fork, _legal("running")),
    "rollback": Scenario(
        _with_snapshot,
        _on("/rollback", json={"snapshot": "before"}),
        _legal("running", "sleeping"),
    ),
    "destroy": Scenario(Api.running, _on("", "DELETE"), _legal("running", "destroyed")),
    "destroy asleep": Scenario(
        _asleep("hibernated"), _on("", "DELETE"), _legal("sleeping", "destroyed")
    ),
}


@dataclass(frozen=True)
class Boundary:
    label: str
    nth: int = 1
    after_s: float = 0.0

    def __str__(self) -> str:
        more = f" (time {self.nth})" if self.nth > 1 else ""
        return f"{self.label}{more}{f' + {self.after_s * 1000:.0f} ms' if self.after_s else ''}"


@dataclass
class Tally:
    """What was hit, for the table."""

    operation: str
    driver: str
    boundaries: int = 0
    hit: int = 0
    in_recovery: int = 0
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    memory_lost: int = 0  # and told
    seconds: float = 0.0


class Sweep:
    """The session's daemon with points in it, and a neighbour that nobody touches."""

    def __init__(self, daemon: Daemon, driver: str, directory: Path) -> None:
        self.daemon = daemon
        self.driver = driver
        self.directory = directory
        self._zygote = Zygote()
        self.neighbour = ""
        self.before = (0, 0)
        self.lost: list[str] = []  # what told that its memory could not be kept

    def open(self) -> None:
        self.daemon.env["FAULTS_DIR"] = str(self.directory)
        self._plain = self.daemon.launch
        self.daemon.launch = self._zygote.start
        self.daemon.restart()
        api = Api(self.daemon, self.driver)
        self.neighbour = api.running()
        self.before = api.count(self.neighbour)

    def close(self) -> None:
        self._disarm()
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.stop()
        self._zygote.close()
        self.daemon.launch = self._plain
        self.daemon.start()
        self.clean(with_neighbour=True)

    # --- one boundary ---------------------------------------------------------------------------

    def boundaries(self, scenario: Scenario) -> list[Boundary]:
        """Those of a run that nothing disturbs."""
        api = Api(self.daemon, self.driver)
        subject = scenario.prepare(api)
        trace = self.directory / "trace"
        trace.write_text("")
        self._arm()
        scenario.act(api, subject)
        time.sleep(0.3)
        self._disarm()
        state.whole(self.daemon)
        self.clean()
        return list(_found(trace.read_text().splitlines()))

    def cut(self, scenario: Scenario, boundary: Boundary, again_at: int = 0) -> tuple[bool, bool]:
        """Whether the daemon died there, and the next one at the ``again_at``-th point of its recovery."""
        api = Api(self.daemon, self.driver)
        subject = scenario.prepare(api)
        assert self.daemon.process is not None
        self._arm(at=boundary.label, nth=boundary.nth, after_s=boundary.after_s)
        try:
            scenario.act(api, subject)
        except (httpx.HTTPError, AssertionError):
            acknowledged = False
        else:
            acknowledged = True
        finally:
            api.http.close()
        died = self._dies(DIES_S if not acknowledged else 1.0)
        self._disarm()
        again = False
        if died:
            again = again_at > 0 and self._die_in_recovery(again_at)
            if again or not again_at:
                self.daemon.process = None
                self.daemon.start()
        self.accept(scenario, subject, acknowledged)
        return died, again

    def accept(self, scenario: Scenario, subject: str, acknowledged: bool) -> None:
        """One of the legal ends, the neighbour untouched, nothing leaked, and all of it still of use."""
        state.whole(self.daemon)
        api = Api(self.daemon, self.driver)
        self._neighbour(api)
        others = [m for m in api.machines() if m["machine_id"] != self.neighbour]
        if scenario is SCENARIOS["create"]:
            assert len(others) <= 1, others
        elif scenario is SCENARIOS["fork"]:
            children = [m for m in others if m["machine_id"] != subject]
            assert len(children) in (0, 1 if self.driver == "qemu" else 2), "all or none"
            for child in children:
                assert child["phase"] == "running", child
                self._counts(api, child["machine_id"])
            others = [m for m in others if m["machine_id"] == subject]
        else:
            assert {m["machine_id"] for m in others} <= {subject}, others
        if subject and not others:
            assert "destroyed" in scenario.phases
        for m in others:
            machine_id, phase = m["machine_id"], m["phase"]
            assert phase in scenario.phases | {"failed"}, m
            if phase == "failed":
                assert m["status"]["reason"] and m["status"]["retryable"], m
            if acknowledged and scenario is not SCENARIOS["destroy"]:
                assert phase != "failed", m
            if phase != "running":
                api.call("POST", f"/machines/{machine_id}/wake")
            if scenario.memory:
                self._counts(api, machine_id)
            if subject:
                assert api.exec(machine_id, "cat /root/kept") == "kept"
        for made in api.snapshots():
            self._made_from(api, made)
        self._executions(api, subject)
        self.clean()
        api.http.close()

    def _executions(self, api: Api, subject: str) -> None:
        """Of those that were cut off none is running for ever: what started goes on to its end and is told."""
        if not subject or not any(m["machine_id"] == subject for m in api.machines()):
            return
        deadline = time.monotonic() + 20
        while True:
            listed = api.call("GET", f"/machines/{subject}/executions")["items"]
            live = [e for e in listed if e["status"] in ("queued", "running")]
            if not live:
                return
            assert time.monotonic() < deadline, live
            time.sleep(0.1)

    def _counts(self, api: Api, machine_id: str) -> None:
        """The process that counted does so still; or that it cannot is told."""
        pid, at = api.count(machine_id)
        if pid == 0 and api.told(machine_id, "memory_lost"):
            self.lost.append(api.told(machine_id, "memory_lost")[-1])
            return
        assert pid, ("its process is gone, and nothing tells why", api.machine(machine_id))
        deadline = time.monotonic() + 20
        while (now := api.count(machine_id)) and now[1] <= at:
            assert time.monotonic() < deadline, (machine_id, now, at)
            time.sleep(0.1)
        assert now[0] == pid

    def _made_from(self, api: Api, made: dict[str, Any]) -> None:
        """A snapshot that is there is a whole one."""
        copy = api.call("POST", "/machines", json={"snapshot": made["snapshot_id"]})["machine_id"]
        assert made["memory"] and not api.told(copy, "memory_lost")
        self._counts(api, copy)

    def _neighbour(self, api: Api) -> None:
        assert api.machine(self.neighbour)["phase"] == "running"
        now = api.count(self.neighbour)
        assert now[0] == self.before[0] and now[1] > self.before[1], (self.before, now)
        self.before = now

    def clean(self, with_neighbour: bool = False) -> None:
        api = Api(self.daemon, self.driver)
        for m in api.machines():
            if with_neighbour or m["machine_id"] != self.neighbour:
                api.call("DELETE", f"/machines/{m['machine_id']}")
        for s in api.snapshots():
            api.call("DELETE", f"/snapshots/{s['snapshot_id']}")
        api.http.close()
        state.whole(self.daemon)

    # --- the daemon -----------------------------------------------------------------------------

    def _arm(self, **plan: Any) -> None:
        new = self.directory / "arm.new"
        new.write_text(json.dumps({"id": uuid.uuid4().hex, **plan}))
        new.rename(self.directory / "arm")

    def _disarm(self) -> None:
        (self.directory / "arm").unlink(missing_ok=True)

    def _dies(self, within_s: float) -> bool:
        assert self.daemon.process is not None
        try:
            code = self.daemon.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        assert code == -signal.SIGKILL, (code, self.daemon.tail())
        return True

    def _die_in_recovery(self, at: int) -> bool:
        """Starts a daemon that dies at that point of its recovery; False where it came up without getting there."""
        self._arm(total=at)
        try:
            self.daemon.process = None
            self.daemon.start(may_die=True)
            return self._dies(0.1)
        finally:
            self._disarm()


def _found(lines: list[str]) -> Iterator[Boundary]:
    """In order of time; a step that takes long also in its middle."""
    seen: dict[str, int] = {}
    begun: dict[str, tuple[float, int]] = {}
    for line in lines:
        at, label = line.split(" ", 1)
        seen[label] = seen.get(label, 0) + 1
        if " did:" in label:
            start, nth = begun.pop(label.replace(" did:", " do:"), (0.0, 0))
            took = float(at) - start
            if nth and took * 1000 >= MIDDLE_MS:
                yield Boundary(label.replace(" did:", " do:"), nth, took / 2)
        elif " do:" in label:
            begun[label] = (float(at), seen[label])
        yield Boundary(label, seen[label])


def table(tallies: list[Tally]) -> str:
    lines = [
        f"{'operation':<16}{'rung':<8}{'boundaries':>11}{'hit':>5}{'in recovery':>13}{'memory lost':>13}"
        f"{'wrong':>7}{'s':>6}"
    ]
    lines += [
        f"{t.operation:<16}{t.driver:<8}{t.boundaries:>11}{t.hit:>5}{t.in_recovery:>13}{t.memory_lost:>13}"
        f"{len(t.wrong):>7}{t.seconds:>6.0f}"
        for t in tallies
    ]
    return "\n".join(lines)


def require(daemon: Daemon, driver: str) -> None:
    if not state.available(daemon, driver):
        pytest.skip(f"{driver} is not available here")
