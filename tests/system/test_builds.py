"""Builds in real machines: what they make, what they do not do again, what they leave."""

from __future__ import annotations

import base64
import io
import os
import secrets
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost import Build, ConflictError, Machine, MachineError, NotFoundError, Template

from .conftest import Daemon
from .found import contains

pytestmark = pytest.mark.system
DRIVER = "runc"  # of builds, where a test is of none in particular


@pytest.fixture
def name(daemon: Daemon) -> Iterator[str]:
    """Of a template that is gone afterwards, with all that was built for it."""
    made = f"t-{uuid.uuid4().hex[:8]}"
    yield made
    for each in Template.list(unnamed=True):
        if any(tag.startswith(made) for tag in each.tags):
            each.delete()
    with daemon.http() as http:
        http.post("/v1/templates/gc", params={"older_than": 0})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "app/deep").mkdir(parents=True)
    (root / "app/main.sh").write_text("#!/bin/sh\necho $GREETING from $(pwd) as $(id -un)\n")
    (root / "app/main.sh").chmod(0o755)
    (root / "app/deep/data").write_text("1\n")
    (root / "app/link").symlink_to("deep/data")
    (root / "ignored").write_text("never")
    (root / ".dockerignore").write_text("ignored\n")
    with tarfile.open(root / "more.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("unpacked/file")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    return root


DOCKERFILE = """\
ARG FLAVOUR=plain
FROM base
ARG FLAVOUR
ENV GREETING="hello $FLAVOUR"
RUN useradd -m -u 4321 app && echo built > /root/built
WORKDIR /srv/app
COPY --chown=app:app app/ ./
COPY app/main.sh /usr/local/bin/greet
ADD more.tar.gz /opt/
RUN <<EOF
cat link > /root/through-the-link
chmod 1777 /srv
EOF
COPY <<END /etc/motd
welcome, $FLAVOUR
END
USER app
EXPOSE 8080
LABEL kind=test
CMD ["greet"]
"""


def said(log: list[dict[str, Any]]) -> str:
    return "".join(e["text"] for e in log if e["event"] == "log")


def ran(log: list[dict[str, Any]]) -> list[int]:
    """Lines of steps that ran, but FROM."""
    return [e["line"] for e in log if e["event"] == "step" and e.get("status") == "running"][1:]


def test_a_dockerfile_becomes_machines(daemon: Daemon, driver: str, name: str, tree: Path) -> None:
    (tree / "Dockerfile").write_text(DOCKERFILE)
    (tree / "roost.toml").write_text('description = "a test"\nports = [9000]\n')
    log: list[dict[str, Any]] = []
    made = Template.build(
        name, tree, build_args={"FLAVOUR": "world"}, driver=driver, on_log=log.append
    )
    assert made.tags == [f"{name}:latest"]
    assert made.config["ports"] == [8080, 9000]
    assert (made.config["start"], made.config["labels"]) == (["greet"], {"kind": "test"})
    with Machine.create(name, driver=driver) as m:
        assert m.exec("greet").stdout == "hello world from /srv/app as app\n"
        root = m.exec(
            "cat /root/built /root/through-the-link /opt/unpacked/file /etc/motd;"
            "stat -c '%U %a %n' /srv/app/main.sh /srv/app/deep /srv /usr/local/bin/greet /tmp; ls /srv/app;"
            "cat /etc/machine-id",
            user="root",
        ).check()
        lines = root.stdout.splitlines()
        assert lines[:3] == ["built", "1", "okwelcome, world"]
        assert lines[3:8] == [
            "app 755 /srv/app/main.sh", "app 755 /srv/app/deep", "root 1777 /srv", "root 755 /usr/local/bin/greet",
            "root 1777 /tmp",
        ]  # fmt: skip
        assert lines[8:11] == ["deep", "link", "main.sh"]
        own = lines[11]
    with Machine.create(name, driver=driver) as other:
        assert other.exec("cat /etc/machine-id").stdout.strip() != own


def test_what_did_not_change_does_not_run_again(daemon: Daemon, name: str, tree: Path) -> None:
    def build(text: str = DOCKERFILE, **more: Any) -> tuple[Template, list[dict[str, Any]], float]:
        (tree / "Dockerfile").write_text(text)
        log: list[dict[str, Any]] = []
        begun = time.monotonic()
        made = Template.build(name, tree, driver=DRIVER, on_log=log.append, **more)
        return made, log, time.monotonic() - begun

    first, log, _ = build()
    assert ran(log) == [5, 6, 7, 8, 9, 10, 14]
    again, log, took = build()
    assert (again.id, ran(log)) == (first.id, [])
    assert took < 20, "a second or less on an idle host"
    # A change of a file that is copied, and of a command in the midst.
    (tree / "app/main.sh").write_text("#!/bin/sh\necho $GREETING\n")
    changed, log, _ = build()
    assert ran(log) == [7, 8, 9, 10, 14]
    assert changed.digest != first.digest
    _, log, _ = build(DOCKERFILE.replace("chmod 1777", "chmod 1775"))
    assert ran(log) == [10, 14]
    _, log, _ = build(build_args={"FLAVOUR": "other"})
    assert ran(log)[0] == 5
    # Machines and names keep what they were promised.
    assert Template.get(f"{name}@{first.digest}").id == first.id


def test_a_failing_step_leaves_its_machine(daemon: Daemon, driver: str, name: str) -> None:
    text = "FROM base\nENV A=1\nRUN echo before > /root/before\nRUN echo to-stderr >&2; exit 42\n"
    with pytest.raises(MachineError) as caught:
        Template.build(name, dockerfile=text, keep_failed=True, driver=driver)
    details = caught.value.details
    assert (details["step"], details["line"], details["exit_code"]) == (4, 4, 42)
    assert details["command"] == "RUN echo to-stderr >&2; exit 42"
    assert "to-stderr" in details["output"]
    m = Machine.get(details["machine_id"])
    try:
        assert m.exec("cat /root/before; echo $A").stdout == "before\n1\n"
        m.sleep()
        assert m.exec("cat /root/before").stdout == "before\n"
    finally:
        m.destroy()
    with pytest.raises(NotFoundError):
        Template.get(name)


def test_cancel_leaves_nothing(daemon: Daemon, name: str) -> None:
    made = Build.start(name, dockerfile="FROM base\nRUN echo begun; sleep 300\n", driver=DRIVER)
    for event in made.events():
        if event["event"] == "log" and "begun" in event["text"]:
            break
    begun = time.monotonic()
    made.cancel()
    assert made.status == "cancelled"
    assert time.monotonic() - begun < 20
    assert not list((daemon.data_dir / "pool/disks").iterdir())


def test_secrets_are_nowhere(daemon: Daemon, driver: str, name: str) -> None:
    value = f"sesame-{secrets.token_hex(16)}"
    begun = time.time()
    text = """\
FROM base
RUN --mount=type=secret,id=a,required=true cat /run/secrets/a; wc -c < /run/secrets/a
RUN --mount=type=secret,id=a,target=/root/.netrc cat /root/.netrc | base64 -w0; stat -L -c %a /root/.netrc
RUN --mount=type=secret,id=a,env=TOKEN echo "it is $TOKEN"
RUN test ! -e /run/secrets/a && test ! -L /root/.netrc && test -z "$TOKEN" && ls /run
"""
    log: list[dict[str, Any]] = []
    made = Template.build(
        name, dockerfile=text, secrets={"a": value}, driver=driver, on_log=log.append
    )
    seen = said(log)
    assert value not in seen
    assert f"{len(value)}\n" in seen  # it was there
    assert "it is *" in seen
    assert "400" in seen
    assert base64.b64encode(value.encode()).decode() not in seen
    # Nor in any block of any image, in a row or a log.
    needle = value.encode()
    images = [
        p for p in (daemon.data_dir / "pool/images").glob("*.ext4") if p.stat().st_ctime >= begun
    ]
    assert len(images) >= 5  # a layer for each step, and what is sealed
    for path in images:
        assert not contains(path, needle), path
    for pattern in ("roost.db*", "builds/*", "logs/*"):
        for path in daemon.data_dir.glob(pattern):
            assert needle not in path.read_bytes(), path
    assert made.status == "ready"


def test_what_a_step_started_is_gone(daemon: Daemon, driver: str, name: str) -> None:
    text = (
        "FROM base\n"
        "RUN setsid sh -c 'while :; do date >> /root/ticks; sleep 0.05; done' > /dev/null 2>&1 & sleep 0.3\n"
        "RUN wc -l < /root/ticks > /root/one; sleep 0.5; wc -l < /root/ticks > /root/two; cmp /root/one /root/two\n"
    )
    Template.build(name, dockerfile=text, driver=driver)


def test_a_template_of_a_template_of_a_snapshot(daemon: Daemon, name: str) -> None:
    with Machine.create(driver="gvisor") as m:
        m.exec("echo kept > /root/kept").check()
        snapshot = m.snapshot(f"{name}-s")
    Template.build(
        f"{name}-a",
        dockerfile=f"FROM snapshot:{name}-s\nRUN cat /root/kept\nENV E=1\n",
        driver=DRIVER,
    )
    Template.build(
        f"{name}-b", dockerfile=f"FROM {name}-a\nRUN test $E = 1 && cat /root/kept\n", driver=DRIVER
    )
    with pytest.raises(ConflictError) as caught:
        Template.get(f"{name}-a").delete()
    assert caught.value.details["used_by"][0]["kind"] == "template"
    with Machine.create(f"{name}-b", driver=DRIVER) as m:
        assert m.exec("cat /root/kept").stdout == "kept\n"
        with pytest.raises(ConflictError):
            Template.get(f"{name}-b").delete()
    Template.get(f"{name}-b").delete()
    snapshot.delete()


def test_on_a_microvm(daemon: Daemon, name: str) -> None:
    """A template that containers built starts as a microVM, too."""
    if not any(r["driver"] == "qemu" and r["available"] for r in _rungs(daemon)):
        pytest.skip("no microVMs here")
    Template.build(name, dockerfile="FROM base\nRUN echo built > /root/built\n", driver=DRIVER)
    with Machine.create(name, driver="qemu") as m:
        assert m.exec("cat /root/built").stdout == "built\n"


def _rungs(daemon: Daemon) -> list[dict[str, Any]]:
    with daemon.http() as http:
        found = http.get("/v1/host").json()["rungs"]
    return [{"driver": r.get("driver", r.get("name")), **r} for r in found]


def test_the_log_is_there_for_who_comes_later(daemon: Daemon, name: str) -> None:
    made = Build.start(name, dockerfile="FROM base\nRUN seq 1000\n", driver=DRIVER).wait()
    again = Build.get(made.id)
    assert "\n1000\n" in said(list(again.events()))
    half = Build.get(made.id)
    half.place = again.place // 2
    assert 0 < len(list(half.events())) < len(list(Build.get(made.id).events()))


def test_much_output_is_bounded(daemon: Daemon, name: str) -> None:
    text = "FROM base\nRUN yes 0123456789012345678901234567890123456789 | head -c 40000000; echo end > /root/end\n"
    made = Build.start(name, dockerfile=text, driver=DRIVER).wait()
    assert made.status == "succeeded"
    log = daemon.data_dir / "builds" / f"{made.id}.jsonl"
    assert log.stat().st_size < 24 << 20


def test_a_killed_daemon_leaves_nothing_half_made(daemon: Daemon, name: str) -> None:
    """In the midst of a step, and again while layers are kept."""
    text = "FROM base\n" + "".join(f"RUN echo {n} >> /root/n; sync\n" for n in range(12))
    for step in (3, 7):
        made = Build.start(name, dockerfile=text, driver=DRIVER)
        for event in made.events():
            if event["event"] == "step" and event["step"] >= step:
                break
        daemon.restart(signal.SIGKILL)
        made.refresh()
        assert made.status == "failed"
        assert "daemon stopped" in made.to_json()["error"]["message"]
        assert [e["event"] for e in made.events()][-1] == "end"
        deadline = time.monotonic() + 30
        while list((daemon.data_dir / "pool/disks").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert not list((daemon.data_dir / "pool/tmp").iterdir())
        with pytest.raises(NotFoundError):
            Template.get(name)
        left = [t for t in Template.list(unnamed=True) if t.status == "building"]
        assert not left
    # What was kept is whole, and found again.
    log: list[dict[str, Any]] = []
    Template.build(name, dockerfile=text, driver=DRIVER, on_log=log.append)
    assert len(ran(log)) < 12
    with Machine.create(name, driver=DRIVER) as m:
        assert m.exec("cat /root/n").stdout.split() == [str(n) for n in range(12)]


def test_a_command_line(daemon: Daemon, name: str, tree: Path) -> None:
    (tree / "Dockerfile").write_text("FROM base\nCOPY app/deep/data /data\nRUN cat /data\n")

    def roost(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "roost.cli", *args],
            env={**os.environ, **daemon.env, "ROOST_API_KEY": daemon.key},
            cwd=tree,
            capture_output=True,
            text=True,
        )

    made = roost("template", "build", name, ".", "-t", f"{name}:v1", "--driver", DRIVER)
    assert made.returncode == 0, made.stderr
    assert "[3/3] RUN cat /data\n1\n" in made.stderr
    assert f"{name}, {name}:v1" in roost("template", "ls").stdout
    assert roost("template", "rm", f"{name}:v1").returncode == 0
    again = roost("template", "build", name, "--json", "--driver", DRIVER)
    assert again.stderr == ""
    (tree / "Dockerfile").write_text("FROM base\nCOPY nope /data\n")
    wrong = roost("template", "build", name)
    assert wrong.returncode == 1
    assert "line 2" in wrong.stderr
