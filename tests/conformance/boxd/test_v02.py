"""boxd 0.2: ``Boxd().machines`` and its asynchronous twin."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from .conftest import COUNTER, KINDS, READ, SERVE, V2, Client, opened

SIZE = "vcpu=1, memory='512M', disk='4G'"
# The snippets the two kinds cannot share.
STREAM = {
    "sync": """
def talk(id, command, tty, words):
    with boxd.machines.stream_exec(id, command=command, tty=tty, cols=90, rows=20) as s:
        for w in words:
            if w is None: s.write_eof()
            elif isinstance(w, list): s.resize(*w)
            else: s.write(w)
        got = [(bytes(c.data), c.is_stderr) for c in s.iter_chunks()]
        return [b''.join(d for d, e in got if not e).decode(), b''.join(d for d, e in got if e).decode(), s.exit_code]
def leave(id, command):
    with boxd.machines.stream_exec(id, command=command) as s:
        for chunk in s: break
""",
    "async": """
async def talk(id, command, tty, words):
    async with boxd.machines.stream_exec(id, command=command, tty=tty, cols=90, rows=20) as s:
        for w in words:
            if w is None: await s.write_eof()
            elif isinstance(w, list): await s.resize(*w)
            else: await s.write(w)
        got = [(bytes(c.data), c.is_stderr) async for c in s.iter_chunks()]
        return [b''.join(d for d, e in got if not e).decode(), b''.join(d for d, e in got if e).decode(), s.exit_code]
async def leave(id, command):
    async with boxd.machines.stream_exec(id, command=command) as s:
        async for chunk in s: break
""",
}


@pytest.fixture(scope="module", params=KINDS)
def boxd(request: pytest.FixtureRequest, client: Callable[..., Client]) -> Client:
    made = client(V2, request.param)
    made.run(STREAM[request.param])
    return made


@pytest.fixture(scope="module")
def vm(boxd: Client) -> Iterator[str]:
    """Its id; the name is ``one-<kind>``."""
    made = boxd.value(
        f"boxd.machines.create(name, {SIZE}, env={{'FROM': 'env'}}, labels={{'suite': name}},"
        " auto_suspend_timeout=0, restart_policy='always', shared=True)",
        name=f"one-{boxd.kind}",
    )
    yield made["id"]
    boxd.value("boxd.machines.delete(id)", id=made["id"])


def counter(boxd: Client, vm: str) -> int:
    said = boxd.value("boxd.machines.exec(id, c)", id=vm, c=READ)
    return int(said["stdout"].strip() or 0)


def passes(boxd: Client, vm: str, mark: int) -> int:
    """What it has come to, once that is more than ``mark``."""
    deadline = time.monotonic() + 60
    while (now := counter(boxd, vm)) <= mark:
        assert time.monotonic() < deadline, (now, mark)
        time.sleep(0.1)
    return now


def count(boxd: Client, vm: str) -> None:
    command = f"nohup sh -c '{COUNTER}' >/dev/null 2>&1 & sleep 0.5"
    assert boxd.value("boxd.machines.exec(id, c)", id=vm, c=command)["exit_code"] == 0


def test_machines(boxd: Client, vm: str) -> None:
    name = f"one-{boxd.kind}"
    got = boxd.value("boxd.machines.get(id)", id=vm)
    assert (got["id"], got["name"], got["status"], got["image_ref"]) == (
        vm,
        name,
        "running",
        "base",
    )
    assert got["resources"] == {"vcpu": 1, "memory_bytes": 2**29, "disk_bytes": 2**32}
    assert got["labels"] == {"suite": name}
    assert got["idle"]["suspend_after"] == 0
    assert got["source"] is None
    assert got["created_at"]
    assert got["access"]["url"].startswith(f"https://{name}.")
    assert boxd.value("boxd.machines.get(name)", name=name)["id"] == vm
    listed = boxd.value("boxd.machines.list(labels={'suite': name})", name=name)
    assert [each["id"] for each in listed] == [vm]
    assert vm in [m["id"] for m in boxd.value("boxd.machines.list(all_contexts=True)")]
    assert boxd.value("boxd.machines.list(labels=['no-such'])") == []
    assert boxd.value("boxd.machines.wait_until_ready(id)", id=vm)["id"] == vm
    assert boxd.value("boxd.machines.suggest_name()").count("-") == 2
    assert boxd.value("boxd.machines.share(id)", id=vm) is None
    boxd.found("Boxd()", note="the key is exchanged on the same host and port")
    boxd.found(
        "machines.create",
        "differs",
        "answers when the machine runs; no size asked for is the template's; cmd, networks, spec, "
        "auto_destroy_timeout and ssh=False are refused",
    )
    boxd.found(
        "machines.get",
        "differs",
        "access.url has https even where the port speaks http; restart_policy is not told",
    )
    for each in ("list", "wait_until_ready", "suggest_name"):
        boxd.found(f"machines.{each}")
    boxd.found("machines.share", "differs", "every key of the tenant sees its machines anyway")


def test_exec(boxd: Client, vm: str) -> None:
    def run(arguments: str) -> list[object]:
        said = boxd.value(f"boxd.machines.exec(id, {arguments})", id=vm)
        return [said["stdout"], said["stderr"], said["exit_code"]]

    assert run("'echo out; echo err >&2; exit 3'") == ["out\n", "err\n", 3]
    assert run("['printf', '%s', 'a b']") == ["a b", "", 0]
    assert run("'echo $FROM-$A', env={'A': 'x y'}") == ["env-\n", "", 0]  # the shell's own order
    assert run("'sh -c \\'echo $A\\'', env={'A': 'x y'}") == ["x y\n", "", 0]
    assert run("'pwd', cwd='/tmp'") == ["/tmp\n", "", 0]
    out, err, code = run("'pwd', cwd='/no-such'")
    assert (out, bool(err), code) == ("", True, 2)
    assert run("'cat'") == ["", "", 0]  # stdin is at its end
    assert run("'tty; stty size', tty=True, cols=100, rows=30")[0] == "/dev/pts/0\r\n30 100\r\n"
    raw = boxd.value("boxd.machines.exec(id, 'head -c 4096 /dev/zero', encoding='buffer')", id=vm)
    assert raw["exit_code"] == 0
    late = boxd.raises(
        "boxd.machines.exec(id, 'echo $$ > /run/pid; sleep 60', timeout=1)", "BoxdError", id=vm
    )
    assert "timed out after 1" in late.text
    gone = "'for i in $(seq 100); do kill -0 $(cat /run/pid) 2>/dev/null || exit 0; sleep .2; done; exit 9'"
    assert run(gone)[2] == 0
    boxd.found(
        "machines.exec", "differs", "the shell is /bin/sh; who leaves ends it at once, by SIGKILL"
    )


def test_exec_streams(boxd: Client, vm: str) -> None:
    def talk(command: str, *words: object, tty: bool = False) -> list[object]:
        said = boxd.value("talk(id, c, t, w)", id=vm, c=command, t=tty, w=words)
        return list(said)

    assert talk("cat; echo over; exit 4", "one\n", "two\n", None) == ["one\ntwo\nover\n", "", 4]
    out, _, code = talk("read a; echo got $a; stty size; exit 5", [120, 40], "word\n", tty=True)
    assert "got word\r\n40 120\r\n" in str(out)
    assert code == 5
    script = "(while sleep 0.1; do date +%N > /run/alive; done) & echo begun; wait"
    boxd.value("leave(id, c)", id=vm, c=script)
    same = 'for i in $(seq 40); do a=$(cat /run/alive); sleep 0.5; test "$a" = "$(cat /run/alive)" && exit 0; done; exit 1'
    assert boxd.value("boxd.machines.exec(id, c)", id=vm, c=same)["exit_code"] == 0
    boxd.found("machines.stream_exec")


def test_files(boxd: Client, vm: str) -> None:
    given = {"id": vm, "p": f"/root/dir-{boxd.kind}"}
    assert (
        boxd.value(
            "boxd.machines.files.upload(id, p + '/a.bin', bytes(range(256)) * 20000)", **given
        )
        == 5_120_000
    )
    boxd.run("got = boxd.machines.files.download(id, p + '/a.bin')", **given)
    boxd.run("got = (await got) if asyncio.iscoroutine(got) else got")
    assert boxd.value("got == bytes(range(256)) * 20000") is True
    assert boxd.value("boxd.machines.files.upload(id, p + '/empty', '')", **given) == 0
    assert boxd.value("boxd.machines.files.download(id, p + '/empty')", **given) == {"bytes": ""}
    boxd.value("boxd.machines.files.mkdir(id, p + '/sub')", **given)
    boxd.value("boxd.machines.files.copy(id, p + '/a.bin', p + '/sub/b.bin')", **given)
    boxd.value("boxd.machines.files.rename(id, p + '/sub', p + '/moved')", **given)
    listed = boxd.value("boxd.machines.files.list_dir(id, p)", **given)
    assert sorted((e["name"], e["is_dir"]) for e in listed["entries"]) == [
        ("a.bin", False), ("empty", False), ("moved", True),
    ]  # fmt: skip
    assert listed["entries"][0]["permissions"].startswith("-rw-")
    boxd.value("boxd.machines.files.delete(id, p)", **given)
    boxd.raises("boxd.machines.files.list_dir(id, p)", "NotFoundError", **given)
    boxd.raises("boxd.machines.files.download(id, '/no-such')", "NotFoundError", **given)
    boxd.raises("boxd.machines.files.mkdir(id, '/no/such')", "NotFoundError", **given)
    boxd.raises("boxd.machines.files.mkdir(id, '/root')", "ConflictError", **given)
    for each in ("upload", "download", "mkdir", "delete"):
        boxd.found(f"machines.files.{each}")
    boxd.found("machines.files.rename", "differs", "does not replace what is there")
    boxd.found("machines.files.copy", "differs", "by the machine's own cp")
    boxd.found("machines.files.list_dir", "differs", "added_at is modified_at")


def test_labels_and_times(boxd: Client, vm: str) -> None:
    change = "boxd.machines.update_labels(id, {'a': '1', 'b': '2'}, remove=['none'])"
    assert boxd.value(change, id=vm) == {"suite": f"one-{boxd.kind}", "a": "1", "b": "2"}
    only = f"boxd.machines.update_labels(id, {{'suite': 'one-{boxd.kind}'}}, replace_all=True)"
    assert boxd.value(only, id=vm) == {"suite": f"one-{boxd.kind}"}
    boxd.value("boxd.machines.set_auto_suspend_timeout(id, 900)", id=vm)
    boxd.value("boxd.machines.set_auto_hibernate_timeout(id, 1800)", id=vm)
    assert boxd.value("boxd.machines.set_delete_after(id, 3600)", id=vm)
    got = boxd.value("boxd.machines.get(id)", id=vm)
    assert got["idle"] == {"suspend_after": 900, "hibernate_after": 1800, "destroy_after": 0}
    assert got["delete_at"]
    assert boxd.value("boxd.machines.set_delete_after(id)", id=vm) is None
    boxd.value("boxd.machines.set_auto_suspend_timeout(id, 0)", id=vm)
    assert boxd.value("boxd.machines.get(id)", id=vm)["idle"]["suspend_after"] == 0
    for each in ("set_auto_suspend_timeout", "set_auto_hibernate_timeout"):
        boxd.found(f"machines.{each}")
    boxd.found("machines.set_delete_after", "differs", "cron is refused")
    boxd.found("machines.update_labels", "differs", "keys have no /")


def test_egress(boxd: Client, vm: str) -> None:
    entries = ["api.example.com", "*.example.com", "203.0.113.0/24"]
    assert boxd.value("boxd.machines.set_egress_allow(id, e)", id=vm, e=entries) == entries
    assert boxd.value("boxd.machines.get(id)", id=vm)["egress_allow"] == entries
    assert boxd.value("boxd.machines.set_egress_allow(id, [])", id=vm) == []
    boxd.found("machines.set_egress_allow", "differs", "a name is for its ports 80 and 443 alone")


def test_routes(boxd: Client, vm: str) -> None:
    name = f"one-{boxd.kind}"
    for each in (("eight", 8000), ("nine", 9000)):
        said = boxd.value("boxd.machines.exec(id, c)", id=vm, c=SERVE.format(*each))
        assert said["exit_code"] == 0, said
    made = boxd.value("boxd.machines.proxies.create(n, 'api', 9000)", n=name)
    assert made == {"name": "api", "port": 9000}
    own, api = boxd.value("boxd.machines.proxies.list(n)", n=name)
    assert (own["name"], own["is_default"], own["port_mode"], own["port"]) == (
        None,
        True,
        "auto",
        8000,
    )
    assert (api["name"], api["port_mode"], api["port"], api["machine_id"]) == (
        "api",
        "locked",
        9000,
        vm,
    )
    assert opened(own["domain"]).text == "eight\n"
    assert opened(api["domain"]).text == "nine\n"
    boxd.value("boxd.machines.proxies.delete(n, 'api')", n=name)
    boxd.value("boxd.machines.proxies.set_port(n, 9000)", n=name)
    (own,) = boxd.value("boxd.machines.proxies.list(n)", n=name)
    assert (own["port_mode"], own["port"]) == ("locked", 9000)
    assert opened(own["domain"]).text == "nine\n"
    boxd.value("boxd.machines.proxies.set_port(n, 'auto')", n=name)
    (own,) = boxd.value("boxd.machines.proxies.list(n)", n=name)
    assert (own["port_mode"], own["port"]) == ("auto", 8000)
    boxd.raises("boxd.machines.proxies.delete(n, 'api')", "NotFoundError", n=name)
    boxd.found(
        "machines.proxies.create", "differs", "at <name>-<machine>.<zone>; a port has one route"
    )
    boxd.found(
        "machines.proxies.list",
        "differs",
        "its own route finds its port when it is listed or set, not in between",
    )
    boxd.found("machines.proxies.set_port")
    boxd.found("machines.proxies.delete")


def test_memory_continues(boxd: Client, vm: str) -> None:
    """Over suspending, hibernating, a checkpoint, a fork and a snapshot; not over a reboot."""
    count(boxd, vm)
    for sleep, wake, status in (
        ("pause", "resume", "suspended"),
        ("hibernate", "wake", "hibernated"),
    ):
        before = counter(boxd, vm)
        boxd.value(f"boxd.machines.{sleep}(id)", id=vm)
        assert boxd.value("boxd.machines.get(id)", id=vm)["status"] == status
        boxd.value(f"boxd.machines.{wake}(id)", id=vm)
        assert passes(boxd, vm, before) < before + 400
    boxd.found("machines.pause")
    boxd.found("machines.resume")
    boxd.found("machines.hibernate")
    boxd.found("machines.wake")

    made = boxd.value("boxd.machines.checkpoints.create(id, 'before')", id=vm)
    assert (made["name"], made["status"]) == ("before", "ready")
    at = counter(boxd, vm)
    boxd.value("boxd.machines.exec(id, 'echo later > /root/later')", id=vm)
    far = passes(boxd, vm, at + 100)
    boxd.value("boxd.machines.checkpoints.restore(id, 'before')", id=vm)
    assert counter(boxd, vm) < far
    passes(boxd, vm, at)
    assert boxd.value("boxd.machines.exec(id, 'cat /root/later')", id=vm)["exit_code"] == 1
    (listed,) = boxd.value("boxd.machines.checkpoints.list(id)", id=vm)
    assert (listed["name"], listed["available"]) == ("before", True)
    boxd.value("boxd.machines.checkpoints.delete(id, 'before')", id=vm)
    boxd.raises("boxd.machines.checkpoints.restore(id, 'before')", "NotFoundError", id=vm)
    for each in ("create", "restore", "list", "delete"):
        boxd.found(f"machines.checkpoints.{each}")

    name = f"fork-{boxd.kind}"
    fork = boxd.value("boxd.machines.fork(id, name, labels={'more': '1'})", id=vm, name=name)
    assert (fork["name"], fork["source"]["kind"], fork["source"]["id"]) == (name, "fork", vm)
    assert fork["labels"] == {"suite": f"one-{boxd.kind}", "more": "1"}
    mine, its = counter(boxd, vm), counter(boxd, fork["id"])
    assert 0 < abs(mine - its) + 1 < 200
    boxd.value("boxd.machines.delete(id)", id=fork["id"])
    boxd.raises("boxd.machines.get(id)", "NotFoundError", id=fork["id"])
    boxd.raises("boxd.machines.get(name)", "NotFoundError", name=name)
    boxd.found("machines.fork", "differs", "has its source's size and secrets")
    boxd.found("machines.delete")

    snap = f"snap-{boxd.kind}"
    assert boxd.value("boxd.snapshots.create(id, s)", id=vm, s=snap)["version"] == 1
    at = counter(boxd, vm)
    made = boxd.value("boxd.snapshots.create(id, s)", id=vm, s=snap)
    assert (made["name"], made["version"], made["status"]) == (snap, 2, "ready")
    assert boxd.value("boxd.snapshots.get(s)", s=snap)["id"] == made["id"]
    assert [s["version"] for s in boxd.value("boxd.snapshots.list()") if s["name"] == snap] == [2]
    restored = boxd.value(
        "boxd.machines.create(name, from_snapshot=s, auto_suspend_timeout=0)", name=name, s=snap
    )
    assert (
        restored["source"]["kind"],
        restored["source"]["name"],
        restored["source"]["version"],
    ) == ("snapshot", snap, 2)
    first = counter(boxd, restored["id"])
    assert first >= at
    passes(boxd, restored["id"], first)
    boxd.value("boxd.machines.delete(id)", id=restored["id"])
    boxd.value("boxd.snapshots.delete(s)", s=snap)
    boxd.raises("boxd.snapshots.get(s)", "NotFoundError", s=snap)
    boxd.found("snapshots.create", "differs", "saving a name again keeps the newest version alone")
    for each in ("get", "list", "delete"):
        boxd.found(f"snapshots.{each}")
    boxd.found(
        "machines.create(from_snapshot=)", "differs", "has the snapshot's size, and no labels of it"
    )

    boxd.value("boxd.machines.reboot(id)", id=vm)
    one = counter(boxd, vm)
    time.sleep(0.3)
    assert counter(boxd, vm) == one
    boxd.value("boxd.machines.stop(id)", id=vm)
    assert boxd.value("boxd.machines.get(id)", id=vm)["status"] == "stopped"
    boxd.value("boxd.machines.start(id)", id=vm)
    assert boxd.value("boxd.machines.get(id)", id=vm)["status"] == "running"
    for each in ("reboot", "stop", "start"):
        boxd.found(f"machines.{each}")


def test_resize(boxd: Client, vm: str) -> None:
    said = boxd.value("boxd.machines.resize(id, memory='640M')", id=vm)
    assert said["memory_bytes"] == 640 * 2**20
    boxd.found("machines.resize", "differs", "any size; without a reboot where the rung can")


def test_disks(boxd: Client) -> None:
    name = f"disk-{boxd.kind}"
    disk = boxd.value("boxd.disks.create(name, '1G')", name=name)
    assert (disk["name"], disk["size_bytes"], disk["status"]) == (name, 2**30, "ready")
    boxd.raises("boxd.disks.create(name, '1G')", "ConflictError", name=name)
    make = (
        f"boxd.machines.create({{}}, {SIZE}, volumes=[VolumeMount(disk_id=d, mount_path='/data')])"
    )
    made = boxd.value(make.format(repr(f"first-{boxd.kind}")), d=disk["id"])
    boxd.value("boxd.machines.exec(id, 'echo kept > /data/file; sync')", id=made["id"])
    (found,) = [d for d in boxd.value("boxd.disks.list()") if d["id"] == disk["id"]]
    assert found["attachments"] == [
        {"machine_id": made["id"], "machine_name": made["name"], "mount_path": "/data", "mount_mode": "rw"}
    ]  # fmt: skip
    boxd.raises(make.format("'never'"), "ConflictError", d=disk["id"])
    boxd.raises("boxd.disks.delete(d)", "ConflictError", d=disk["id"])
    boxd.not_served(
        "disks.attach",
        "boxd.disks.attach(d, 'x', '/data')",
        "named when a machine is made",
        d=disk["id"],
    )
    boxd.not_served(
        "disks.detach",
        "boxd.disks.detach(d, 'x')",
        "free when the machine is destroyed",
        d=disk["id"],
    )
    boxd.value("boxd.machines.delete(id)", id=made["id"])
    made = boxd.value(make.format(repr(f"second-{boxd.kind}")), d=disk["id"])
    assert (
        boxd.value("boxd.machines.exec(id, 'cat /data/file')", id=made["id"])["stdout"] == "kept\n"
    )
    boxd.value("boxd.machines.delete(id)", id=made["id"])
    boxd.value("boxd.disks.delete(d)", d=disk["id"])
    assert disk["id"] not in [d["id"] for d in boxd.value("boxd.disks.list()")]
    boxd.found("disks.create", "differs", "of whole GiB")
    boxd.found("disks.list")
    boxd.found("disks.delete")
    boxd.found("machines.create(volumes=)")


def test_account(boxd: Client) -> None:
    assert boxd.value("boxd.account.get()")["user_id"] == "default"
    config = boxd.value("boxd.account.config()")
    assert config["default_image"] == "base"
    (org,) = boxd.value("boxd.orgs.list()")
    assert (org["id"], org["is_default"]) == ("default", True)
    boxd.found("account.get", "differs", "the tenant; no billing")
    boxd.found("account.config")
    boxd.found("orgs.list", "differs", "the tenant is the one there is")


def test_keys(boxd: Client, client: Callable[..., Client]) -> None:
    made = boxd.value("boxd.api_keys.create('ci', expires_in=3600)")
    other = client(V2, boxd.kind, made["api_key"])
    assert other.value("boxd.account.get()")["user_id"] == "default"
    assert made["id"] in [k["id"] for k in boxd.value("boxd.api_keys.list()")]
    boxd.value("boxd.api_keys.delete(id)", id=made["id"])
    assert made["id"] not in [k["id"] for k in boxd.value("boxd.api_keys.list()")]
    other.raises("boxd.account.get()", "AuthenticationError")
    boxd.found("api_keys.create", "differs", "of the role of the key that asks; no kind org")
    boxd.found("api_keys.list", "differs", "no prefixes: a key has any")
    boxd.found("api_keys.delete")


NOT_SERVED = {
    "machines.rename": ("'x', 'y'", "a name is the machine's key, which it keeps"),
    "machines.unshare": ("'x'", "every key of the tenant sees its machines"),
    "machines.usage": ("'x'", "GET /v1/usage has what is counted"),
    "machines.update_spec": ("'x', {}", "no specs"),
    "machines.set_networks": ("'x', []", "no machine reaches another"),
    "machines.set_bot_protection": ("'x', True", "no bot protection"),
    "machines.set_idle_ignore_outbound": ("'x', True", "idleness is of what Roost sees"),
    "machines.ports.expose": ("'x', 80", "roost port-forward reaches TCP ports"),
    "machines.ports.unexpose": ("'x', 80", "roost port-forward reaches TCP ports"),
    "machines.ports.list": ("", "roost port-forward reaches TCP ports"),
    "machines.backups.list": ("'x'", "no backups"),
    "machines.backups.trigger": ("'x'", "no backups"),
    "env.list": ("", "no variables of an account"),
    "secrets.list": ("", "secrets are of a machine: the native API has them"),
    "domains.list": ("", "no custom domains"),
    "orgs.create": ("'x'", "the tenant is the one org"),
    "teams.list": ("'x'", "no teams"),
}


@pytest.mark.parametrize("method", NOT_SERVED)
def test_what_is_not_served(boxd: Client, method: str) -> None:
    arguments, why = NOT_SERVED[method]
    boxd.not_served(method, f"boxd.{method}({arguments})", why)


def test_what_is_not_served_of_a_machine(boxd: Client) -> None:
    for arguments in (
        "cmd=['x']",
        "networks=['n']",
        "idle_ignore_outbound=True",
        "ssh=False",
        "auto_destroy_timeout=5",
    ):
        said = boxd.raises(f"boxd.machines.create('never', {arguments})", "APIStatusError")
        assert said.fields["code"] == "unimplemented", arguments
    boxd.raises("boxd.machines.get('never')", "NotFoundError")


def test_logs_are_not_served(boxd: Client) -> None:
    if boxd.kind == "sync":
        boxd.not_served(
            "machines.logs",
            "list(boxd.machines.logs('x'))",
            "what a machine prints is its executions' output",
        )
    else:
        boxd.run("async def logs():\n    return [c async for c in boxd.machines.logs('x')]")
        boxd.not_served(
            "machines.logs", "logs()", "what a machine prints is its executions' output"
        )
