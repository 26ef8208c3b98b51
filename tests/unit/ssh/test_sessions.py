"""What a client may do and may not, by asyncssh's client: it says what OpenSSH's never would."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from grpc.aio._call import Call

from roost.services.models import CreateMachine, Role
from roost.ssh import connection as connections
from roost.ssh import server as servers
from tests.unit.api.kit import OTHER, TENANT, until
from tests.unit.ssh.kit import Ssh


async def denied(ssh: Ssh, user: str, **kw: Any) -> str:
    with pytest.raises(asyncssh.PermissionDenied) as caught:
        async with ssh.connect(user, **kw):
            pass
    return str(caught.value)


async def nothing_runs(ssh: Ssh) -> None:
    async with asyncio.timeout(20):
        while (await ssh.served.executions.list(TENANT, ssh.machine, "running")).items:
            await asyncio.sleep(0.05)


# --- lists of tools ----------------------------------------------------------------------------------


async def test_what_is_not_listed_waits_or_is_refused(ssh: Ssh, tmp_path: Path) -> None:
    """Commands wait, and say so; terminals are refused; files are no programs."""
    s = ssh.served
    url = f"/v1/machines/{ssh.machine}/tools"
    assert (await s.http.put(url, json={"mode": "ask"})).status_code == 200
    async with ssh.connect(ssh.machine) as connection:
        process = await connection.create_process("cat")
        said = await process.stderr.readline()
        assert said.startswith("roost: waits for approval (roost approve ")
        (found,) = (await s.http.get("/v1/approvals")).json()["items"]
        assert found["asked"]["command"] == ["/bin/sh", "-c", "cat"] and found["asked_by"]
        process.stdin.write("typed before")
        process.stdin.write_eof()
        approved = await s.http.post(f"/v1/approvals/{found['approval_id']}/approve")
        assert approved.status_code == 200
        assert (await process.wait()).stdout == "typed before"
        shell = await connection.run(term_type="xterm", check=False)
        assert shell.exit_status != 0
        assert "TOOL_DENIED" in f"{shell.stdout}{shell.stderr}"
        async with connection.start_sftp_client() as sftp:
            await sftp.symlink("there", str(tmp_path / "link"))
            assert (tmp_path / "link").is_symlink()
    assert (await s.http.get("/v1/approvals")).json()["items"] == []


@pytest.mark.parametrize("how", [{}, {"term_type": "xterm"}])
async def test_a_machine_is_not_woken_for_what_is_refused(ssh: Ssh, how: dict[str, str]) -> None:
    s = ssh.served
    url = f"/v1/machines/{ssh.machine}/tools"
    assert (await s.http.put(url, json={"mode": "deny"})).status_code == 200
    await s.machines.sleep(TENANT, ssh.machine, "stopped")
    async with ssh.connect(ssh.machine) as connection:
        said = await connection.run("id", check=False, **how)
        assert "TOOL_DENIED" in f"{said.stdout}{said.stderr}"
    assert not s.machines.runs(ssh.machine)
    allow = [{"program": "sh"}, {"program": "/bin/sh"}]
    assert (await s.http.put(url, json={"mode": "deny", "allow": allow})).status_code == 200
    async with ssh.connect(ssh.machine) as connection:
        assert "in" in str((await connection.run("echo in", **how)).stdout)
    assert s.machines.runs(ssh.machine)


# --- who comes in ---------------------------------------------------------------------------------


async def test_by_id_key_and_name(ssh: Ssh) -> None:
    ssh.served.machines.add(TENANT, CreateMachine(key="user-42", name="web"))
    for user in (ssh.machine, "user-42", "web"):
        async with ssh.connect(user) as connection:
            assert (await connection.run("echo in")).stdout == "in\n"


async def test_an_api_key_is_a_password(ssh: Ssh) -> None:
    keyless = {"client_keys": None}
    async with ssh.connect(password=ssh.served.key, **keyless) as connection:
        assert (await connection.run("echo in")).stdout == "in\n"
    reader = await ssh.served.add_key(TENANT, Role.READ_ONLY)
    token = await ssh.served.add_token(ssh.machine, Role.MACHINE)
    preview = await ssh.served.add_token(ssh.machine, Role.PREVIEW, port=80)
    said = {
        await denied(ssh, ssh.machine, password=each, **keyless)
        for each in (reader, token, preview, ssh.served.other_key, "roost_" + "0" * 64, "x")
    }
    said.add(await denied(ssh, "no-such-machine", password=ssh.served.key, **keyless))
    assert len({each.replace("no-such-machine", ssh.machine) for each in said}) == 1


async def test_failures_take_the_same_time(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FAILURE_S", 1.5)  # more than a busy host adds

    async def took(user: str, password: str) -> float:
        begun = time.monotonic()
        await denied(ssh, user, password=password, client_keys=None)
        return time.monotonic() - begun

    missing = await took("no-such-machine", ssh.served.key)
    wrong = await took(ssh.machine, "roost_" + "0" * 64)
    assert min(missing, wrong) >= connections.FAILURE_S
    assert abs(missing - wrong) < connections.FAILURE_S


async def test_another_tenants_machine_is_a_missing_one(ssh: Ssh) -> None:
    theirs = ssh.served.machine(OTHER)
    await denied(ssh, theirs)


async def test_a_key_of_two_tenants_needs_an_id(ssh: Ssh) -> None:
    """A stranger who registers my public key must not draw me into a machine that is named as mine."""
    await ssh.register(OTHER)
    lure = ssh.served.machines.add(OTHER, CreateMachine(key="user-42"))
    await denied(ssh, "user-42")
    async with ssh.connect(lure.id) as connection:
        assert connection is not None
    async with ssh.connect(ssh.machine) as connection:
        assert (await connection.run("echo mine")).stdout == "mine\n"


@pytest.mark.parametrize("called", ["key", "name"])
@pytest.mark.parametrize("mine_too", [True, False])
async def test_an_id_is_never_a_name(ssh: Ssh, called: str, mine_too: bool) -> None:
    """Nor into one that has my machine's id for a name: theirs may be the older key, or the only one."""
    mine = asyncssh.generate_private_key("ssh-ed25519")
    await ssh.register(OTHER, mine)
    if mine_too:
        await ssh.register(TENANT, mine)
    ssh.served.machines.add(OTHER, CreateMachine(**{called: ssh.machine}))
    if not mine_too:
        await denied(ssh, ssh.machine, client_keys=[mine])
        return
    async with ssh.connect(client_keys=[mine]):
        (visitor,) = ssh.server._visitors
        assert visitor.visit is not None
        assert (visitor.visit.tenant, visitor.visit.machine_id) == (TENANT, ssh.machine)


@pytest.mark.parametrize(
    "user",
    [
        "",
        "+",
        "a+",
        "+root",
        "a+b+c",
        "../../etc",
        "x" * 300,
        "a b",
        "a;id",
        "$(id)",
        "ä",
        "a/b",
        "a+-x",
    ],
)
async def test_odd_user_names(ssh: Ssh, user: str) -> None:
    with pytest.raises((asyncssh.Error, OSError)):
        async with ssh.connect(user or " "):
            pass
    async with ssh.connect() as connection:
        assert (await connection.run("echo alive")).stdout == "alive\n"


async def test_tries_are_limited(ssh: Ssh) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(connections.TRIES + 4)]
    with pytest.raises((asyncssh.DisconnectError, asyncssh.ConnectionLost)):
        async with ssh.connect(client_keys=keys):
            pass
    await until(lambda: ssh.server.connections == 0)


async def test_unknown_ones_are_few(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "UNKNOWN", 3)
    idle = [await asyncio.open_connection("127.0.0.1", ssh.port) for _ in range(3)]
    await until(lambda: ssh.server.connections == 3)
    async with ssh.connect() as connection:
        assert (await connection.run("echo in")).stdout == "in\n"
        await asyncio.wait_for(idle[0][0].read(), 15)
        assert ssh.server.connections == 3
    for _, each in idle:
        each.close()
    await until(lambda: ssh.server.connections == 0)
    assert not ssh.server._unknown


async def test_who_says_nothing_keeps_nobody_out(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much goes from whoever has most, the oldest first."""
    monkeypatch.setattr(servers, "UNKNOWN", 6)
    monkeypatch.setattr(servers, "UNKNOWN_OF_PARTY", 4)
    monkeypatch.setattr(servers, "party", lambda address: address)

    async def idle(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opened = await asyncio.open_connection("127.0.0.1", ssh.port, local_addr=(address, 0))
        await opened[0].readline()
        return opened

    many = [await idle("127.0.0.2") for _ in range(4)]
    few = [await idle("127.0.0.3") for _ in range(2)]
    many.append(await idle("127.0.0.2"))
    assert await asyncio.wait_for(many[0][0].read(), 15) is not None
    async with ssh.connect() as connection:
        assert (await connection.run("echo in")).stdout == "in\n"
        await asyncio.wait_for(many[1][0].read(), 15)
        assert ssh.server._unknown == {"127.0.0.2": 3, "127.0.0.3": 2}
    for _, each in many + few:
        each.close()
    await until(lambda: ssh.server.connections == 0)
    assert not ssh.server._unknown


async def test_who_is_unknown_is_not_listened_to_for_long(ssh: Ssh) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ssh.port)
    writer.write(b"SSH-2.0-x\r\n" + (2**24).to_bytes(4, "big"))
    with contextlib.suppress(OSError):
        for _ in range(16):  # of a packet of 16 MiB
            writer.write(bytes(2**16))
            await writer.drain()
            await asyncio.sleep(0)
        await asyncio.wait_for(reader.read(), 15)
    await until(lambda: ssh.server.connections == 0)
    writer.close()


async def test_no_time_to_prove_it(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LOGIN_S", 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", ssh.port)
    await asyncio.wait_for(reader.read(), 15)
    writer.close()
    await until(lambda: ssh.server.connections == 0)


async def test_a_key_that_is_taken_away_ends_its_sessions(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        process = await connection.create_process("sleep 60")
        (key,) = await ssh.served.ssh_keys.list(TENANT)
        await ssh.served.ssh_keys.remove(TENANT, key.id)
        await asyncio.wait_for(connection.wait_closed(), 15)
        del process
    await denied(ssh, ssh.machine)
    await nothing_runs(ssh)


async def test_a_revoked_api_key_ends_its_sessions(ssh: Ssh) -> None:
    made = await ssh.served.keys.create(TENANT, "short")
    async with ssh.connect(password=made.secret, client_keys=None) as connection:
        await ssh.served.keys.revoke(TENANT, made.id)
        await asyncio.wait_for(connection.wait_closed(), 15)


async def test_what_happened_is_in_the_audit_log(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        await connection.run("echo not-in-the-log")
    from roost.store.audit import Wanted

    async def noted() -> list[Any]:
        return (await ssh.served.audit.query(Wanted(machine_id=ssh.machine), 10, None)).items

    async with asyncio.timeout(30):
        while len(entries := await noted()) < 2:
            await asyncio.sleep(0.05)
    assert {each.action for each in entries} == {"ssh_connect", "ssh_exec"}
    assert {each.peer for each in entries} == {"127.0.0.1"}
    assert "not-in-the-log" not in repr(entries)


# --- what they open -------------------------------------------------------------------------------


async def test_environment_is_taken_sparingly(ssh: Ssh) -> None:
    env = {
        "LANG": "C.UTF-8",
        "LC_TIME": "C",
        "LD_PRELOAD": "/x",
        "PATH": "/x",
        "LC_" + "A" * 40: "x",
    }
    async with ssh.connect() as connection:
        said = (await connection.run("env", env=env)).stdout
    assert "LC_TIME=C\n" in said and "LANG=C.UTF-8\n" in said
    assert "LD_PRELOAD" not in said and "PATH=/x\n" not in said and "LC_AAAA" not in said


async def test_a_huge_environment_is_not_kept(ssh: Ssh) -> None:
    env = {f"LC_{chr(65 + n % 26)}{chr(65 + n // 26)}": "x" * 20_000 for n in range(400)}
    env |= {f"V{n}": "x" * 20_000 for n in range(400)}
    async with ssh.connect() as connection:
        assert (await connection.run("env | wc -c", env=env)).exit_status == 0


async def test_signals_reach_the_command(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        process = await connection.create_process(
            "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
        )
        assert await process.stdout.readline() == "ready\n"
        process.send_signal("USR1")
        done = await asyncio.wait_for(process.wait(), 10)
        assert (done.stdout, done.exit_status) == ("caught\n", 7)
        killed = await connection.run("kill -KILL $$")
        assert killed.exit_signal is not None and killed.exit_signal[0] == "KILL"


async def test_a_closed_channel_takes_its_command_along(ssh: Ssh, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    async with ssh.connect() as connection:
        process = await connection.create_process(
            f"trap '' HUP; while :; do date +%N > {beat}; sleep 0.1; done"
        )
        await until(beat.exists)
        process.channel.abort()
        await nothing_runs(ssh)
        before = beat.read_text()
        await asyncio.sleep(0.5)
        assert beat.read_text() == before


async def test_terminal_resizes_and_tells_its_end(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        process = await connection.create_process(
            "stty size; read x; stty size; exit 4", term_type="vt100", term_size=(100, 40)
        )
        assert (await process.stdout.readline()).strip() == "40 100"
        process.change_terminal_size(120, 50)
        await asyncio.sleep(0.3)
        process.stdin.write("go\n")
        done = await asyncio.wait_for(process.wait(), 10)
        assert "50 120" in done.stdout
        assert done.exit_status == 4
    assert not [t for t in await ssh.served.services.terminals.list(TENANT, ssh.machine) if t.alive]


async def test_channels_are_bounded(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        opened = []
        with pytest.raises(asyncssh.ChannelOpenError):
            for _ in range(connections.CHANNELS + 1):
                opened.append(await connection.create_process("sleep 30"))
        assert len(opened) == connections.CHANNELS
        for each in opened:
            each.close()
        await nothing_runs(ssh)
        assert (await connection.run("echo again")).stdout == "again\n"


async def test_forward_only_to_the_machines_loopback(ssh: Ssh) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with ssh.connect() as connection:
        for host in ("127.0.0.1", "localhost"):
            reader, writer = await connection.open_connection(host, port)
            writer.write(b"abc" * 100_000)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 10) == b"cba" * 100_000
            writer.close()
        for host in (
            "10.0.0.1",
            "169.254.169.254",
            "example.com",
            "0.0.0.0",
            "",
            "127.0.0.1.example.com",
            "::",
        ):
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_connection(host, port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", 1)
        # Nothing listens here for anybody, and no socket of this host is reached.
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("", 0, "127.0.0.1", 1)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection("/var/run/anything.sock")
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_path("/tmp/roost-should-not-be", "/tmp/x")
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_tun()
    server.close()


async def test_a_flood_waits_for_its_reader(ssh: Ssh) -> None:
    """Neither the client's window nor its silence makes the daemon hold what a command prints."""
    async with ssh.connect() as connection:
        process = await connection.create_process(
            "yes | head -c 300000000", encoding=None, window=1 << 30
        )
        process.channel.pause_reading()
        transport: Any = connection._transport
        await asyncio.sleep(0.2)
        transport.pause_reading()  # its socket, too
        await asyncio.sleep(1.5)
        held = 0
        for visitor in ssh.server._visitors:
            assert visitor._conn is not None
            ours: Any = visitor._conn._transport
            held += ours.get_write_buffer_size()
        assert held < 4 * servers.WRITE_BUFFER
        transport.resume_reading()
        process.close()


async def test_no_other_subsystem_and_no_x11(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        with contextlib.suppress(asyncssh.Error):
            done = await connection.run(subsystem="netconf")
            assert done.exit_status != 0
        assert not await _agent_is_forwarded(connection)


async def _agent_is_forwarded(connection: asyncssh.SSHClientConnection) -> bool:
    said = await connection.run("echo ${SSH_AUTH_SOCK:-none}")
    return str(said.stdout).strip() != "none"


async def test_a_sleeping_machine_wakes(ssh: Ssh) -> None:
    await ssh.served.machines.sleep(TENANT, ssh.machine)
    async with ssh.connect() as connection:
        assert (await connection.run("echo awake")).stdout == "awake\n"


async def test_an_error_is_told(ssh: Ssh) -> None:
    async with ssh.connect(f"{ssh.machine}+nobody-of-that-name") as connection:
        done = await connection.run("true")
    assert done.exit_status == 255
    assert "USER_NOT_FOUND" in str(done.stderr)


async def test_a_session_that_was_cut_holds_no_connection_to_the_agent(ssh: Ssh) -> None:
    """A capture waits until the agent's calls are gone; one that only the garbage collector would find is not."""

    def calls() -> list[Any]:
        return [each for each in gc.get_objects() if isinstance(each, Call)]

    gc.collect()
    before = {id(each) for each in calls()}
    gc.disable()
    try:
        async with ssh.connect() as connection:
            await connection.create_process("sleep 100")
            await connection.create_process(term_type="xterm")
            await asyncio.sleep(1)
            connection.abort()
        await nothing_runs(ssh)
        await until(lambda: not [c for c in calls() if id(c) not in before], 10)
    finally:
        gc.enable()


async def test_a_client_that_goes_while_its_forward_is_opened(
    ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it: what stayed open would keep the machine awake for ever."""
    opening, go_on = asyncio.Event(), asyncio.Event()
    closed: list[bool] = []
    loopback = ssh.served.doors.loopback

    async def slow(*where: Any) -> Any:
        opening.set()
        await go_on.wait()
        stream = await loopback(*where)
        close = stream.close
        monkeypatch.setattr(stream, "close", lambda: (close(), closed.append(True)))
        return stream

    monkeypatch.setattr(ssh.served.doors, "loopback", slow)
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with ssh.connect() as connection:
        asking = asyncio.ensure_future(connection.open_connection("127.0.0.1", port))
        await opening.wait()
        (visitor,) = ssh.server._visitors
        connection.abort()
        await until(lambda: ssh.server.connections == 0)
        go_on.set()
        with contextlib.suppress(asyncssh.Error, OSError):
            await asking
    await until(lambda: ssh.served.machines.users[ssh.machine] == 0)
    await until(lambda: visitor.channels == 0)
    assert closed == [True]
    server.close()


async def test_packets_of_a_byte_are_refused(ssh: Ssh) -> None:
    """Cutting an output into them would hold up everybody else."""
    async with ssh.connect() as connection:
        with pytest.raises(asyncssh.ChannelOpenError, match="least"):
            await connection.run("true", max_pktsize=connections.LEAST_PACKET - 1)
        with pytest.raises(asyncssh.ChannelOpenError, match="least"):
            await connection.open_connection("127.0.0.1", 1, max_pktsize=1)
        (visitor,) = ssh.server._visitors
        assert visitor.channels == 0
        done = await connection.run("echo in", max_pktsize=connections.LEAST_PACKET)
        assert done.stdout == "in\n"


async def test_many_small_pieces_are_held_as_few(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        process = await connection.create_process("sleep 30", encoding=None)
        (visitor,) = ssh.server._visitors
        assert visitor._conn is not None
        (channel,) = visitor._conn._channels.values()
        channel.pause_reading()
        for n in range(2000):
            process.stdin.write(bytes([n % 256, 0]))
            if n % 100 == 0:
                await asyncio.sleep(0)
        held: Any = channel
        await until(lambda: sum(len(part) for part, _ in held._recv_buf) == 4000)
        assert len(held._recv_buf) <= 2 * connections.PIECES
        assert b"".join(p for p, _ in held._recv_buf) == b"".join(
            bytes([n % 256, 0]) for n in range(2000)
        )
        process.close()


async def test_a_key_exchange_that_never_ends_gathers_no_answers(
    ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "DEFERRED", 100)
    async with ssh.connect() as connection:
        (visitor,) = ssh.server._visitors
        assert visitor._conn is not None
        visitor._conn._kex_complete = False  # as from its KEXINIT to the client's NEWKEYS
        for _ in range(200):
            connection.send_packet(80, b"\0\0\0\1x", b"\1")
        await asyncio.wait_for(connection.wait_closed(), 15)
    await until(lambda: ssh.server.connections == 0)


@pytest.mark.parametrize("costly", ["diffie-hellman-group18-sha512", "rsa2048-sha256"])
async def test_key_exchanges_are_cheap_ones(ssh: Ssh, costly: str) -> None:
    with pytest.raises(asyncssh.KeyExchangeFailed):
        async with ssh.connect(kex_algs=[costly]):
            pass


async def test_a_command_has_an_end(ssh: Ssh) -> None:
    async with ssh.connect() as connection:
        long = "x" * 100_000
        done = await connection.run(f"echo {long} | wc -c")
        assert str(done.stdout).strip() == "100001"
        with pytest.raises((asyncssh.Error, OSError)):
            await asyncio.wait_for(connection.run(": " + "x" * 2**20), 10)
    await until(lambda: ssh.server.connections == 0)
