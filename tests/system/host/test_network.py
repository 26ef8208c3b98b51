"""Default-deny, from inside real machines: what they reach, what reaches them, and spoofing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from roost.drivers.container import ContainerDriver
from roost.egress.policy import Policy
from roost.host import netns
from roost.network import SlotNetwork, plumbing
from tests.system.internet import INTERNET, Internet

from .conftest import Machine, World

pytestmark = pytest.mark.system


def _tcp(address: str, port: int, wait_s: int = 3) -> str:
    """Prints what the peer says; fails where there is no connection."""
    return f"timeout {wait_s} bash -c 'exec 3<>/dev/tcp/{address}/{port}; timeout {wait_s} cat <&3'"


def _udp(address: str, port: int) -> str:
    return (
        f"exec 3<>/dev/udp/{address}/{port}; echo q >&3; "
        "timeout 2 dd bs=512 count=1 <&3 2>/dev/null"
    )


@pytest.fixture
def service() -> Iterator[int]:
    """A service of the host's, on every address it has."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(0.2)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                connection.sendall(b"host service\n")
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        stop.set()
        thread.join(2)


async def _refused(machine: Machine, shell: str) -> None:
    code, text = await machine.run(shell)
    assert code != 0 or not text.strip(), (shell, text)
    assert "greeting" not in text
    assert "host service" not in text


async def test_the_internet_and_nothing_private(
    world: World, driver: ContainerDriver, service: int
) -> None:
    machine = await world.start(driver)
    code, text = await machine.run(_tcp(INTERNET, 80))
    assert (code, text) == (0, "greeting to 172.30.255.1\n"), "behind the host's own address"
    for shell in (_udp("10.0.0.1", 53), _tcp("10.0.0.1", 53)):
        await _refused(machine, shell)  # where nobody resolves for machines, there are no names
    for address in ("192.168.77.7", "169.254.169.254", "172.30.255.1", "172.30.255.2"):
        await _refused(machine, _tcp(address, 80))
        await _refused(machine, _tcp(address, service))
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    slot = world.network.plan.slot(machine.slot.index)
    for address in {a for a in own if "." in a} | {slot.host_side, slot.gateway_side, "10.0.0.1"}:
        await _refused(machine, _tcp(address, service))
    for address in ("10.0.0.1", slot.host_side):
        await _refused(machine, _tcp(address, 22))


async def test_no_machine_reaches_another(world: World, driver: ContainerDriver) -> None:
    one, two = await world.start(driver), await world.start(driver)
    slot = world.network.plan.slot(two.slot.index)
    for address in (slot.gateway_side, slot.host_side):
        for port in (7111, 22):
            await _refused(one, _tcp(address, port))


async def test_only_root_of_the_host_reaches_the_agent(
    world: World, driver: ContainerDriver
) -> None:
    machine = await world.start(driver)
    target = (machine.slot.host_address, 7111)
    with socket.create_connection(target, 2):
        pass
    probe = (
        "import os,socket,sys\nos.setgid(65534);os.setuid(65534)\n"
        f"socket.create_connection({target!r}, 2)\n"
    )
    done = subprocess.run(["python3", "-c", probe], capture_output=True, timeout=20)
    assert done.returncode != 0
    for port in (22, 80, 7112):
        with pytest.raises(OSError):
            socket.create_connection((machine.slot.host_address, port), 1)


async def test_nothing_outside_reaches_a_machine(
    world: World, driver: ContainerDriver, internet: Internet
) -> None:
    machine = await world.start(driver)
    fd = netns.open_fd(internet.name)

    def knock() -> None:
        with netns.entered(fd), socket.socket() as sock:
            sock.settimeout(1)
            sock.connect((machine.slot.host_address, 7111))

    try:
        with pytest.raises(OSError):
            await asyncio.to_thread(knock)
    finally:
        os.close(fd)


async def test_forged_senders_are_dropped(world: World, driver: ContainerDriver) -> None:
    """As a machine with every power over its own namespace would forge them."""
    machine = await world.start(driver)
    await driver.remove(machine.id)
    fd = netns.open_fd(machine.slot.netns.name)

    def send(source: str, mac: str | None) -> int:
        """How many forged requests came out on the host's end of the slot."""
        slot = world.network.plan.slot(machine.slot.index)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as tap:
            tap.bind((slot.host_interface, 0))
            tap.settimeout(0.3)
            with netns.entered(fd):
                name = machine.slot.netns.name
                ip = ["ip", "-n", name]
                subprocess.run([*ip, "addr", "flush", "dev", "eth0"], check=True)
                subprocess.run([*ip, "addr", "add", f"{source}/30", "dev", "eth0"], check=True)
                if mac:
                    subprocess.run([*ip, "link", "set", "eth0", "address", mac], check=True)
                subprocess.run(
                    [
                        *ip,
                        "route",
                        "replace",
                        "default",
                        "via",
                        "10.0.0.1",
                        "dev",
                        "eth0",
                        "onlink",
                    ],
                    check=True,
                )
                subprocess.run(
                    [
                        *ip,
                        "neigh",
                        "replace",
                        "10.0.0.1",
                        "lladdr",
                        "02:72:73:74:00:01",
                        "dev",
                        "eth0",
                    ],
                    check=True,
                )
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    for _ in range(3):
                        sock.sendto(b"forged", (INTERNET, 9))
            seen = 0
            try:
                while True:
                    seen += b"forged" in tap.recv(2048)
            except TimeoutError:
                return seen

    try:
        assert await asyncio.to_thread(send, "10.0.0.2", None) == 3, "the true one passes"
        assert await asyncio.to_thread(send, "10.0.0.3", None) == 0
        assert await asyncio.to_thread(send, "198.51.100.9", None) == 0
        assert await asyncio.to_thread(send, "10.0.0.2", "02:00:00:00:00:99") == 0
    finally:
        os.close(fd)


async def test_slots_are_swept_kept_and_purged(world: World) -> None:
    network, plan = world.network, world.network.plan
    kept = await network.take("kept", Policy())
    lost = await network.take("lost", Policy())
    await network.close()
    later = SlotNetwork(world.settings)
    await later.open({"kept": kept.index})
    world.network = later
    present = plumbing.present(plan)
    assert kept.index in present
    assert lost.index not in present or lost.index in {s.index for s in later._pool}
    assert await later.reattach("kept", kept.index, Policy()) == kept
    assert await later.take("kept", Policy()) == kept
    netns.delete(plan.slot(kept.index).machine_netns)
    assert await later.reattach("kept", kept.index, Policy()) == kept
    assert plumbing.stands(plan.slot(kept.index))
    await later.release("kept")
    await later.release("kept")
    assert kept.index not in plumbing.present(plan)
    await later.purge()
    assert plumbing.present(plan) == set()
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    assert plan.table not in tables


async def test_a_ready_slot_is_taken_at_once(world: World) -> None:
    async with asyncio.timeout(60):
        while len(world.network._pool) < world.settings.network_pool:
            await asyncio.sleep(0.05)
    ready = {slot.index for slot in world.network._pool}
    assert (await world.network.take("quick", Policy())).index in ready
    await world.network.release("quick")


async def test_what_leaves_is_counted_and_nothing_else(
    world: World, driver: ContainerDriver
) -> None:
    """Bytes to the internet; neither what the daemon reads from the agent nor what is refused; and the count
    outlasts another daemon's rules."""
    machine = await world.start(driver)

    async def sent() -> int:
        return (await world.network.egress([machine.id]))[machine.id]

    assert (await machine.run("dd if=/dev/zero bs=1k count=300"))[0] == 0
    before = await sent()
    assert before < 1000
    await _refused(machine, _tcp("192.168.77.7", 80, 1))
    assert await sent() == before
    code, text = await machine.run(  # nobody listens there, so that some are not even sent
        f"exec 3<>/dev/udp/{INTERNET}/9; for i in {{1..50}}; do "
        "dd if=/dev/zero bs=1000 count=1 status=none >&3 2>/dev/null && n=$((n+1)); done; echo $n"
    )
    payload = int(text) * (1000 + 28)  # with UDP's and IP's own
    assert payload > 10_000, (code, text)
    assert await sent() - before == payload
    world.network._fresh.clear()  # as for another daemon
    await world.network.reattach(machine.id, machine.slot.index, Policy())
    assert await sent() - before == payload
    assert (await machine.run(_tcp(INTERNET, 80)))[0] == 0
    assert payload < await sent() - before < payload + 1000
    assert await world.network.egress(["nobody"]) == {}
