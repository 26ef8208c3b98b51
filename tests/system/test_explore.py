"""Best of N on real machines: promotion with previews, failures, Ctrl-C, a killed daemon; diffs; trees."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from roost import (
    Client,
    ConflictError,
    Difference,
    ExecResult,
    Machine,
    MachineError,
    NotFoundError,
    RoostError,
    explore,
)

from .conftest import Daemon

pytestmark = pytest.mark.system
EXAMPLES = Path(__file__).parents[2] / "examples"
SERVE = ["python3", "-m", "http.server", "8000", "-d", "/srv"]


def made(driver: str, **options: object) -> Machine:
    settings = {"memory_mib": 256, "autosleep": "never", "ttl": "15m", **options}
    return Machine.create(driver=driver, **settings)  # type: ignore[arg-type]


def left(base: Machine) -> list[str]:
    return [m.id for m in base.children()]


@pytest.fixture
def base(daemon: Daemon, driver: str) -> Iterator[Machine]:
    key = f"explored-{driver}-{time.monotonic_ns()}"
    with made(driver, key=key, name="the-base") as m:
        yield m


def test_the_winner_keeps_key_and_preview_of_the_base(base: Machine, driver: str) -> None:
    base.exec("mkdir -p /srv && echo base > /srv/index.html", check=True)
    if driver == "gvisor":  # its memory goes on in the children
        base.start(SERVE)
    url = base.url(8000)
    link = base.link(8000)
    token = base.create_token("preview", port=8000)["token"]

    def run(child: Machine, strategy: str) -> ExecResult:
        assert child.parent == base.id
        child.exec(f"echo {strategy} > /srv/index.html", check=True)
        if driver != "gvisor":
            child.start(SERVE)
        if strategy == "breaks":
            raise ValueError("this one breaks")
        if strategy == "dies":
            raise MachineError("as one that failed")
        return child.exec(f"test {strategy} != loses && echo 3")

    strategies = ["loses", "wins", "breaks", "dies"]
    found = explore(base, strategies, run, lambda _, r: float(r.stdout) if r.ok else None)
    assert found.winner is not None and found.best is not None
    assert found.best.strategy == "wins" and found.promoted
    assert [a.status for a in found.attempts] == ["done", "done", "failed", "failed"]
    assert found.attempts[0].exit_code == 1
    assert found.best.cpu_s is not None and found.best.cpu_s > 0
    assert found.best.diff is not None and "/srv/index.html" in found.best.diff.changed
    mine = Machine.get(key=base.key)
    assert mine.id == found.winner.id and mine.name == "the-base" and mine.replaces == base.id
    assert mine.url(8000) == url
    with mine.http(8000) as http:
        until_it_says(http, "wins")
    host = url.partition("://")[2]
    port = host.rpartition(":")[2]
    where = f"http://127.0.0.1:{port}/"
    sent = {"host": host, "x-roost-preview-token": token}
    shown = httpx.get(where, headers=sent, trust_env=False)
    assert (shown.status_code, shown.text) == (200, "wins\n"), shown.text
    opened = httpx.get(
        where + "?" + link.partition("?")[2], headers={"host": host}, trust_env=False
    )
    assert opened.status_code in (302, 303, 307), "the link goes on working"
    assert base.refresh().phase in ("destroying", "destroyed")
    assert left(base) == [mine.id]
    tree = {n["id"]: n for n in Client().tree(mine.id)}
    assert tree[mine.id]["parent_id"] == base.id and base.id in tree
    mine.destroy()


def until_it_says(http: httpx.Client, text: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        answer = http.get("/")
        if answer.status_code == 200 and answer.text.strip() == text:
            return
        assert time.monotonic() < deadline, (answer.status_code, answer.text)
        time.sleep(0.2)


def test_more_tasks_than_places(base: Machine) -> None:
    found = explore(
        base,
        range(8),
        lambda child, n: child.exec(f"echo {n} > /root/n").check(),
        lambda child, _: float(child.files.read_text("/root/n")),
        parallel=2,
        previous="keep",
        diff=False,
    )
    assert [a.error for a in found.attempts] == [None] * 8
    assert found.winner is not None and found.winner.files.read_text("/root/n") == "7\n"
    assert left(base) == [found.winner.id]
    assert found.winner.key is not None and base.refresh().key is None
    assert base.phase == "running"
    found.winner.destroy()


@pytest.mark.long
def test_a_hundred_tasks(base: Machine) -> None:
    found = explore(
        base,
        range(100),
        lambda child, n: child.exec(f"echo {n} > /root/n").check(),
        parallel=4,
        keep="none",
        diff=False,
    )
    assert [a.error for a in found.attempts] == [None] * 100
    assert left(base) == []


def test_time_that_runs_out_and_a_machine_that_ends_are_survived(base: Machine) -> None:
    def run(child: Machine, strategy: str) -> ExecResult:
        if strategy == "ends":
            child.destroy()
        return child.exec("sleep 60" if strategy == "hangs" else "true")

    found = explore(base, ["hangs", "ends", "good"], run, timeout=15, promote=False)
    assert [a.status for a in found.attempts] == ["failed", "failed", "done"]
    assert found.winner is not None and left(base) == [found.winner.id]
    assert base.refresh().key is not None and found.winner.expires_at is None
    found.winner.destroy()


SCRIPT = """
import os, sys
from roost import Machine
base = Machine.get(sys.argv[1])
def run(child, strategy):
    os.write(1, b"running\\n")  # print() says it in two pieces
    child.exec("sleep 60")
base.explore([1, 2, 3], run, parallel=int(sys.argv[2]) or None)
"""


@pytest.mark.parametrize("parallel", [0, 2])
def test_ctrl_c_takes_the_children_away(daemon: Daemon, base: Machine, parallel: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, base.id, str(parallel)],
        env={**daemon.env, "ROOST_API_KEY": daemon.key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        assert left(base)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (130, -signal.SIGINT, 1) and "KeyboardInterrupt" in said
    assert left(base) == []
    assert base.refresh().phase == "running"


def test_a_daemon_killed_while_one_takes_anothers_place(daemon: Daemon, base: Machine) -> None:
    """Whenever it comes: all of it, or nothing."""
    base.url(8000)
    key = base.key
    holder = base
    for delay in (0.0, 0.002, 0.005, 0.02):
        child = holder.fork()
        assert isinstance(child, Machine)
        asked = threading.Thread(target=promoted, args=(child,))
        asked.start()
        time.sleep(delay)
        daemon.restart(signal.SIGKILL)
        asked.join(60)
        child.refresh()
        shown = {
            p["port"]: p["machine_id"]
            for m in (holder, child)
            if m.refresh().phase == "running"
            for p in m.ports.list()
        }
        if child.key == key:
            assert shown == {8000: child.id}
            deadline = time.monotonic() + 20
            while holder.refresh().phase != "destroyed":
                assert time.monotonic() < deadline, "the one replaced goes, also after a kill"
                time.sleep(0.1)
        else:
            assert holder.key == key and shown == {8000: holder.id}
            child.promote(previous="destroy")
        assert Machine.get(key=key).id == child.id
        holder = child
    holder.destroy()


def promoted(child: Machine) -> None:
    with contextlib.suppress(RoostError):
        child.promote(previous="destroy")


def test_what_differs(base: Machine) -> None:
    base.exec(
        "mkdir -p /w/sub /w/gone && cd /w && echo same > same && echo old > edited && echo 12345 > sized && "
        "echo x > removed && echo x > gone/in && echo s > moved && echo m > mode && ln -s same link && "
        "printf 'b\\377\\n' > \"$(printf 'no\\nutf\\377')\" && echo k > kept-time && touch -d 2020-01-01 kept-time && "
        "echo t > touched && dd if=/dev/urandom of=big bs=1M count=4 2>/dev/null",
        check=True,
    )
    child = base.fork()
    assert isinstance(child, Machine)
    with child:
        assert base.diff(child, "/w").summary() == "none"
        child.exec(
            "cd /w && echo new > edited && echo 123456 > sized && rm removed && rm -r gone && mv moved sub/moved && "
            "chmod 700 mode && ln -sfn edited link && echo K > kept-time && touch -d 2020-01-01 kept-time && "
            "touch touched && echo n > sub/new && rm same && mkdir same && "
            "printf 'c\\377\\n' > \"$(printf 'no\\nutf\\377')\" && printf x | dd of=big bs=1 seek=1000000 conv=notrunc 2>/dev/null",
            check=True,
        )
        found = base.diff(child, "/w", patch=True)
        told = {d.path: d.change for d in found}
        assert told == {
            "/w/big": "changed",
            "/w/edited": "changed",
            "/w/gone": "removed",
            "/w/gone/in": "removed",
            "/w/kept-time": "changed",
            "/w/link": "changed",
            "/w/mode": "mode",
            "/w/moved": "removed",
            "/w/no\nutf\ufffd": "changed",
            "/w/removed": "removed",
            "/w/same": "type",
            "/w/sized": "changed",
            "/w/sub/moved": "added",
            "/w/sub/new": "added",
        }
        assert found.truncated is None
        by_path: dict[str, Difference] = {d.path: d for d in found}
        assert (
            by_path["/w/edited"].patch
            == "--- a/w/edited\n+++ b/w/edited\n@@ -1 +1 @@\n-old\n+new\n"
        )
        assert by_path["/w/big"].patch is None
        mode = by_path["/w/mode"]
        assert mode.before is not None and mode.after is not None
        assert (mode.before.mode, mode.after.mode) == (0o644, 0o700)
        assert by_path["/w/no\nutf\ufffd"].path_bytes == b"/w/no\nutf\xff"
        back = child.diff(base, "/w", exclude=["/w/gone", "/w/sub"])
        assert back.added == ["/w/moved", "/w/removed"] and back.removed == []
        one = base.diff(child, "/w/edited")
        assert [d.path for d in one] == ["/w/edited"]
        whole = base.diff(child)
        assert {d.path for d in whole} == set(told), (
            "nothing else differs, and nothing of Roost's own"
        )
        assert len(base.diff(child, limit=2).items) == 2
        child.sleep()
        assert base.diff(child, "/w/sub").added == ["/w/sub/moved", "/w/sub/new"]
        with pytest.raises(NotFoundError):
            base.diff(child, "/nowhere")


def test_two_strangers_differ_too(daemon: Daemon, base: Machine, driver: str) -> None:
    with made(driver) as other:
        other.exec("echo x > /root/only-here", check=True)
        assert "/root/only-here" in base.diff(other).added


def test_the_command_line(daemon: Daemon, base: Machine) -> None:
    def roost(*argv: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "roost.cli", *argv],
            env={**daemon.env, "ROOST_API_KEY": daemon.key},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout

    base.exec("echo 0 > /root/best", check=True)
    out = roost(
        "explore", str(base.key), "--run", "echo {strategy} > /root/best", "-s", "1", "-s", "3", "-s", "2",
        "--score", "cat /root/best", "--keep-base",
    )  # fmt: skip
    assert out.splitlines()[1].split()[:4] == ["*", "3", "done", "3"]
    winner = Machine.get(key=base.key)
    assert roost("diff", base.id, winner.id, "--patch").splitlines()[-2:] == ["-0", "+3"]
    assert winner.id in roost("tree", base.id)
    with pytest.raises(ConflictError):
        base.fork(snapshot=winner.snapshot())
    roost("promote", base.id, "--onto", winner.id, "--destroy")
    assert base.refresh().key is not None
    roost("explore", base.id, "--run", "false", "-s", "a", code=1)
    deadline = time.monotonic() + 60
    while left(base):  # the one it was put onto is destroyed after the answer
        assert time.monotonic() < deadline, left(base)
        time.sleep(0.2)


def test_the_example(daemon: Daemon, driver: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "best_of_n.py", "--driver", driver],
        env={**daemon.env, "ROOST_API_KEY": daemon.key},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'a sieve' won" in done.stdout and "sieve = bytearray" in done.stdout
    assert os.linesep in done.stdout
