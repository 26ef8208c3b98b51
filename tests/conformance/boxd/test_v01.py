"""boxd 0.1: ``Compute().box`` in both kinds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from .conftest import COUNTER, KINDS, READ, SERVE, V1, Client, opened

STREAM = {
    "sync": """
def talk(words, *args, **kw):
    p = box.exec(*args, stream=True, **kw)
    for w in words:
        if w is None: p.stdin.write_eof()
        elif isinstance(w, list): p.resize(*w)
        else: p.stdin.write(w)
    out = b''.join(p.iter_stdout()).decode()
    err = b''.join(p.iter_stderr()).decode()
    return [out, err, p.wait()]
""",
    "async": """
async def talk(words, *args, **kw):
    p = await box.exec(*args, stream=True, **kw)
    for w in words:
        if w is None: p.stdin.write_eof()
        elif isinstance(w, list): p.resize(*w)
        else: p.stdin.write(w)
    out = b''.join([c async for c in p.stdout]).decode()
    err = b''.join([c async for c in p.stderr]).decode()
    return [out, err, await p.wait()]
""",
}


@pytest.fixture(scope="module", params=KINDS)
def boxd(request: pytest.FixtureRequest, client: Callable[..., Client]) -> Client:
    return client(V1, request.param)


@pytest.fixture(scope="module")
def box(boxd: Client) -> Iterator[Client]:
    """``box`` in the worker; its name is ``old-<kind>``."""
    config = (
        "BoxConfig(vcpu=1, memory='512M', disk='4G', env={'FROM': 'env'}, "
        "network=NetworkConfig(proxies=[ProxyEntry('web', 8000)]), lifecycle=LifecycleConfig(auto_suspend_timeout=0))"
    )
    wait = "await " if boxd.kind == "async" else ""
    boxd.run(f"box = {wait}boxd.box.create(name, config={config})", name=f"old-{boxd.kind}")
    boxd.run(STREAM[boxd.kind])
    yield boxd
    boxd.value("box.destroy()")
    assert boxd.value("box.status") == "destroyed"


def run(box: Client, arguments: str) -> list[object]:
    wait = "await " if box.kind == "async" else ""
    box.run(f"r = {wait}box.exec({arguments})")
    return list(box.value("[r.stdout, r.stderr, r.exit_code]"))


def test_machines(box: Client) -> None:
    name = f"old-{box.kind}"
    assert box.value("[box.name, box.image, box.status]") == [name, "base", "running"]
    assert str(box.value("box.url")).startswith(f"http://{name}.")
    assert box.value("box.boot_time_ms") > 0
    wait = "await " if box.kind == "async" else ""
    box.run(f"got = {wait}boxd.box.get(name)", name=name)
    assert box.value("got.id == box.id") is True
    assert box.value("[got.disk_bytes, got.auto_suspend_timeout_secs, got.ssh_port]") == [
        2**32,
        0,
        None,
    ]
    box.run(f"every = {wait}boxd.box.list()")
    assert name in box.value("[b.name for b in every]")
    box.value("box.wait_until_ready()")
    box.value("box.share()")
    box.run(f"orgs = {wait}boxd.box.list_orgs()")
    assert box.value("[o.id for o in orgs]") == ["default"]
    box.run(f"me = {wait}boxd.whoami()\nconfig = {wait}boxd.config()")
    assert box.value("[me.user_id, config.default_image]") == ["default", "base"]
    box.raises("boxd.box.get('nobody')", "NotFoundError")
    box.found("Compute()", note="BOXD_EXCHANGE_URL is the same port")
    box.found("box.create", "differs", "answers when the machine runs; cmd is refused")
    for each in ("get", "list", "list_orgs"):
        box.found(f"box.{each}")
    box.found("Box.wait_until_ready")
    box.found("Box.share", "differs", "every key of the tenant sees its machines anyway")
    box.found("Compute.whoami", "differs", "the tenant")
    box.found("Compute.config")


def test_exec(box: Client) -> None:
    assert run(box, "'sh', '-c', 'echo out; echo err >&2; exit 3'") == ["out\n", "err\n", 3]
    assert run(box, "'printf', '%s', 'a  b$FROM'") == ["a  b$FROM", "", 0]
    assert run(box, "'sh', '-c', 'echo $FROM $A', env={'A': 'x y'}") == ["env x y\n", "", 0]
    assert run(box, "'stty', 'size', pty=True, cols=100, rows=30")[0] == "30 100\r\n"
    box.raises("box.exec('sleep', '30', timeout=0.5)", "TimeoutError")
    talk = "talk(w, *a, **k)"
    cat = {"w": ["one\n", "two\n", None], "a": ["cat"], "k": {}}
    assert box.value(talk, **cat) == ["one\ntwo\n", "", 0]
    headless = {
        "w": [],
        "a": ["sh", "-c", "cat; echo over >&2; exit 4"],
        "k": {"close_stdin": True},
    }
    assert box.value(talk, **headless) == ["", "over\n", 4]
    typed = {
        "w": [[120, 40], "word\n"],
        "a": ["sh", "-c", "read a; echo got $a; stty size; exit 5"],
        "k": {"interactive": True},
    }
    out, _, code = box.value(talk, **typed)
    assert "got word\r\n40 120\r\n" in out
    assert code == 5
    box.found("Box.exec", "differs", "who leaves ends it at once, by SIGKILL")
    box.found("Box.exec(stream=True)")


def test_files(box: Client) -> None:
    wait = "await " if box.kind == "async" else ""
    box.value("box.write_file(bytes(range(256)) * 8192, '/root/deep/file')")
    box.run(f"got = {wait}box.read_file('/root/deep/file')")
    assert box.value("got == bytes(range(256)) * 8192") is True
    box.value("box.write_file('text', '/root/deep/file')")
    assert box.value("box.read_file('/root/deep/file')") == {"bytes": "dGV4dA=="}
    box.raises("box.read_file('/no-such')", "NotFoundError")
    box.raises("box.write_file('x', 'relative')", "InvalidArgumentError")
    box.found("Box.write_file", "differs", "16 MiB at most, in one message")
    box.found(
        "Box.read_file", "differs", "15 MiB at most; the client itself takes no more than 4 MiB"
    )


def test_proxies(box: Client) -> None:
    wait = "await " if box.kind == "async" else ""
    box.run(f"r = {wait}box.exec('sh', '-c', c)", c=SERVE.format("here", 8000))
    assert box.value("r.exit_code") == 0
    box.run(f"found = {wait}box.proxies()")
    own, web = box.value("[[p.name, p.port, p.is_default, p.domain] for p in found]")
    assert own[:3] == ["", 0, True]
    assert web[:3] == ["web", 8000, False]
    assert opened(web[3]).text == "here\n"
    box.value("box.delete_proxy('web')")
    box.run(f"made = {wait}box.create_proxy('other', 8001)")
    assert box.value("[made.name, made.port, made.vm_name]") == ["other", 8001, f"old-{box.kind}"]
    box.value("box.set_proxy_port(8002, 'other')")
    box.value("box.set_proxy_port(8000)")
    box.run(f"found = {wait}box.proxies()")
    own, other = box.value("[[p.name, p.port, p.domain] for p in found]")
    assert (own[:2], other[:2]) == (["", 8000], ["other", 8002])
    assert opened(own[2]).text == "here\n"
    assert box.value("box.url").split("//")[1] == own[2]
    box.value("box.delete_proxy('other')")
    box.found(
        "Box.create_proxy",
        "differs",
        "at <name>-<machine>.<zone>; a port has one route, and must be said",
    )
    for each in ("proxies", "delete_proxy", "set_proxy_port"):
        box.found(f"Box.{each}")


def test_memory_continues(box: Client) -> None:
    wait = "await " if box.kind == "async" else ""

    def counter(which: str = "box") -> int:
        box.run(f"r = {wait}{which}.exec('sh', '-c', c)", c=READ)
        return int(box.value("r.stdout").strip() or 0)

    box.value("box.exec('sh', '-c', c)", c=f"nohup sh -c '{COUNTER}' >/dev/null 2>&1 & sleep 0.5")
    before = counter()
    box.run(f"took = {wait}box.suspend()")
    assert box.value("took.suspend_us") > 0
    box.run(f"got = {wait}boxd.box.get(box.id)")
    assert box.value("got.status") == "suspended"
    box.run(f"took = {wait}box.resume()")
    assert box.value("took.resume_us") > 0
    deadline = time.monotonic() + 60
    while (now := counter()) <= before:
        assert time.monotonic() < deadline, "it stands still"
        time.sleep(0.1)
    assert now < before + 400
    name = f"old-fork-{box.kind}"
    box.run(f"fork = {wait}boxd.box.fork('old-{box.kind}', name)", name=name)
    assert box.value("[fork.name, fork.forked_from == box.id]") == [name, True]
    assert counter("fork") > before
    box.value("fork.destroy()")
    box.raises("boxd.box.get(name)", "NotFoundError", name=name)
    box.value("box.reboot()")
    box.value("box.stop()")
    box.run(f"got = {wait}boxd.box.get(box.id)")
    assert box.value("got.status") == "stopped"
    box.value("box.start()")
    assert run(box, "'true'")[2] == 0
    box.found("box.fork", "differs", "has its source's size and secrets")
    for each in ("suspend", "resume", "reboot", "stop", "start", "destroy"):
        box.found(f"Box.{each}")


NOT_SERVED = {
    "template.list": ("", "roost build makes templates"),
    "template.create": ("'x', 'y'", "roost build makes templates"),
    "domain.list": ("", "no custom domains"),
    "network.create": ("'x'", "no machine reaches another"),
    "network.list": ("", "no machine reaches another"),
    "token.create": ("", "roost keys"),
    "token.list": ("", "roost keys"),
    "billing.list_plans": ("", "no billing"),
}


@pytest.mark.parametrize("method", NOT_SERVED)
def test_what_is_not_served(boxd: Client, method: str) -> None:
    arguments, why = NOT_SERVED[method]
    boxd.not_served(method, f"boxd.{method}({arguments})", why)


def test_disks(boxd: Client) -> None:
    wait = "await " if boxd.kind == "async" else ""
    name = f"old-disk-{boxd.kind}"
    boxd.run(f"disk = {wait}boxd.disk.create(name, '1G')", name=name)
    assert boxd.value("[disk.name, disk.size_bytes, disk.status]") == [name, 2**30, "ready"]
    config = "BoxConfig(memory='512M', disk='4G', volumes=[VolumeMount(disk.id, '/data')])"
    boxd.run(f"made = {wait}boxd.box.create(name, config={config})", name=name)
    boxd.run(f"r = {wait}made.exec('sh', '-c', 'echo kept > /data/file; cat /data/file')")
    assert boxd.value("r.stdout") == "kept\n"
    boxd.raises("disk.destroy()", "BoxdError")
    boxd.not_served("Disk.attach", "disk.attach('x', '/data')", "named when a machine is made")
    boxd.value("made.destroy()")
    boxd.run(f"found = {wait}boxd.disk.list()")
    assert name in boxd.value("[d.name for d in found]")
    boxd.value("disk.destroy()")
    boxd.found("disk.create", "differs", "of whole GiB")
    boxd.found("disk.list")
    boxd.found("Disk.destroy")


def test_unsharing_is_not_served(box: Client) -> None:
    box.not_served("Box.unshare", "box.unshare()", "every key of the tenant sees its machines")
