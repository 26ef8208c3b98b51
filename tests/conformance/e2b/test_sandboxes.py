"""The control plane of sandboxes, as both Python clients ask for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.conformance.foreign import Raised
from tests.system.conftest import Daemon

from .conftest import Sdk

COUNT = "bash -c 'i=0; while :; do i=$((i+1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.05; done'"


@contextlib.contextmanager
def sandbox(sdk: Sdk, name: str, **more: object) -> Iterator[str]:
    """One called ``name`` in the snippets."""
    sdk.run(f"{name} = ~Sandbox.create(**OPTS, **MORE)", MORE=more)
    try:
        found: str = sdk.value(f"{name}.sandbox_id")
        yield found
    finally:
        with contextlib.suppress(Raised):
            sdk.run(f"~{name}.kill()")


def count(sdk: Sdk, name: str) -> int:
    """Of the counter that runs there."""
    return int(sdk.value(f"(~{name}.files.read('/tmp/count')).strip()") or 0)


def grows(sdk: Sdk, name: str) -> int:
    """What the counter has come to, once it was seen to go on."""
    first, deadline = count(sdk, name), time.monotonic() + 60
    while (now := count(sdk, name)) <= first:
        assert time.monotonic() < deadline, "it stands still"
        time.sleep(0.1)
    return now


def start_counting(sdk: Sdk, name: str) -> None:
    sdk.run(f"counting = ~{name}.commands.run(COUNT, background=True)", COUNT=COUNT)
    deadline = time.monotonic() + 60
    while not sdk.value(f"~{name}.files.exists('/tmp/count')"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_life(sdk: Sdk, rung: str) -> None:
    with sandbox(
        sdk, "box", timeout=120, metadata={"who": "me & you"}, envs={"GREETING": "hi"}
    ) as id_:
        sdk.run("info = ~box.get_info()")
        assert sdk.value(
            "(info.sandbox_id, info.state.value, info.metadata, info.template_id)"
        ) == [
            id_,
            "running",
            {"who": "me & you"},
            "base",
        ]
        assert 100 < sdk.value("(info.end_at - info.started_at).total_seconds()") < 125
        assert sdk.value("~box.is_running()") is True
        assert sdk.value("(~box.commands.run('echo $GREETING; whoami; pwd')).stdout") == (
            "hi\nuser\n/home/user\n"
        )
        sdk.run("~box.set_timeout(600)")
        assert sdk.value("((~box.get_info()).end_at - info.end_at).total_seconds()") > 400
        sdk.run("~Sandbox.set_timeout(ID, 300)", ID=id_)
        sdk.run("other = ~Sandbox.connect(ID)", ID=id_)
        assert sdk.value("(~other.commands.run('echo again')).stdout") == "again\n"
        assert sdk.value("(~Sandbox.get_info(ID)).sandbox_id", ID=id_) == id_
        for tool in ("git --version", "curl --version", "python3 --version", "which sudo"):
            assert sdk.value("(~box.commands.run(TOOL)).exit_code", TOOL=tool) == 0
        if rung == "qemu":  # releases of gVisor before 2026 run every program with no_new_privs
            assert sdk.value("(~box.commands.run('sudo -n id -u')).stdout") == "0\n"
        assert sdk.value("~Sandbox.kill(ID)", ID=id_) is True
        assert sdk.value("~Sandbox.kill(ID)", ID=id_) is False
        assert sdk.value("~box.is_running()") is False
        with pytest.raises(Raised) as found:
            sdk.run("~box.commands.run('true')")
        assert (
            "SandboxNotRunningException" in found.value.kinds
            and "TimeoutException" in found.value.kinds
        )
    sdk.records(
        "Sandbox.create", "Sandbox.connect", "Sandbox.get_info", "Sandbox.set_timeout", "Sandbox.kill",
        "Sandbox.is_running",
    )  # fmt: skip


def test_it_is_found_in_lists(sdk: Sdk) -> None:
    mark = f"list-{sdk.awaited}"
    with (
        sandbox(sdk, "one", metadata={"mark": mark, "n": "1"}) as one,
        sandbox(sdk, "two", metadata={"mark": mark, "n": "a b&c=d/ü"}) as two,
    ):
        sdk.run(
            """
def every(**query):
    return Sandbox.list(query=SandboxQuery(**query))
async def listing(pages, of):
    found = []
    while pages.has_next:
        got = pages.next_items(*of)
        found += [each.sandbox_id for each in (await got if hasattr(got, "__await__") else got)]
    return found
"""
        )
        sdk.run("~two.pause()")

        def ids(query: str, **more: object) -> list[str]:
            code = f"await listing(Sandbox.list(query=SandboxQuery({query}), **MORE), [])"
            found: list[str] = sdk.value(code, MORE=more, MARK=mark)
            return found

        assert ids("metadata={'mark': MARK}") == [two, one]
        assert ids("metadata={'mark': MARK}", order="asc", limit=1) == [one, two]
        assert ids("metadata={'mark': MARK, 'n': 'a b&c=d/ü'}") == [two]
        assert ids("metadata={'mark': MARK}, state=[SandboxState.PAUSED]") == [two]
        assert ids("metadata={'mark': MARK}, state=[SandboxState.RUNNING]") == [one]
        assert ids("metadata={'mark': MARK}, template='base'") == [two, one]
        assert ids("metadata={'mark': MARK}, template='none'") == []
    sdk.records("Sandbox.list", "SandboxPaginator.next_items")


def test_memory_goes_on_over_pause_fork_and_snapshot(sdk: Sdk, rung: str) -> None:
    with sandbox(sdk, "box", timeout=600) as id_:
        start_counting(sdk, "box")
        before = grows(sdk, "box")
        assert sdk.value("~box.pause()") is True
        assert sdk.value("~box.pause()") is False, "it was paused already"
        assert sdk.value("(~Sandbox.get_info(ID)).state.value", ID=id_) == "paused"
        assert sdk.value("~box.is_running()") is False
        with pytest.raises(Raised) as found:
            sdk.run("~box.commands.run('true')")
        assert "SandboxNotRunningException" in found.value.kinds, (
            "nobody asked it to resume by itself"
        )
        sdk.run("box = ~Sandbox.connect(ID, timeout=600)", ID=id_)
        at = grows(sdk, "box")
        assert at > before, "it did not begin anew"

        kept = sdk.value(
            "(~box.create_snapshot(name=NAME)).snapshot_id", NAME=f"kept-{time.time_ns()}"
        )
        sdk.run("again = ~Sandbox.create(KEPT, timeout=600)", KEPT=kept)
        try:
            assert grows(sdk, "again") >= at, "it goes on from there"
        finally:
            sdk.run("~again.kill()")
        sdk.run(
            """
pages = Sandbox.list_snapshots(sandbox_id=ID)
got = pages.next_items()
shots = (await got) if hasattr(got, "__await__") else got
""",
            ID=id_,
        )
        assert sdk.value("[each.snapshot_id for each in shots]") == [kept]
        assert sdk.value("~Sandbox.delete_snapshot(KEPT)", KEPT=kept) is True
        assert sdk.value("~Sandbox.delete_snapshot(KEPT)", KEPT=kept) is False

        sdk.run("forks = ~box.fork(count=2, timeout=300)")
        try:
            assert sdk.value("len({each.sandbox_id for each in forks} | {box.sandbox_id})") == 3
            sdk.run("left, right = forks")
            sdk.run("~left.files.write('/tmp/mine', 'left')")
            assert sdk.value("~right.files.exists('/tmp/mine')") is False
            for each in ("left", "right"):
                assert grows(sdk, each) > at
        finally:
            sdk.run("for each in forks: ~each.kill()")
        assert sdk.value("~box.is_running()") is True, "it ran on"
    sdk.records(
        "Sandbox.pause",
        "Sandbox.create_snapshot",
        "Sandbox.list_snapshots",
        "Sandbox.delete_snapshot",
        "Sandbox.fork",
    )


def test_a_pause_without_memory_starts_from_the_disk(sdk: Sdk) -> None:
    with sandbox(sdk, "box", timeout=600) as id_:
        start_counting(sdk, "box")
        sdk.run("~box.files.write('/home/user/kept', 'x')")
        sdk.run("~box.pause(mode='filesystem')")
        sdk.run("box = ~Sandbox.connect(ID)", ID=id_)
        assert sdk.value("~box.files.read('/home/user/kept')") == "x"
        first = sdk.value("(~box.commands.run('pgrep -f count.new || true')).stdout")
        assert "\n" not in first.strip(), "only the look itself"
    sdk.records("Sandbox.pause(mode='filesystem')")


def test_its_end_pauses_and_traffic_resumes(sdk: Sdk) -> None:
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    with sandbox(sdk, "box", timeout=300, lifecycle=lifecycle) as id_:
        assert sdk.value("(~box.get_info()).lifecycle") == {
            "on_timeout": "pause",
            "auto_resume": True,
        }
        start_counting(sdk, "box")
        sdk.run("~box.set_timeout(1)")
        deadline = time.monotonic() + 60
        while sdk.value("(~Sandbox.get_info(ID)).state.value", ID=id_) != "paused":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert count(sdk, "box") > 0, "asking woke it"
        assert sdk.value("(~Sandbox.get_info(ID)).state.value", ID=id_) == "running"
    with sandbox(sdk, "brief", timeout=2) as id_:
        deadline = time.monotonic() + 30
        while sdk.value("~brief.is_running()"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with pytest.raises(Raised) as found:
            sdk.run("~Sandbox.get_info(ID)", ID=id_)
        assert "SandboxNotFoundException" in found.value.kinds
    sdk.records("Sandbox.create(lifecycle=)")


def test_ports_are_reached_by_host(sdk: Sdk, daemon: Daemon) -> None:
    def visit(host: str, **headers: str) -> httpx.Response:
        return httpx.get(daemon.url, headers={"host": host, **headers}, timeout=30, trust_env=False)

    def text(host: str, **headers: str) -> str:
        """Of its server, once that is up."""
        deadline = time.monotonic() + 60
        while (answer := visit(host, **headers)).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            assert "port is not open" in answer.json()["message"]
            time.sleep(0.1)
        return answer.text

    with (
        sandbox(sdk, "box", timeout=300) as id_,
        sandbox(sdk, "shut", timeout=300, network={"allow_public_traffic": False}),
    ):
        for name in ("box", "shut"):
            sdk.run(f"~{name}.files.write('/home/user/index.html', 'hello {name}')")
            sdk.run(f"~{name}.commands.run('python3 -m http.server 8123', background=True)")
        host, shut = sdk.value("(box.get_host(8123), shut.get_host(8123))")
        assert host.startswith(f"8123-{id_}.")
        assert text(host) == "hello box"
        answer = visit(host.replace("8123-", "8124-"))
        assert answer.status_code == 502 and "port is not open" in answer.json()["message"]
        assert answer.json()["sandboxId"] == id_ and answer.json()["port"] == 8124

        assert sdk.value("box.traffic_access_token") is None
        token = sdk.value("shut.traffic_access_token")
        assert visit(shut).status_code == 403
        assert visit(shut, **{"e2b-traffic-access-token": "x" + token}).status_code == 403
        assert text(shut, **{"e2b-traffic-access-token": token}) == "hello shut"
        sdk.run("~box.kill()")
        answer = visit(host)
        assert answer.status_code == 502 and answer.json()["message"] == "The sandbox was not found"
    sdk.records(
        "Sandbox.get_host",
        "Sandbox.create(network=allow_public_traffic)",
        "Sandbox.traffic_access_token",
    )


def test_the_network_can_be_shut_and_opened(sdk: Sdk) -> None:
    with sandbox(sdk, "box", allow_internet_access=False):
        assert sdk.value("(~box.get_info()).allow_internet_access") is False
        sdk.run(
            "~box.update_network({'allow_out': ['api.example.com'], 'deny_out': ['0.0.0.0/0']})"
        )
        assert sdk.value("(~box.get_info()).network") == {
            "allow_out": ["api.example.com"],
            "deny_out": ["0.0.0.0/0"],
            "allow_public_traffic": True,
        }
        sdk.run("~box.update_network({})")
        assert sdk.value("(~box.get_info()).allow_internet_access") is True
        with pytest.raises(Raised, match="Roost does not serve"):
            sdk.run("~box.update_network({'deny_out': ['8.8.8.8']})")
        with pytest.raises(Raised, match="Roost does not serve"):
            sdk.run("~box.update_network({'egress_proxy': {'address': 'proxy.example:1080'}})")
    sdk.records(
        "Sandbox.update_network",
        note="single addresses cannot be denied: deny all, and allow",
        outcome="differs",
    )


def test_metrics(sdk: Sdk) -> None:
    with sandbox(sdk, "box"):
        found = sdk.value("[(m.cpu_count, m.mem_total, m.disk_total) for m in ~box.get_metrics()]")
        assert found and all(cpu >= 1 and memory > 0 and disk > 0 for cpu, memory, disk in found)
    sdk.records("Sandbox.get_metrics")


def test_failures_are_the_clients_own(sdk: Sdk, daemon: Daemon) -> None:
    def raised(code: str, **given: object) -> Raised:
        with pytest.raises(Raised) as found:
            sdk.run(code, **given)
        return found.value

    wrong = raised("~Sandbox.create(api_key='e2b_' + '0' * 64)")
    assert "AuthenticationException" in wrong.kinds and "401" in wrong.text
    none = raised("~Sandbox.connect('a' * 26)")
    assert "SandboxNotFoundException" in none.kinds
    assert "SandboxNotFoundException" in raised("~Sandbox.get_info('not an id')").kinds
    missing = raised("~Sandbox.create('no-such-template')")
    assert "SandboxException" in missing.kinds and missing.text.startswith("404")
    many = raised("~Sandbox.create(metadata={str(n): '' for n in range(100)})")
    assert many.text.startswith("400")
    served = raised("~Sandbox.create(mcp={'browserbase': {}})")
    assert "Roost does not serve" in served.text
    with daemon.http() as http:
        made = http.post(
            "/v1/tenants", json={"name": f"few-{int(sdk.awaited)}", "quotas": {"machines": 0}}
        )
        tenant = made.raise_for_status().json()["tenant_id"]
        key = (
            http.post("/v1/keys", json={"name": "k", "tenant": tenant})
            .raise_for_status()
            .json()["key"]
        )
        full = raised("~Sandbox.create(api_key=KEY)", KEY="e2b_" + key.rpartition("_")[2])
        assert "RateLimitException" in full.kinds and "429" in full.text
        http.delete(f"/v1/tenants/{tenant}")
    sdk.records("errors: authentication, not found, quota, invalid argument")
    sdk.records(
        "Sandbox.create(mcp=)",
        "Sandbox.create(iam=)",
        outcome="not served",
        note="no MCP gateway, no workload identity",
    )
