"""One real daemon for all system tests: real gVisor, real runc, real pool, its own directories, port and network range.

The pool, the baked template and the guest of microVMs stay in ``ROOST_TEST_DATA_DIR`` (default
``/var/lib/roost-test``) so that the next run starts quickly; machines, slots and the daemon itself are gone
afterwards, which the last check of the session proves. Two sessions at a time need two of each: ``ROOST_TEST_RUN_DIR``,
``ROOST_TEST_PORT``, ``ROOST_TEST_NETWORK``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import httpx
import pytest

from roost.network.addresses import instance_tag

DATA_DIR = Path(os.environ.get("ROOST_TEST_DATA_DIR", "/var/lib/roost-test"))
RUN_DIR = Path(os.environ.get("ROOST_TEST_RUN_DIR", "/run/roost-test"))
PORT = int(os.environ.get("ROOST_TEST_PORT", "17676"))
NETWORK = os.environ.get("ROOST_TEST_NETWORK", "10.203.0.0/16")
REGISTRY = f"127.0.0.1:{PORT + 10_000}"  # of images, where a test has one


class Process(Protocol):
    """As much of ``subprocess.Popen`` as is asked of it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


def _launch(env: Mapping[str, str], out: IO[bytes]) -> Process:
    return subprocess.Popen(
        [sys.executable, "-m", "roost.daemon"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )


@dataclass
class Daemon:
    env: dict[str, str]
    url: str
    data_dir: Path
    run_dir: Path
    process: Process | None = None
    launch: Callable[[Mapping[str, str], IO[bytes]], Process] = field(default=_launch)
    started: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        return (self.data_dir / "key").read_text().strip()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def http(self, timeout: float = 120) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {self.key}"},
            timeout=timeout,
            trust_env=False,
        )

    def start(self, timeout_s: float = 60, may_die: bool = False) -> None:
        """Returns when it answers; with ``may_die`` also when it has ended before."""
        out = (self.data_dir / "test-daemon.out").open("ab")
        begun = time.monotonic()
        self.process = self.launch(self.env, out)
        while True:
            if self.process.poll() is not None:
                if may_die:
                    return
                pytest.exit(f"the daemon ended at start:\n{self.tail()}", returncode=1)
            try:
                if httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if time.monotonic() - begun > timeout_s:
                pytest.exit(
                    f"the daemon did not come up in {timeout_s} s:\n{self.tail()}", returncode=1
                )
            time.sleep(0.05)
        self.started.append(time.monotonic() - begun)

    def stop(self, sig: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def restart(self, sig: int = signal.SIGTERM) -> None:
        self.stop(sig)
        self.start()

    def tail(self) -> str:
        path = self.data_dir / "test-daemon.out"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def build_template(self, name: str = "base") -> None:
        with (
            self.http(timeout=1200) as http,
            http.stream("POST", f"/v1/templates/{name}/build") as answer,
        ):
            event = last = ""
            for line in answer.iter_lines():
                if line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:"):
                    last = line[5:].strip()
                if event == "error" and last:
                    pytest.exit(f"the template {name} did not build: {last}", returncode=1)
        assert event == "done", (event, last)

    def delete_machines(self) -> None:
        with self.http() as http:
            for machine in http.get("/v1/machines", params={"limit": 500}).json()["items"]:
                http.delete(f"/v1/machines/{machine['machine_id']}")


def make_daemon(
    data_dir: Path = DATA_DIR, run_dir: Path = RUN_DIR, port: int = PORT, **settings: str
) -> Daemon:
    data_dir.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "ROOST_DATA_DIR": str(data_dir),
        "ROOST_RUN_DIR": str(run_dir),
        "ROOST_PORT": str(port),
        "ROOST_URL": f"http://127.0.0.1:{port}",
        "ROOST_NETWORK_CIDR": NETWORK,
        "ROOST_POOL_GIB": "60",
        "ROOST_HOST_CA": "1",
        "ROOST_REGISTRIES_PRIVATE": REGISTRY,
        "ROOST_WARM_MACHINES": "0",  # what is left behind is counted
        **settings,
    }
    env.pop("ROOST_API_KEY", None)
    return Daemon(env=env, url=f"http://127.0.0.1:{port}", data_dir=data_dir, run_dir=run_dir)


def leftovers(daemon: Daemon) -> dict[str, list[str]]:
    """What of machines is still on the host although none exists; empty lists are left out."""
    mounts = [
        line.split()[1]
        for line in Path("/proc/mounts").read_text().splitlines()
        if f"{daemon.run_dir}/machines/" in line.split()[1]
        or f"{daemon.data_dir}/pool/" in line.split()[1]
    ]
    loops = [
        line
        for line in subprocess.run(
            ["losetup", "-ln"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if f"{daemon.data_dir}/pool/" in line
    ]
    processes = []
    group = f"/roost-{instance_tag(daemon.run_dir)}/"
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            ours = group in cmdline.with_name("cgroup").read_text()
        except OSError:
            continue
        # One that has ended and waits for whoever inherited it from a daemon that was killed has no command line.
        # One of a workspace names its directory, and has no group.
        home = f"{daemon.data_dir}/pool/homes/" in text
        if text and (ours or home or f"{daemon.run_dir}/" in text) and "roost.daemon" not in text:
            processes.append(f"{cmdline.parent.name}: {text[:200]}")
    disks = [str(p) for p in (daemon.data_dir / "pool").glob("disks/*")]
    disks += [str(p) for p in (daemon.data_dir / "pool").glob("homes/*")]
    places = [str(p) for p in daemon.run_dir.glob("machines/*/*")]
    found = {
        "mounts": mounts,
        "loops": loops,
        "processes": processes,
        "disks": disks,
        "places": places,
    }
    return {k: v for k, v in found.items() if v}


@pytest.fixture(params=["runc", "gvisor"], scope="session")
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)
