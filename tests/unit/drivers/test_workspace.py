"""Workspaces with the real agent, as an ordinary user of this host: where the tests run as root, as ``bin``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from roost.agent.client import AgentClient, Agents
from roost.agent.v1 import agent_pb2 as pb
from roost.drivers.interface import Exit, Handle, Root, Size, StartSpec
from roost.drivers.tree import default_agent
from roost.drivers.workspace import WorkspaceDriver, limits
from roost.errors import RoostError
from roost.host import account, processes, syscalls
from roost.settings import Settings
from roost.storage import PoolStorage
from tests.attack.record import case

TOKEN = "the-token"
SIZE = Size(1, 512, 1)
# Not ``nobody``, as whom the workspaces of system tests run beside: the limit of processes counts all that a user has.
ACCOUNT = "bin"


@dataclass
class Place:
    settings: Settings
    storage: PoolStorage
    driver: WorkspaceDriver
    agents: Agents

    async def start(self, machine_id: str = "m") -> tuple[Handle, AgentClient]:
        home = self.storage.home(machine_id)
        if not home.exists():
            await self.storage.make_home(machine_id)
        spec = StartSpec(machine_id, "name", SIZE, Root(directory=home), None, TOKEN, "0" * 32)
        handle = await self.driver.start(spec)
        agent = self.agents.get(machine_id, handle.agent_target, TOKEN)
        await agent.wait_ready(20)
        return handle, agent


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    if not default_agent().exists():
        pytest.skip("the agent is not built: scripts/up")
    # Not below pytest's own directory, which nobody else may pass.
    top = Path(tempfile.mkdtemp(prefix="roost-ws-", dir="/var/tmp"))
    top.chmod(0o711)
    settings = Settings(
        data_dir=top / "data", run_dir=top / "run", pool_reserve_percent=0, workspace_user=ACCOUNT
    )
    storage = PoolStorage(settings)
    for directory in (settings.run_dir, storage.pool.homes, storage.tmp):
        directory.mkdir(parents=True, mode=0o700)
    found = Place(settings, storage, WorkspaceDriver(settings), Agents())
    yield found
    for machine_id in await found.driver.list_ids():
        await found.driver.remove(machine_id)
    await found.agents.close()
    shutil.rmtree(top)


async def run(agent: AgentClient, command: str, timeout_ms: int = 30_000) -> pb.ExecutionResult:
    request = pb.StartRequest(
        execution_id=secrets.token_hex(8), shell=command, timeout_ms=timeout_ms
    )
    return await agent.run(request)


async def said(agent: AgentClient, command: str) -> str:
    return (await run(agent, command)).stdout.decode().strip()


def living(mark: str) -> list[int]:
    return sorted(processes.marked(mark))


async def test_programs_begin_in_their_directory_and_have_nothing_of_the_daemons(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_API_KEY", "the daemon's")
    probe = await place.driver.probe()
    assert probe.available and probe.details["landlock"] == (syscalls.landlock_version() or None)
    handle, agent = await place.start()
    home = str(place.storage.home("m"))
    assert await said(agent, "pwd; echo $HOME; id -u; cat hello 2>&1 || true; echo hi > hello") == (
        f"{home}\n{home}\n{account.of_workspaces(ACCOUNT).uid}\ncat: hello: No such file or directory"
    )
    environment = set((await said(agent, "env | cut -d= -f1")).split())
    assert environment <= {
        "HOME", "LANG", "LOGNAME", "PATH", "PWD", "ROOST_WORKSPACE", "SHELL", "USER", "SHLVL", "_", "OLDPWD",
    }  # fmt: skip
    assert await said(agent, "ls /proc/self/fd | wc -l") == "4", "three, and the listing's"
    assert "NoNewPrivs:\t1" in await said(agent, "cat /proc/self/status")
    assert "CapEff:\t0000000000000000" in await said(agent, "cat /proc/self/status")
    usage = await place.driver.usage(handle)
    assert usage.pids >= 2 and usage.memory_bytes > 1 << 20


_BLOWS = """
import os, resource, sys
while True:
    for each in os.listdir(f"/proc/{sys.argv[1]}/task"):
        for blow in (lambda pid: os.kill(pid, 0), lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU)):
            try:
                blow(int(each))
            except (ProcessLookupError, PermissionError):
                continue
            sys.exit("it can be struck")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's daemon is its programs' equal")
async def test_no_thread_of_the_daemon_is_the_programs_equal(place: Place) -> None:
    """A start must make none so: a blow to one thread strikes all of the daemon."""
    argv = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "python3",
        "-c",
        _BLOWS,
    ]
    argv += [str(os.getpid())]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, env={"PATH": os.defpath}) as enemy:
        try:
            for n in range(5):
                await place.start(f"m{n}")
            assert enemy.poll() is None, enemy.communicate()
        finally:
            enemy.kill()


async def test_they_go_first_where_the_host_is_short_of_memory(place: Place) -> None:
    """The daemon's own service is among the last; its children would be, too."""
    _, agent = await place.start()
    assert await said(agent, "cat /proc/self/oom_score_adj") == "500"


async def test_each_process_has_limits(place: Place) -> None:
    _, agent = await place.start()
    assert await said(agent, "ulimit -c; ulimit -d; ulimit -f; ulimit -n") == (
        f"0\n{512 << 10}\n{(1 << 30) // 512}\n4096"
    )
    found = limits(SIZE, 100)
    assert (found["nproc"], found["data"], found["fsize"]) == (100 + SIZE.pids, 512 << 20, 1 << 30)
    most = int(await said(agent, "ulimit -p || ulimit -u"))
    assert most >= SIZE.pids
    big = await run(agent, "python3 -c 'bytearray(1 << 30)'")
    assert big.execution.exit_code and b"MemoryError" in big.stderr


async def test_files_are_named_in_the_directory_and_nowhere_else(place: Place) -> None:
    _, agent = await place.start()
    home = os.fsencode(place.storage.home("m"))
    await run(agent, "ln -s /etc/passwd out; ln -s .. up; ln -s real in; echo x > real; mkdir d")
    for path in (
        b"/etc/passwd",
        home + b"/out",
        home + b"/up/m/real",
        home + b"/../../../../../etc/passwd",
        home + b"/d/../../m/real",
        b"/proc/self/root/etc/passwd",
        home[:-1],
        b"/",
    ):
        for call in (
            agent.stat(path, True),
            agent.list_dir(path, 1, b""),
            agent.remove(path, True),
        ):
            if path == home + b"/out" and call.__name__ == "remove":
                call.close()
                continue  # the link itself may go
            with pytest.raises(RoostError) as refused:
                await call
            assert refused.value.code in ("INVALID_PATH", "NOT_A_DIRECTORY"), (path, refused.value)
        with pytest.raises(RoostError):
            await agent.write_file(
                pb.WriteFileHeader(path=path + b"/new", make_parents=True), _one()
            )
    assert (await agent.stat(home + b"/in", True)).size == 2
    assert (await agent.stat(home + b"/d/../real", True)).size == 2
    written = await agent.write_file(
        pb.WriteFileHeader(path=home + b"/in", make_parents=True), _one()
    )
    assert written.path == home + b"/in" and await said(agent, "cat real") == "new"
    assert not await said(agent, "find . -name '.roost*'")


async def _one() -> AsyncIterator[bytes]:
    yield b"new"


async def test_landlock_keeps_programs_to_it(place: Place) -> None:
    if not syscalls.landlock_version():
        pytest.skip("this kernel has no Landlock")
    _, agent = await place.start()
    assert agent.hello is not None and 0 < agent.hello.landlock <= syscalls.landlock_version()
    beside = place.settings.data_dir.parent / "beside"
    if os.path.commonpath([beside, "/var/tmp"]) == "/var/tmp":
        beside = Path("/srv")
    assert "Permission denied" in await said(agent, f"ls {beside} 2>&1")
    assert await said(agent, "ls -d /usr/bin && echo a > /dev/null && touch /tmp/$$ && rm /tmp/$$")
    if syscalls.landlock_version() >= 6:
        result = await said(agent, f"kill -0 {os.getpid()} 2>&1")
        assert "not permitted" in result


async def test_a_port_of_the_host_is_nobodys(place: Place) -> None:
    _, agent = await place.start()
    with pytest.raises(RoostError) as refused:
        stream = agent.dial(80)
        await stream.open()
        await stream.connected()
    assert refused.value.code == "UNSUPPORTED"


async def test_an_execution_that_takes_too_long_ends_with_all_it_started(place: Place) -> None:
    _, agent = await place.start()
    mark = f"ROOST_WORKSPACE={place.storage.home('m')}"
    await said(agent, "true")
    before = living(mark)
    result = await run(
        agent,
        "(setsid sleep 977 &) ; trap '' TERM; (trap '' TERM; setsid sh -c 'sleep 978; :' &); sleep 979",
        timeout_ms=300,
    )
    assert result.execution.state == pb.EXECUTION_STATE_TIMED_OUT
    for _ in range(100):
        if living(mark) == before:
            break
        await asyncio.sleep(0.05)
    assert living(mark) == before


@pytest.mark.parametrize(
    "how", ["removed", "agent killed", "agent killed, helpers stopped", "supervisors killed"]
)
async def test_nothing_is_left(place: Place, how: str) -> None:
    handle, agent = await place.start()
    mark = f"ROOST_WORKSPACE={place.storage.home('m')}"
    await run(
        agent, "setsid -f sleep 987; setsid -f env -i sleep 988; setsid -f sh -c 'sleep 989; :'"
    )
    for _ in range(100):  # one that is just being executed shows no environment
        if len(living(mark)) >= 2:
            break
        await asyncio.sleep(0.05)
    assert len(living(mark)) >= 2
    if how == "agent killed, helpers stopped":  # they would end what they watch over
        for pid in processes.tree(handle.pid, processes.everyone()) - {handle.pid}:
            if b"--workspace" in _line(pid):
                os.kill(pid, signal.SIGSTOP)
    if how.startswith("agent killed"):
        os.kill(handle.pid, signal.SIGKILL)
        assert (await place.driver.wait(handle)) == Exit("killed")
    if how == "supervisors killed":
        for pid in processes.tree(handle.pid, processes.everyone()):
            with contextlib.suppress(OSError):  # what they watched over goes with the first of them
                if Path(f"/proc/{pid}/comm").read_text() == "roost-super\n":
                    os.kill(pid, signal.SIGKILL)
    await place.driver.remove("m")
    await place.driver.remove("m")
    assert not living(mark) and not await place.driver.list_ids()
    assert not [pid for pid in processes.everyone() if _line(pid) == b"sleep\x00988\x00"]


_CHILDREN = """
import os, time
for _ in range(300):
    os.fork() or os._exit(0)
print("made", flush=True)
time.sleep(992)
"""
_HEADLESS = """
import ctypes, threading, time
print("made", flush=True)
threading.Thread(target=time.sleep, args=(993,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.parametrize("program", [_CHILDREN, _HEADLESS], ids=["zombies", "headless"])
async def test_nothing_is_left_of_what_shows_as_ended(place: Place, program: str) -> None:
    """Children nobody waited for, which are left to the daemon; a process whose first thread is gone."""
    before = processes.everyone()
    handle, agent = await place.start()
    (place.storage.home("m") / "program").write_text(program)
    await run(agent, "python3 program > out & while ! grep -s made out; do sleep 0.05; done")
    await asyncio.sleep(0.3)
    found = processes.tree(handle.pid, processes.everyone()) - before
    assert len(found) > (300 if program is _CHILDREN else 2)
    begun = time.monotonic()
    await place.driver.remove("m")
    assert time.monotonic() - begun < 5
    assert not found & processes.everyone()


async def test_agents_outlive_the_file_they_were_started_from(place: Place) -> None:
    """Another release takes it away: what an agent starts anew it starts from what it is, not by a name."""
    handle, agent = await place.start()
    before = set(processes.tree(handle.pid, processes.everyone()))
    kept = list(place.settings.data_dir.glob("workspace-agent-*"))
    for copy in kept:
        copy.unlink()
    for pid in before:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() in ("roost-zygote\n", "roost-super\n"):
                os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        with contextlib.suppress(RoostError):
            if await said(agent, "echo on") == "on":
                break
        await asyncio.sleep(0.05)
    assert await said(agent, "echo on > file; cat file") == "on"
    assert not before & (set(processes.tree(handle.pid, processes.everyone())) - {handle.pid})
    if kept:  # under root there is a copy for whoever runs it: it is made again, also where one is not whole
        kept[0].touch()
        assert WorkspaceDriver(place.settings)._prepare().read_bytes() == (
            default_agent().read_bytes()
        )


async def test_an_agent_that_nobody_wrote_down_is_found(place: Place) -> None:
    """Its daemon was killed between the two."""
    handle, _ = await place.start()
    record = place.driver._place("m") / "machine.json"
    record.write_text(json.dumps({"home": str(place.storage.home("m"))}))
    await WorkspaceDriver(place.settings).remove("m")
    assert processes.start_ticks(handle.pid) is None


def _line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def test_a_fork_bomb_stops_at_the_limit_and_ends(place: Place) -> None:
    handle, agent = await place.start()
    bomb = asyncio.ensure_future(run(agent, "f() { f | f & }; f; sleep 5", timeout_ms=3000))
    await asyncio.sleep(1.5)
    assert (await place.driver.usage(handle)).pids <= SIZE.pids + 64
    await place.driver.remove("m")
    await asyncio.gather(bomb, return_exceptions=True)
    assert not living(f"ROOST_WORKSPACE={place.storage.home('m')}")


async def test_another_daemon_takes_it_over(place: Place) -> None:
    handle, agent = await place.start()
    await run(agent, "sleep 986 &")
    another = WorkspaceDriver(place.settings)
    assert await another.adopt(Handle.from_json(handle.to_json()))
    assert not await WorkspaceDriver(place.settings).adopt(
        Handle.from_json({**handle.to_json(), "pid_start_ticks": 1})
    )
    assert (await another.usage(handle)).pids >= 3
    ended = asyncio.ensure_future(another.wait(handle))
    await another.remove("m")
    assert await ended == Exit("killed")
    assert await another.list_ids() == set()


async def test_only_what_is_its_own_is_ended_from_outside(place: Place) -> None:
    handle, agent = await place.start()
    pid = int(await said(agent, "sleep 985 & echo $!"))
    assert not await place.driver.end_tree(handle, os.getpid())
    assert not await place.driver.end_tree(handle, handle.pid)
    assert await place.driver.end_tree(handle, pid)
    assert processes.start_ticks(pid) is None


async def test_a_socket_path_that_is_too_long_is_told(place: Place) -> None:
    with pytest.raises(RoostError, match="ROOST_RUN_DIR"):
        await place.start("m" * 100)
    assert not await place.driver.list_ids()


@case(31, rung="workspace")
@pytest.mark.skipif(os.geteuid() != 0, reason="programs and daemon are one user")
async def test_the_agents_socket_is_not_theirs_to_replace(place: Place) -> None:
    handle, agent = await place.start()
    socket = Path(handle.agent_target.removeprefix("unix:"))
    before = socket.stat().st_ino
    for attempt in ("mv {0} {0}.away", "ln -sfn /tmp {0}", "rm -f {0}", "ls {1}"):
        result = await run(agent, attempt.format(socket, socket.parent))
        assert result.execution.exit_code != 0, attempt
    assert socket.stat().st_ino == before
    assert await said(agent, "echo on") == "on"


async def test_no_swap_leads_out(place: Place) -> None:
    """A directory that turns into a link out and back while it is worked in, as fast as a program can."""
    _, agent = await place.start()
    home = place.storage.home("m")
    canary = place.settings.data_dir.parent / "canary"
    canary.mkdir(mode=0o777)
    canary.chmod(0o777)
    (canary / "file").write_text("the host's")
    (canary / "file").chmod(0o666)
    swap = "mkdir real; echo mine > real/file; ln -s {} link; while :; do mv -T real d; mv -T d real; mv -T link d; mv -T d link; done"
    request = pb.StartRequest(
        execution_id=secrets.token_hex(8), shell=f"({swap.format(canary)}) 2>/dev/null"
    )
    await agent.start(request)
    inside = outside = 0
    target = os.fsencode(home) + b"/d/file"
    for _ in range(150):
        for work in (
            lambda: _text(agent, target),
            lambda: agent.write_file(pb.WriteFileHeader(path=target), _one()),
            lambda: agent.set_attributes(pb.SetAttributesRequest(path=target, mode=0o600)),
            lambda: agent.make_dir(pb.MakeDirRequest(path=target + b"-new", parents=True)),
            lambda: agent.list_dir(os.fsencode(home) + b"/d", 10, b""),
            lambda: agent.remove(target + b"-new", True),
        ):
            try:
                said = await work()
            except RoostError:
                outside += 1
            else:
                inside += 1
                assert said != b"the host's"
    assert inside and outside, "both were met"
    assert [p.name for p in canary.iterdir()] == ["file"]
    assert (canary / "file").read_text() == "the host's"
    assert (canary / "file").stat().st_mode & 0o777 == 0o666


async def _text(agent: AgentClient, path: bytes) -> bytes:
    _, data = await agent.read_file(path, 0, 0, 0)
    return b"".join([piece async for piece in data])


async def test_links_out_are_not_followed_by_any_call(place: Place) -> None:
    _, agent = await place.start()
    home = os.fsencode(place.storage.home("m"))
    canary = place.settings.data_dir.parent / "canary"
    canary.mkdir(mode=0o777)
    canary.chmod(0o777)
    (canary / "file").write_text("the host's")
    (canary / "file").chmod(0o666)
    await run(agent, f"mkdir d; ln -s {canary} out; ln -s {canary}/file file; echo x > own")
    link, file = home + b"/out", home + b"/file"
    below = os.fsencode(canary) + b"/file"
    works = {
        "read": lambda: _text(agent, file),
        "write": lambda: agent.write_file(pb.WriteFileHeader(path=file), _one()),
        "append": lambda: agent.write_file(
            pb.WriteFileHeader(path=file, mode=pb.WriteFileHeader.MODE_APPEND), _one()
        ),
        "mode": lambda: agent.set_attributes(pb.SetAttributesRequest(path=file, mode=0)),
        "tree": lambda: agent.set_attributes(
            pb.SetAttributesRequest(path=link, mode=0, recursive=True)
        ),
        "make": lambda: agent.make_dir(pb.MakeDirRequest(path=link + b"/new", parents=True)),
        "move out": lambda: agent.move(home + b"/own", link + b"/own", True),
        "move in": lambda: agent.move(link + b"/file", home + b"/taken", True),
        "remove": lambda: agent.remove(link + b"/file", True),
        "list": lambda: agent.list_dir(link, 10, b""),
        "pack": lambda: _all(agent.tar_out(link)),
        "unpack": lambda: agent.tar_in(pb.TarInHeader(path=link), _one()),
        "watch": lambda: anext(agent.watch(link, True)),
        "survey": lambda: anext(agent.survey(pb.SurveyRequest(path=link + b"/file"))),
        "elsewhere": lambda: agent.stat(below, True),
    }
    for name, work in works.items():
        with pytest.raises(RoostError) as refused:
            await work()
        assert refused.value.code in ("INVALID_PATH", "NOT_A_DIRECTORY"), (name, refused.value)
    (digest,) = await agent.digest(pb.DigestRequest(paths=[file]))
    assert not digest
    assert [p.name for p in canary.iterdir()] == ["file"]
    assert (canary / "file").read_text() == "the host's"
    watching = agent.watch(home, True)
    assert (await anext(watching)).path == home
    await run(agent, "echo y > d/seen")
    paths = []
    while home + b"/d/seen" not in paths:
        paths.append((await asyncio.wait_for(anext(watching), 10)).path)
    await watching.aclose()
    await agent.remove(link, True)
    assert (canary / "file").exists() and not os.path.lexists(link)


async def _all(data: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in data])
