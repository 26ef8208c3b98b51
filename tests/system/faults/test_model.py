"""Any history on real gVisor machines, calls at the same time and a daemon killed among them: see
``tests.fault.histories``. The ordinary run has a few short ones, always the same; the long one has others each time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.attack.record import case
from tests.fault.histories import Histories, Host, Op, Seen
from tests.system.conftest import Daemon
from tests.system.faults import state
from tests.system.faults.sweep import require

pytestmark = [pytest.mark.system, case("F8")]
UNDER_WAY = ("accepted", "placement_pending", "starting", "stopping", "waking", "destroying")
QUIET_S = 60.0


class Real(Host):
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.newest: dict[str, str] = {}  # machine id -> snapshot id
        self.http = daemon.http()

    def call(self, op: Op) -> str | None:
        try:
            return self._call(op)
        except httpx.HTTPError:
            return "CUT"

    def _call(self, op: Op) -> str | None:
        if op.kind == "ensure":
            body = {"driver": "gvisor", "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}
            return self._ask("PUT", f"/machines/by-key/{op.key}", json=body)[0]
        listed = self._ask("GET", "/machines", params={"key": op.key})[1]["items"]
        machine_id = listed[0]["machine_id"] if listed else "0" * 26
        at = f"/machines/{machine_id}"
        if op.kind == "snapshot":
            error, made = self._ask("POST", f"{at}/snapshots")
            if error is None:
                self.newest[machine_id] = made["snapshot_id"]
            return error
        if op.kind == "fork":
            error, made = self._ask("POST", f"{at}/fork", json={"count": 1})
            if error is None:
                for child in made["items"]:
                    assert self._ask("DELETE", f"/machines/{child['machine_id']}")[0] is None
            return error
        if op.kind == "rollback":
            which = self.newest.get(machine_id)
            if which is None:  # another's, where there is one
                which = next(iter(self.newest.values()), "none")
            error, _ = self._ask("POST", f"{at}/rollback", json={"snapshot": which})
            return "INVALID_STATE" if error == "SNAPSHOT_NOT_FOUND" else error
        calls: dict[str, tuple[str, str, dict[str, Any]]] = {
            "sleep": ("POST", f"{at}/sleep", {}),
            "stop": ("POST", f"{at}/sleep", {"params": {"tier": "stopped"}}),
            "bad": ("POST", f"{at}/sleep", {"params": {"tier": "no-tier"}}),
            "wake": ("POST", f"{at}/wake", {}),
            "use": (
                "POST",
                f"{at}/executions",
                {"params": {"wait": "true"}, "json": {"command": "true"}},
            ),
            "delete": ("DELETE", at, {}),
        }
        method, path, options = calls[op.kind]
        return self._ask(method, path, **options)[0]

    def _ask(self, method: str, path: str, **options: Any) -> tuple[str | None, Any]:
        answer = self.http.request(method, f"/v1{path}", **options)
        body = answer.json() if answer.content else None
        return (None if answer.status_code < 300 else str(body["error_code"])), body

    def together(self, ops: Sequence[Op], kill_after_s: float | None) -> list[str | None]:
        with ThreadPoolExecutor(len(ops)) as threads:
            asked = [threads.submit(self.call, op) for op in ops]
            if kill_after_s is not None:
                time.sleep(kill_after_s)
                self.daemon.stop(signal.SIGKILL)
            said = [each.result() for each in asked]
        if kill_after_s is not None:
            self.daemon.start()
        deadline = time.monotonic() + QUIET_S
        while any(m["phase"] in UNDER_WAY for m in self._machines()):
            assert time.monotonic() < deadline, self._machines()
            time.sleep(0.05)
        if (
            kill_after_s is not None
        ):  # children of a fork that came to its end, and had nobody to tell
            for m in self._machines():
                if m["key"] is None:
                    assert self._ask("DELETE", f"/machines/{m['machine_id']}")[0] is None
        return said

    def restart(self) -> None:
        self.daemon.restart(signal.SIGKILL)

    def crash(self, key: str) -> None:
        machine_id = self.found()[key].id
        (row,) = state.rows(
            self.daemon, "select handle ->> '$.pid' as pid from machines where id = ?", machine_id
        )
        os.kill(int(row["pid"]), signal.SIGKILL)
        deadline = time.monotonic() + QUIET_S
        while self.found()[key].phase != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _machines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "/machines", params={"limit": 500})[1][
            "items"
        ]
        return found

    def found(self) -> dict[str, Seen]:
        machines = self._machines()
        assert all(m["key"] is not None for m in machines), machines
        assert len({m["key"] for m in machines}) == len(machines), machines
        return {m["key"]: Seen(m["machine_id"], m["phase"]) for m in machines}

    def whole(self) -> None:
        state.whole(self.daemon)

    def write(self, key: str, mark: int) -> None:
        self._exec(key, f"echo {mark} >/root/mark; sync")

    def read(self, key: str) -> int | None:
        return int(self._exec(key, "cat /root/mark 2>/dev/null || echo 0"))

    def _exec(self, key: str, command: str) -> str:
        path = f"/machines/{self.found()[key].id}/executions"
        error, done = self._ask("POST", path, params={"wait": "true"}, json={"command": command})
        assert error is None and done["exit_code"] == 0, done
        return str(done["stdout"])

    def close(self) -> None:
        for m in self._machines():
            assert self._ask("DELETE", f"/machines/{m['machine_id']}")[0] is None
        for s in self._ask("GET", "/snapshots", params={"limit": 500})[1]["items"]:
            self._ask("DELETE", f"/snapshots/{s['snapshot_id']}")
        self.http.close()
        state.whole(self.daemon)


class RealHistories(Histories):
    daemon: ClassVar[Daemon]

    def host(self) -> Host:
        return Real(self.daemon)


@pytest.fixture(scope="module")
def quick(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Its process comes from one that has imported all: it is started often."""
    from tests.system.faults.zygote import Zygote

    require(daemon, "gvisor")
    zygote, plain = Zygote(), daemon.launch
    daemon.env["FAULTS_DIR"] = str(tmp_path_factory.mktemp("model"))
    daemon.stop()
    daemon.launch = zygote.start
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()
        zygote.close()
        daemon.launch = plain
        daemon.start()


def run(daemon: Daemon, examples: int, steps: int, **more: Any) -> None:
    RealHistories.daemon = daemon
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        RealHistories,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            database=None,
            phases=[Phase.generate],  # what a real host did is not done again the same way
            suppress_health_check=list(HealthCheck),
            **more,
        ),
    )


def test_some_histories(quick: Daemon) -> None:
    run(quick, 2, 8, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_histories(quick: Daemon) -> None:
    run(quick, 15, 20)
