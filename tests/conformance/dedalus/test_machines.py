"""Machines, and what runs in them."""

from __future__ import annotations

import time

from .conftest import Sdk

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /root/count; sleep 0.05; done"


def create(sdk: Sdk, rung: str, **more: object) -> str:
    sdk.run(
        "m = ~client.machines.create(**SIZE, **MORE, extra_body=dict(driver=RUNG))",
        MORE=more,
        RUNG=rung,
    )
    made: str = sdk.value("m.machine_id")
    return made


def delete(sdk: Sdk, machine: str) -> None:
    sdk.run("gone = ~client.machines.delete(machine_id=MACHINE)", MACHINE=machine)


def phase(sdk: Sdk, machine: str) -> str:
    found = sdk.value(
        "(~client.machines.retrieve(machine_id=MACHINE)).status.phase", MACHINE=machine
    )
    return str(found)


def count(sdk: Sdk, machine: str) -> int:
    """Of the counter that runs in the machine."""
    while not (said := sdk.finished(machine, "cat", "/root/count")["stdout"].strip()):
        pass  # it is just being written
    return int(said)


def goes_on(sdk: Sdk, machine: str, mark: int) -> None:
    deadline = time.monotonic() + 60
    while count(sdk, machine) <= mark:
        assert time.monotonic() < deadline, "it stands still"
        time.sleep(0.1)


def test_life_with_memory(sdk: Sdk, rung: str) -> None:
    """Through sleep by hand and by itself what runs in it goes on; it is not activity."""
    machine = create(sdk, rung, autosleep="1h")
    try:
        made = sdk.value("m")
        assert made["memory_mib"] == 512 and made["autosleep_seconds"] == 3600
        assert phase(sdk, machine) == "running"
        ids = sdk.value("[each.machine_id EACH each in client.machines.list(limit=2)]")
        assert machine in ids
        ran = sdk.finished(machine, "sh", "-c", f"({COUNTER}) >/dev/null 2>&1 & echo $!")
        assert ran["status"] == "succeeded", ran
        before = count(sdk, machine)
        sdk.run("slept = ~client.machines.sleep(machine_id=MACHINE)")
        assert sdk.value("slept.desired_state") == "sleeping"
        assert phase(sdk, machine) == "sleeping"
        sdk.run("woken = ~client.machines.wake(machine_id=MACHINE)")
        assert sdk.value("woken.desired_state") == "running"
        alive = sdk.finished(machine, "kill", "-0", ran["stdout"].strip())
        assert alive["exit_code"] == 0, alive
        goes_on(sdk, machine, before)
        sdk.run("changed = ~client.machines.update(machine_id=MACHINE, autosleep='2s')")
        assert sdk.value("changed.autosleep_seconds") == 2
        until = time.monotonic() + 30
        while phase(sdk, machine) != "sleeping":
            assert time.monotonic() < until, "it counts what runs in the background as activity"
            time.sleep(0.2)
        now = count(sdk, machine)  # wakes it
        assert now > before
        goes_on(sdk, machine, now)
    finally:
        delete(sdk, machine)
    assert phase(sdk, machine) == "destroyed"
    of = ("create", "retrieve", "update", "list", "delete", "sleep", "wake")
    sdk.records(*(f"machines.{each}" for each in of))


def test_reboot(sdk: Sdk, rung: str) -> None:
    if sdk.version == "0.4.0":
        return
    machine = create(sdk, rung)
    try:
        sdk.finished(
            machine, "sh", "-c", "echo kept > /root/kept; sync; (sleep 999) >/dev/null 2>&1 &"
        )
        sdk.run("again = ~client.machines.reboot(machine_id=MACHINE, force=True)", MACHINE=machine)
        assert sdk.value("again.phase") == "running"
        said = sdk.finished(machine, "sh", "-c", "cat /root/kept; pgrep -x sleep || echo none")
        assert said["stdout"] == "kept\nnone\n"
    finally:
        delete(sdk, machine)
    sdk.records("machines.reboot", note="force is no different: either way the disk is whole")


def test_watch(sdk: Sdk, machine: str) -> None:
    if sdk.version != "0.4.0":
        return
    sdk.run("stream = ~client.machines.watch(machine_id=MACHINE)", MACHINE=machine)
    sdk.run("seen = [each EACH each in stream]")
    assert sdk.value("[(each.status.phase, each.machine_id) for each in seen]")[-1] == [
        "running",
        machine,
    ]
    sdk.run("at = seen[-1].status.revision")
    sdk.run("stream = ~client.machines.watch(machine_id=MACHINE, last_event_id=at)")
    assert sdk.value("[each EACH each in stream]") == []
    sdk.records("machines.watch")


def test_raw_answers_carry_an_etag(sdk: Sdk, machine: str) -> None:
    sdk.run(
        "raw = ~client.machines.with_raw_response.retrieve(machine_id=MACHINE)", MACHINE=machine
    )
    etag = sdk.value("raw.headers['etag']")
    sdk.run("said = json.loads(~raw.text())")
    assert etag == f'"{sdk.value("said")["status"]["revision"]}"'
    sdk.run(
        "~client.machines.update(machine_id=MACHINE, autosleep='never', extra_headers={'If-Match': ETAG})",
        ETAG=etag,
    )


def test_executions(sdk: Sdk, machine: str) -> None:
    script = 'cat; pwd; echo "$WHO" >&2; exit 7'
    said = sdk.finished(
        machine,
        "sh",
        "-c",
        script,
        stdin="typed\n",
        cwd="/tmp",
        env={"WHO": "me"},
        timeout_ms=20000,
    )
    assert (said["status"], said["exit_code"]) == ("failed", 7)
    assert (said["stdout"], said["stderr"]) == ("typed\n/tmp\n", "me\n")
    assert (said["stdout_bytes"], said["stdout_truncated"]) == (11, False)
    found = sdk.value(
        "[e.model_dump(mode='json') EACH e in client.machines.executions.events("
        "machine_id=MACHINE, execution_id=ran.execution_id, limit=1)]"
    )
    assert [each["sequence"] for each in found] == list(range(len(found)))
    assert [each["type"] for each in found] == ["lifecycle", "stdout", "stderr", "lifecycle"]
    assert (found[-1]["status"], found[-1]["exit_code"]) == ("failed", 7)
    ids = sdk.value(
        "[e.execution_id EACH e in client.machines.executions.list(machine_id=MACHINE, limit=3)]"
    )
    assert said["execution_id"] in ids and len(set(ids)) == len(ids)
    of = ("create", "retrieve", "list", "output")
    sdk.records(*(f"executions.{each}" for each in of))
    sdk.records(
        "executions.events",
        outcome="differs",
        note="stdout and stderr are in order each; between the two the order is that of the asking",
    )


def test_an_execution_is_followed_and_cancelled(sdk: Sdk, machine: str) -> None:
    sdk.run(
        """
ran = ~client.machines.executions.create(
    machine_id=MACHINE, command=["sh", "-c", "echo one; sleep 1; echo two; exec sleep 600"])
text, cursor = "", None
while "two" not in text:
    page = ~client.machines.executions.events(
        machine_id=MACHINE, execution_id=ran.execution_id, **({} if cursor is None else {"cursor": cursor}))
    text += "".join(e.chunk or "" for e in page.items)
    cursor = page.next_cursor
gone = ~client.machines.executions.delete(machine_id=MACHINE, execution_id=ran.execution_id)
""",
        MACHINE=machine,
    )
    assert sdk.value("text") == "one\ntwo\n"
    assert sdk.value("gone.status") == "cancelled"
    sdk.records("executions.delete")


def test_executions_that_end_otherwise(sdk: Sdk, machine: str) -> None:
    late = sdk.finished(machine, "sleep", "60", timeout_ms=300)
    assert (late["status"], late["error_code"]) == ("expired", "TIMEOUT")
    none = sdk.finished(machine, "no-such-command")
    assert (none["status"], none["exit_code"], none["error_code"]) == (
        "failed",
        127,
        "COMMAND_NOT_FOUND",
    )
    killed = sdk.finished(machine, "sh", "-c", "kill -9 $$")
    assert (killed["status"], killed["signal"]) == ("failed", 9)
    much = sdk.finished(machine, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
    assert much["stdout_truncated"] and much["stdout_bytes"] == 3_000_000
