from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command_name

from roost.cli._app import app
from roost.cli._commands import COMMANDS, GROUPS
from roost.cli._connect import complete_machine
from tests.unit.cli.conftest import EXECUTIONS
from tests.unit.client.stub import (
    EXECUTION_ID,
    MACHINE_ID,
    Answer,
    Stub,
    execution,
    machine,
    sse,
    wire,
)

Roost = Callable[..., int]
Out = pytest.CaptureFixture[str]


def test_create_prints_the_id(stub: Stub, roost: Roost, capsys: Out) -> None:
    stub.on("POST", "/v1/machines", lambda _: Answer(machine(), 201))
    argv = ["--key", "user-42", "--vcpu", "2", "--memory", "2048", "--storage", "20", "--ttl", "2h"]
    argv += ["-l", "team=x", "--env", "A=b", "--isolation", "container", "--autosleep", "never"]
    assert roost("create", *argv) == 0
    assert capsys.readouterr().out == f"{MACHINE_ID}\n"
    assert stub.seen[-1].json == {
        "template": "base",
        "key": "user-42",
        "vcpu": 2.0,
        "memory_mib": 2048,
        "storage_gib": 20,
        "isolation": "container",
        "env": {"A": "b"},
        "labels": {"team": "x"},
        "autosleep": "never",
        "ttl": "2h",
    }
    assert roost("create", "--no-wait", "--json") == 0
    assert stub.seen[-1].query == {"wait": "false"}
    assert json.loads(capsys.readouterr().out)["machine_id"] == MACHINE_ID


def test_ensure(stub: Stub, roost: Roost, capsys: Out) -> None:
    stub.on("PUT", "/v1/machines/by-key/user-42", lambda _: machine())
    assert roost("ensure", "user-42") == 0
    assert capsys.readouterr().out == f"{MACHINE_ID}\n"


def test_ls_filters_and_shapes(stub: Stub, roost: Roost, capsys: Out) -> None:
    assert roost("ls", "--phase", "running", "--label", "a=b") == 0
    assert stub.seen[-1].query | {"limit": ""} == {"phase": "running", "label": "a=b", "limit": ""}
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["ID", "KEY", "NAME", "PHASE"]
    assert line.split()[:5] == [MACHINE_ID, "user-42", "-", "running", "gvisor"]
    assert roost("ls", "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["key"] == "user-42"
    assert roost("ls", "-q") == 0
    assert capsys.readouterr().out == f"{MACHINE_ID}\n"
    stub.on("GET", "/v1/machines", lambda _: {"items": [], "next_cursor": None})
    assert roost("ls") == 0
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "roost create" in seen.err
    assert roost("ls", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"items": []}


@pytest.mark.parametrize("name", [MACHINE_ID, "mmmm", "user-42", "blue"])
def test_a_machine_by_id_prefix_key_and_name(
    stub: Stub, roost: Roost, capsys: Out, name: str
) -> None:
    every = [machine(name="blue"), machine(machine_id="x" * 26, key="other", name="red")]

    def listing(request: Any) -> dict[str, Any]:
        key = request.query.get("key")
        return {"items": [m for m in every if key in (None, m["key"])], "next_cursor": None}

    stub.on("GET", "/v1/machines", listing)
    assert roost("show", name, "--json") == 0
    assert json.loads(capsys.readouterr().out)["machine_id"] == MACHINE_ID


def test_a_machine_that_could_be_several_or_none(stub: Stub, roost: Roost, capsys: Out) -> None:
    two = [machine(machine_id="abcd" + c * 22, key=None) for c in "xy"]
    stub.on(
        "GET",
        "/v1/machines",
        lambda r: {"items": [] if "key" in r.query else two, "next_cursor": None},
    )
    assert roost("show", "abcd") == 1
    assert "could be any of 2" in capsys.readouterr().err
    assert roost("show", "abc") == 1, "three characters are no prefix"
    seen = capsys.readouterr().err
    assert "There is no machine 'abc'" in seen
    assert "hint: roost ls" in seen


def test_rm(stub: Stub, roost: Roost, capsys: Out) -> None:
    gone = machine(phase="destroyed")
    stub.on("DELETE", f"/v1/machines/{MACHINE_ID}", lambda _: gone)
    assert roost("rm", "user-42") == 0
    assert capsys.readouterr().out == f"{MACHINE_ID}\n"
    assert roost("rm") == 2
    assert roost("rm", "--all", "user-42") == 2
    capsys.readouterr()
    assert roost("rm", "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["phase"] == "destroyed"


def test_reboot(stub: Stub, roost: Roost, capsys: Out) -> None:
    stub.on("POST", f"/v1/machines/{MACHINE_ID}/reboot", lambda _: machine())
    assert roost("reboot", "user-42") == 0
    assert capsys.readouterr().out.startswith(MACHINE_ID)


def test_names_from_elsewhere_are_inert(stub: Stub, roost: Roost, capsys: Out) -> None:
    evil = "\x1b]0;title\x07[bold red]x[/]:smile:\u202e\n\x9b2J"
    bad = machine(name=evil, status={"phase": "failed", "reason": evil, "revision": 1})
    stub.on("GET", "/v1/machines", lambda _: {"items": [bad], "next_cursor": None})
    stub.on(
        "GET",
        f"/v1/machines/{MACHINE_ID}/logs",
        lambda _: {"items": [{"at": "t", "event": "e", "message": evil}]},
    )
    for argv in (["ls"], ["show", "user-42"], ["logs", "user-42"]):
        assert roost(*argv) == 0
        out = capsys.readouterr().out
        assert "[bold red]x[/]:smile:" in out
        assert not any(c in out for c in "\x1b\x07\x9b\u202e")


def test_tables_on_a_terminal_are_inert_too(stub: Stub) -> None:
    import pty

    evil = "\x1b]0;t\x07[blink]b[/blink]"
    bad = machine(key=evil)
    stub.on("GET", "/v1/machines", lambda _: {"items": [bad], "next_cursor": None})
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "roost.cli", "ls"],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    assert process.wait(20) == 0
    os.close(master)
    assert b"\x1b]" not in seen
    assert b"^[]0;t\\x07[blink]b[/blink]" in seen


def test_logs_of_the_daemon(stub: Stub, roost: Roost, capsys: Out, tmp_path: Path) -> None:
    assert roost("logs", "--daemon") == 1
    assert "roost up" in capsys.readouterr().err
    log = tmp_path / "data/logs/daemon.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(300)) + "\x1b[2J\n")
    assert roost("logs", "--daemon", "-n", "2") == 0
    assert capsys.readouterr().out == "line 299\n^[[2J\n"
    assert roost("logs") == 2


def test_doctor(stub: Stub, roost: Roost, capsys: Out) -> None:
    rung = {
        "driver": "gvisor",
        "isolation": "container",
        "level": 2,
        "available": True,
        "version": "2024",
        "reason": None,
        "remedy": None,
        "capabilities": {"claim": "sandboxed by gVisor"},
    }
    missing = {
        **rung,
        "driver": "runc",
        "available": False,
        "reason": "not there",
        "remedy": "apt-get install runc",
    }
    host = {
        "daemon": {"pid": 7, "version": "0.1.0", "url": stub.url},
        "rungs": [rung, missing],
        "checks": [
            {"name": "nft", "ok": False, "detail": "old", "remedy": "apt-get install nft"},
            {
                "name": "known escapes",
                "ok": True,
                "detail": "none",
                "warning": "CVE-1: a\nCVE-2: b",
            },
        ],
        "default_driver": "gvisor",
    }
    stub.on("GET", "/v1/host", lambda _: host)
    assert roost("doctor") == 0
    out = capsys.readouterr().out
    told = ("pid 7", "gvisor*", "sandboxed by gVisor", "not there", "apt-get install runc")
    for text in (*told, "known escapes: none", "  CVE-1: a", "  CVE-2: b"):
        assert text in out
    assert roost("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out) == host
    host["rungs"] = [missing]
    assert roost("doctor") == 1


def test_doctor_tells_the_contract_of_each_rung(stub: Stub, roost: Roost, capsys: Out) -> None:
    line = {"text": "filling the host's disk", "known": "tested", "by": "tests/x.py"}
    rung = {
        "driver": "gvisor", "isolation": "container", "level": 2, "available": True, "allowed": False,
        "claim": "sandboxed by gVisor", "boundary": "a kernel", "can": [line],
        "defends_against": [{**line, "known": "measured"}], "does_not": [{**line, "known": "unverified"}],
    }  # fmt: skip
    told = {
        "profile": "managed", "default_driver": "gvisor", "least_level": 3, "least_why": "held to it",
        "rungs": [rung], "unrestricted": "every command runs unasked", "advice": "another host",
    }  # fmt: skip
    host = {"daemon": {}, "rungs": [{**rung, "available": True}], "checks": []}
    stub.on("GET", "/v1/host", lambda _: host)
    assert roost("doctor", "--contract") == 1  # a daemon of an older release
    stub.on("GET", "/v1/capabilities", lambda _: told)
    capsys.readouterr()
    assert roost("doctor", "--contract") == 0
    out = capsys.readouterr().out
    for text in (
        "2 container (gvisor; not yours): sandboxed by gVisor",
        "[tested: tests/x.py]",
        "[measured here: tests/x.py]",
        "[not verified: tests/x.py]",
        "every command runs unasked",
        "another host",
    ):
        assert text in out
    assert roost("doctor") == 0
    assert "held to it" in capsys.readouterr().out
    assert roost("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["contract"] == told


def test_who_asks_for_an_unrestricted_machine_is_warned(
    stub: Stub, roost: Roost, capsys: Out
) -> None:
    made = machine(unrestricted=True, warnings=["nothing asks first"])
    stub.on("POST", "/v1/machines", lambda _: Answer(made, 201))
    assert roost("create", "--unrestricted") == 0
    seen = capsys.readouterr()
    assert seen.out == f"{MACHINE_ID}\n"
    assert seen.err == "Warning: nothing asks first\n"
    assert stub.asked("POST", "/v1/machines")[0].json["unrestricted"] is True
    stub.on("GET", f"/v1/machines/{MACHINE_ID}", lambda _: made)
    assert roost("show", MACHINE_ID) == 0
    assert "nothing asks first" in capsys.readouterr().out


def test_template_build(stub: Stub, roost: Roost, capsys: Out) -> None:
    from tests.unit.client.stub import sse

    ready = {"name": "base", "status": "ready", "digest": "sha256:1"}
    stub.on("GET", "/v1/templates/base", lambda _: {**ready, "shipped": True})
    progress = [
        sse("progress", {"stage": "fetch", "percent": 10, "message": "packages"}),
        sse("progress", {"stage": "fetch", "percent": 20, "message": "more"}),
    ]
    stub.on("POST", "/v1/templates/base/build", lambda _: iter([*progress, sse("done", ready)]))
    assert roost("template", "build", "base") == 0
    seen = capsys.readouterr()
    assert seen.out == "base ready sha256:1\n"
    assert seen.err == "template base: fetch packages\n"
    stub.on(
        "POST",
        "/v1/templates/base/build",
        lambda _: iter([sse("error", wire("TEMPLATE_BUILD_FAILED", "no space"))]),
    )
    assert roost("template", "build", "base", "--json") == 1
    assert "no space" in capsys.readouterr().err


def test_keys(stub: Stub, roost: Roost, capsys: Out) -> None:
    key = {"key_id": "k1", "name": "ci", "created_at": "2026-11-21T01:00:00.000Z"}
    stub.on("POST", "/v1/keys", lambda _: Answer({**key, "key": "roost_s"}, 201))
    stub.on("GET", "/v1/keys", lambda _: {"items": [key], "next_cursor": None})
    stub.on("DELETE", "/v1/keys/k1", lambda _: Answer(None, 204))
    assert roost("key", "create", "ci") == 0
    assert capsys.readouterr().out == "roost_s\n"
    assert roost("key", "revoke", "ci") == 0
    assert capsys.readouterr().out == "k1\n"
    assert roost("key", "revoke", "nobody") == 1
    assert roost("key", "show") == 0
    assert f"ROOST_URL={stub.url}" in capsys.readouterr().out


def test_completion(stub: Stub) -> None:
    assert complete_machine("user") == ["user-42"]
    assert complete_machine("mmm") == [MACHINE_ID]
    stub.close()
    stub.server.server_close()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("create --isolation ", ["auto", "workspace", "user", "container", "microvm"]),
        ("ensure key --isolation mi", ["microvm"]),
        ("create --driver ", ["gvisor", "qemu"]),
        ("ensure key --driver q", ["qemu"]),
        ("promote user-42 --isolation ", ["user", "container", "microvm"]),
        ("promote user-42 --driver ", ["gvisor", "qemu"]),
        ("template build . --driver ", ["gvisor"]),
        ("tenant set acme --isolation n", ["none"]),
    ],
)
def test_rungs_and_drivers_complete(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: Out, words: str, offered: list[str]
) -> None:
    def rung(driver: str, isolation: str, **changes: bool) -> dict[str, object]:
        may = {"available": True, "allowed": True, **changes}
        return {"driver": driver, "isolation": isolation, **may}

    rungs = [
        rung("user", "user", allowed=False),
        rung("gvisor", "container"),
        rung("runc", "container", available=False),
        rung("qemu", "microvm"),
    ]
    stub.on("GET", "/v1/capabilities", lambda _: {"rungs": rungs})
    assert _completed(monkeypatch, capsys, words) == offered
    stub.on("GET", "/v1/capabilities", lambda _: Answer(wire("FORBIDDEN"), 403))
    if "--driver" in words:
        assert _completed(monkeypatch, capsys, words) == []


def _completed(monkeypatch: pytest.MonkeyPatch, capsys: Out, words: str) -> list[str]:
    """What a shell offers for the last word."""
    given = ["roost", *words.split(" ")]
    monkeypatch.setenv("COMP_WORDS", " ".join(given))
    monkeypatch.setenv("COMP_CWORD", str(len(given) - 1))
    monkeypatch.setenv("_ROOST_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        app(prog_name="roost")
    return capsys.readouterr().out.split()


def test_every_command_is_there_and_has_help(roost: Roost, capsys: Out) -> None:
    for name in COMMANDS:
        assert roost(name, "--help") == 0, name
        assert "Usage: roost " + name in capsys.readouterr().out
    assert roost("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert roost("nonsense") == 2
    assert roost() == 2


def test_every_command_of_a_module_is_listed() -> None:
    """One that is not is no command: only the list is looked at."""
    for module in {module for name, (module, _) in COMMANDS.items() if name not in GROUPS}:
        made = import_module(f"roost.cli.{module}").app
        names = {
            each.name or get_command_name(each.callback.__name__)
            for each in made.registered_commands
        }
        names |= {each.name for each in made.registered_groups}
        assert names == {name for name, (where, _) in COMMANDS.items() if where == module}


def test_watch_tells_each_state(stub: Stub, roost: Roost, capsys: Out) -> None:
    at = "2026-11-21T01:00:00.000Z"
    states = [
        machine(phase=phase, status={"phase": phase, "reason": why, "last_progress_at": at})
        for phase, why in (("failed", "crashed"), ("destroyed", None))
    ]
    stub.on(
        "GET",
        f"/v1/machines/{MACHINE_ID}/status/stream",
        lambda _: iter([sse("machine", each) for each in states]),
    )
    assert roost("watch", "user-42") == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said == [[at, "failed", "crashed"], [at, "destroyed"]]
    assert roost("watch", "user-42", "--json") == 0
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["phase"] for each in whole] == ["failed", "destroyed"]


def test_json_everywhere(roost: Roost, capsys: Out) -> None:
    groups = {
        "template": ("ls", "show", "build"),
        "key": ("show", "ls", "create", "rm", "revoke"),
        "secret": ("set", "ls", "rm"),
        "ssh-key": ("add", "list", "rm"),
        "tenant": ("create", "ls", "show", "set", "rm"),
        "snapshot": ("create", "ls", "show", "rm"),
        "port": ("add", "ls", "list", "rm"),
        "volume": ("create", "ls", "list", "show", "rm", "delete"),
        "browser": ("goto", "text", "pages", "cdp"),
        "computer": ("size", "windows", "clipboard"),
    }
    for name in COMMANDS:
        for sub in groups.get(name, ("",)):
            roost(*filter(None, (name, sub)), "--help")
            if name != "completion":
                assert "--json" in capsys.readouterr().out, (name, sub)


def test_help_is_quick() -> None:
    """A guard against heavy imports rather than a stopwatch: the best of a few runs on a busy host."""
    best = 9.0
    for _ in range(5):
        begun = os.times()
        subprocess.run(
            [sys.executable, "-m", "roost.cli", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        now = os.times()
        spent = now.children_user + now.children_system
        best = min(best, spent - begun.children_user - begun.children_system)
    assert best < 0.4
    code = (
        "import sys\nfrom roost.cli._app import run\nrun(['--help'])\n"
        "heavy = {'httpx', 'rich', 'pydantic', 'websockets', 'fastapi', 'grpc', 'sqlalchemy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def test_up_and_down_drive_only_this_host(
    roost: Roost, monkeypatch: pytest.MonkeyPatch, capsys: Out, stub: Stub
) -> None:
    monkeypatch.setenv("ROOST_URL", "http://10.9.8.7:7676")
    assert roost("up") == 1
    assert roost("down") == 1
    assert "another host" in capsys.readouterr().err


def test_down_when_nothing_runs(roost: Roost, capsys: Out, stub: Stub) -> None:
    assert roost("down", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"stopped": False, "purged": False}


def test_logs_of_what_a_template_starts(stub: Stub, roost: Roost, capsys: Out) -> None:
    stub.on("GET", f"{EXECUTIONS}/start", lambda _: execution(status="running", name="start"))
    stub.on(
        "GET",
        f"{EXECUTIONS}/{EXECUTION_ID}/output",
        lambda _: {"execution_id": EXECUTION_ID, "stdout": "serving\n", "stderr": "a warning\n"},
    )
    assert roost("logs", "user-42", "start") == 0
    assert capsys.readouterr() == ("serving\n", "a warning\n")
    assert roost("logs", "user-42", "start", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["stdout"]) == ("start", "serving\n")

    def stream(_: Any) -> Iterator[bytes]:
        yield sse("stdout", {"offset": 0, "data_b64": "c2VydmluZwo="})
        yield sse("exit", execution())

    stub.on("GET", f"{EXECUTIONS}/{EXECUTION_ID}/stream", stream)
    assert roost("logs", "user-42", "start", "-f") == 0
    assert capsys.readouterr().out == "serving\n"
