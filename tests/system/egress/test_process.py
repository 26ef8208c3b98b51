"""The process itself: what it is, what happens when it or the daemon ends, and the ways out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.egress import control
from roost.egress.interface import EGRESS_UID, Intercept
from roost.egress.policy import Policy, Reach
from roost.egress.supervisor import Supervisor
from roost.host import processes
from roost.settings import Settings

from .conftest import SLOT, Egress
from .world import DNS, OTHER, PRIVATE, UNUSED, WEB, World, was_reset

pytestmark = pytest.mark.system


def pid_of(settings: Settings) -> int:
    return int(json.loads((settings.run_dir / "egress.json").read_text())["pid"])


async def test_it_has_no_power(settings: Settings, egress: Egress) -> None:
    pid = pid_of(settings)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    uid = str(EGRESS_UID)
    assert status["Uid"].split() == status["Gid"].split() == [uid] * 4
    assert status["Groups"].strip() == ""
    assert status["NoNewPrivs"] == "1"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert os.getsid(pid) == pid
    assert (settings.run_dir / "egress.sock").stat().st_mode & 0o777 == 0o600
    limits = Path(f"/proc/{pid}/limits").read_text()
    files = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(files.split()[3]) >= 20_000
    assert "roost-egress-" in Path(f"/proc/{pid}/cgroup").read_text()


async def test_it_outlives_the_daemon_which_finds_it_again(
    world: World, egress: Egress, settings: Settings
) -> None:
    await egress.allow("allowed.test")
    pid = pid_of(settings)
    tls = await asyncio.to_thread(world.shake, "allowed.test")
    with tls:
        await egress.supervisor.close()
        tls.sendall(b"still")
        assert await asyncio.to_thread(tls.recv, 10) == b"still"
        again = Supervisor(settings, servers=[(DNS, 53)])
        await again.open()
        try:
            assert pid_of(settings) == pid
            assert await again.slots() == {SLOT}
            await again.apply(SLOT, "m-1", Policy.read({"allow": ["allowed.test"]}))
            tls.sendall(b"there")
            assert await asyncio.to_thread(tls.recv, 10) == b"there"
        finally:
            await again.close()


async def test_another_version_is_replaced(
    egress: Egress, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = pid_of(settings)
    await egress.supervisor.close()
    monkeypatch.setattr(control, "version", lambda: "another")
    again = Supervisor(settings, servers=[(DNS, 53)])
    await again.open()
    try:
        assert pid_of(settings) != pid
        assert processes.start_ticks(pid) is None
        assert await again.slots() == set()
    finally:
        await again.purge()
    assert not (settings.run_dir / "egress.sock").exists()


async def test_killed_it_fails_closed_and_is_started_again(
    world: World, egress: Egress, settings: Settings
) -> None:
    await egress.allow("allowed.test")
    attached = asyncio.Event()

    async def again() -> None:
        await egress.attach()
        await egress.allow("allowed.test")
        attached.set()

    egress.supervisor.on_restart(again)
    await egress.supervisor.reach(Reach())
    for _ in range(2):
        attached.clear()
        tls = await asyncio.to_thread(world.shake, "allowed.test")
        pid = pid_of(settings)
        os.kill(pid, signal.SIGKILL)
        with tls, pytest.raises(OSError):
            while await asyncio.to_thread(tls.recv, 10) != b"":
                pass
            raise ConnectionResetError
        with pytest.raises(OSError):
            with await asyncio.to_thread(world.connect, WEB, 443) as sock:
                assert sock.recv(1) == b""
                raise ConnectionResetError
        async with asyncio.timeout(15):
            await attached.wait()
        assert pid_of(settings) != pid
        tls = await asyncio.to_thread(world.shake, "allowed.test")
        tls.close()
    assert egress.supervisor.restarts == 2


async def test_one_that_hangs_is_replaced(
    world: World, egress: Egress, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.egress.supervisor.PING_S", 0.2)
    monkeypatch.setattr("roost.egress.link.CALL_S", 5.0)
    # The watch that runs has its first wait behind it: a new one sees these.
    await egress.supervisor.close()
    again = Supervisor(settings, servers=[(DNS, 53)])
    await again.open()
    pid = pid_of(settings)
    try:
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while pid_of(settings) == pid:
                await asyncio.sleep(0.05)
        assert await again.slots() == set()
    finally:
        await again.purge()


async def test_what_the_operator_closes_is_cut(world: World, egress: Egress) -> None:
    from ipaddress import IPv4Network

    world.names.addresses["inside.test"] = [PRIVATE]
    await egress.allow("allowed.test", "inside.test")
    assert b"private" in await asyncio.to_thread(world.get, "inside.test")
    await egress.supervisor.reach(Reach(private=(IPv4Network("172.30.253.0/30"),)))
    assert b"200 OK" in await asyncio.to_thread(world.get, "inside.test")
    tls = await asyncio.to_thread(world.shake, "allowed.test")
    with tls:
        await egress.supervisor.reach(Reach(here=(IPv4Network(f"{WEB}/32"),)))
        assert await asyncio.to_thread(was_reset, tls)


async def test_errors_are_said_and_nothing_breaks(egress: Egress) -> None:
    from roost.errors import InternalError, UnavailableError

    with pytest.raises(UnavailableError, match="does not know the slot"):
        await egress.supervisor.decisions(99)
    link = egress.supervisor._link
    assert link is not None
    for call in ("nonsense", "attach", "apply", "reach", "upstream"):
        with pytest.raises(InternalError):
            await link.call(call)
    assert await egress.supervisor.slots() == {SLOT}


# --- ways out ----------------------------------------------------------------------------------


class Proxy:
    """An HTTP proxy on the host's loopback; ``lines`` are the heads it got."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.heads: list[bytes] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.server.accept()
                threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, KeyError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            self.heads.append(head)
            if head.startswith(b"CONNECT "):
                name, _, port = head.split()[1].decode().partition(":")
                sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                name, port = head.split(b"/")[2].decode().partition(":")[0], "80"
            to = socket.create_connection((self.world.names.addresses[name][0], int(port)))
            with to:
                if not head.startswith(b"CONNECT "):
                    to.sendall(head)
                threading.Thread(target=_pump, args=(sock, to), daemon=True).start()
                _pump(to, sock)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def upstream(world: World) -> Iterator[Proxy]:
    proxy = Proxy(world)
    yield proxy
    proxy.server.close()


async def test_behind_an_upstream_proxy(world: World, upstream: Proxy, settings: Settings) -> None:
    settings = settings.model_copy(
        update={
            "egress_proxy": type(settings.egress_proxy)(
                f"http://u:s3cr%40t@127.0.0.1:{upstream.port}"
            )
        }
    )
    supervisor = Supervisor(settings, servers=[(DNS, 53)])
    await supervisor.open()
    try:
        egress = Egress(world, supervisor)
        await egress.attach()
        await egress.allow("allowed.test", "hidden.test")
        tls = await asyncio.to_thread(world.shake, "allowed.test")
        tls.close()
        said = await asyncio.to_thread(world.get, "allowed.test")
        assert b" 200 OK" in said
        assert b"403" in await asyncio.to_thread(world.get, "other.test")
        # A name that only the proxy knows.
        world.names.turns["hidden.test"] = [[]]
        world.names.addresses["hidden.test"] = [OTHER]
        reply = await asyncio.to_thread(world.look_up, "hidden.test")
        assert len(reply.answer) == 1
        assert OTHER.encode() in await asyncio.to_thread(world.get, "hidden.test", UNUSED)
        authorization = b"Proxy-Authorization: Basic " + base64.b64encode(b"u:s3cr@t")
        assert all(authorization in head for head in upstream.heads)
        assert [head.split(b"\r\n")[0] for head in upstream.heads] == [
            b"CONNECT allowed.test:443 HTTP/1.1",
            b"GET http://allowed.test/ HTTP/1.1",
            b"GET http://hidden.test/ HTTP/1.1",
        ]
        command = Path(f"/proc/{pid_of(settings)}/cmdline").read_bytes()
        environment = Path(f"/proc/{pid_of(settings)}/environ").read_bytes()
        assert b"s3cr" not in command + environment
        upstream.server.shutdown(socket.SHUT_RDWR)
        upstream.server.close()
        said = await asyncio.to_thread(world.get, "allowed.test")
        assert b" 502 " in said
        assert b"s3cr" not in said
    finally:
        await supervisor.purge()
        assert "s3cr" not in (settings.data_dir / "logs" / "egress.log").read_text()


class Socks:
    """RFC 1928 and 1929, enough to be dialled."""

    def __init__(self, path: str) -> None:
        self.seen: list[tuple[str, str, str, int]] = []
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        os.chmod(path, 0o666)
        self.server.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.server.accept()
                threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            file = sock.makefile("rb", buffering=0)
            assert file.read(3) == b"\x05\x01\x02"
            sock.sendall(b"\x05\x02")
            file.read(1)
            user = file.read(file.read(1)[0]).decode()
            password = file.read(file.read(1)[0]).decode()
            sock.sendall(b"\x01" + bytes([password != "pass"]))
            if password != "pass":
                return
            assert file.read(4) == b"\x05\x01\x00\x01"
            address, port = socket.inet_ntoa(file.read(4)), int.from_bytes(file.read(2))
            self.seen.append((user, password, address, port))
            sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
            with socket.create_connection((address, port)) as to:
                threading.Thread(target=_pump, args=(sock, to), daemon=True).start()
                _pump(to, sock)


@pytest.mark.parametrize("mode", ["allowlist", "open"])
async def test_intercepted_names_go_by_socks(
    world: World, egress: Egress, settings: Settings, mode: str
) -> None:
    path = str(settings.run_dir / "socks.sock")
    socks = Socks(path)
    settings.run_dir.chmod(0o711)
    settings.run_dir.parent.chmod(0o711)
    ways = [Intercept(("allowed.test",), f"unix:{path}", user="m-1", password="pass")]
    policy = {"mode": mode} | (
        {"allow": ["allowed.test", "second.test"]} if mode == "allowlist" else {}
    )
    await egress.apply(policy, intercept=ways)

    def talk() -> None:
        with world.shake("allowed.test", address=OTHER) as tls:
            tls.sendall(b"x")
            assert tls.recv(1) == b"x"
        with world.connect(OTHER, 80) as sock:
            for host, at in (("allowed.test", WEB), ("second.test", OTHER), ("allowed.test", WEB)):
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert sock.recv(4096).endswith(f"{at} {host} 0".encode())

    await asyncio.to_thread(talk)
    assert socks.seen == [("m-1@allowed.test", "pass", WEB, port) for port in (443, 80, 80)]
    # Rotated: what lives with the old way is cut; a refusal there fails closed.
    tls = await asyncio.to_thread(world.shake, "allowed.test")
    with tls:
        wrong = [Intercept(("allowed.test",), f"unix:{path}", user="m-1", password="wrong")]
        await egress.apply(policy, intercept=wrong)
        assert await asyncio.to_thread(was_reset, tls)
    assert b" 502 " in await asyncio.to_thread(world.get, "allowed.test")
    socks.server.shutdown(socket.SHUT_RDWR)
    socks.server.close()
    assert b" 502 " in await asyncio.to_thread(world.get, "allowed.test")
    begun = time.monotonic()
    await egress.apply(policy)
    assert b" 200 " in await asyncio.to_thread(world.get, "allowed.test")
    assert time.monotonic() - begun < 30


async def test_a_purge_without_the_daemon_ends_it(egress: Egress, settings: Settings) -> None:
    pid = pid_of(settings)
    await egress.supervisor.close()
    await Supervisor(settings).purge()
    assert processes.start_ticks(pid) is None
    assert not (settings.run_dir / "egress.sock").exists()
    assert not (settings.run_dir / "egress.json").exists()
