"""What it costs that names are proven: the same transfers by the egress process and by address translation alone, in
namespaces made for it (root is needed), the far side and the client the same; then a package that machines of the running
daemon fetch from their mirror, by a policy that allows its name alone and by ``open``."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from bench.report import Report, paired
from roost import Machine
from roost.egress.policy import Policy
from roost.egress.supervisor import Supervisor
from roost.settings import Settings
from tests.system.egress.world import DNS, WEB, World

_BYTES = 512 * 2**20
_BOUND = 0.7
_SLOT = 1
_PACKAGE = "chromium"  # some 80 MB


def run(report: Report, n: int) -> None:
    place = Path(tempfile.mkdtemp(prefix="roost-bench-", dir="/run"))
    try:
        with World(place).up() as world:
            world.names.addresses = {"allowed.test": [WEB]}
            world.connect_straight()
            asyncio.run(_run(report, n, world, place))
    finally:
        shutil.rmtree(place)
    for driver in ("runc", "gvisor"):
        _from_a_machine(report, max(3, n // 4), driver)


async def _run(report: Report, n: int, world: World, place: Path) -> None:
    settings = Settings.model_validate({"data_dir": place / "data", "run_dir": place / "run"})
    supervisor = Supervisor(settings, servers=[(DNS, 53)])
    await supervisor.open()
    try:
        await supervisor.attach(_SLOT, world.listeners())
        policy = Policy.read({"allow": ["allowed.test"]})
        await supervisor.apply(_SLOT, "bench", policy)
        await asyncio.to_thread(_compare, report, n, world)
        cuts = []
        for _ in range(n):
            begun = asyncio.get_running_loop().time()
            await supervisor.apply(_SLOT, "bench", policy)
            cuts.append((asyncio.get_running_loop().time() - begun) * 1e3)
        report.add("egress: a policy applied to the process", "ms", cuts, bound=100)
    finally:
        await supervisor.purge()


def _compare(report: Report, n: int, world: World) -> None:
    for scheme, port, straight in (("http", 80, 9081), ("https", 443, 9444)):

        def speed(to: int, scheme: str = scheme) -> float:
            return _curl(world, scheme, to, _BYTES, "speed_download") / 2**20

        def first(to: int, scheme: str = scheme) -> float:
            return _curl(world, scheme, to, 1, "time_starttransfer") * 1e3

        ours, raw = paired(
            max(3, n // 4), lambda port=port: speed(port), lambda port=straight: speed(port)
        )
        report.add(
            f"egress: {scheme} download, proven", "MiB/s", ours, raw, bound=_BOUND, at_least=True
        )
        ours, raw = paired(
            n, lambda port=port: first(port), lambda port=straight: first(port), block=5
        )
        report.add(f"egress: {scheme} first byte, new connection", "ms", ours, raw)


def _curl(world: World, scheme: str, port: int, size: int, what: str) -> float:
    return float(
        world.run(
            *("curl", "-s", "-o", "/dev/null", "-w", f"%{{{what}}}"),
            *("--noproxy", "*", "--cacert", str(world.place / "ca.pem")),
            *("--connect-to", f"allowed.test:{port}:{WEB}:{port}"),
            f"{scheme}://allowed.test:{port}/{size}",
        )
    )


def _from_a_machine(report: Report, n: int, driver: str) -> None:
    with Machine.create(driver=driver, autosleep="never") as machine:
        machine.exec("apt-get update -qq", timeout=120).check()
        listed = machine.exec(f"apt-get download --print-uris {_PACKAGE}").check().stdout
        url = listed.split("'")[1]
        name = urlsplit(url).hostname
        assert name is not None

        def fetch() -> float:
            said = machine.exec(
                ["curl", "-fsS", "-o", "/dev/null", "-w", "%{speed_download}", url], timeout=120
            )
            return float(said.check().stdout) / 2**20

        def proven() -> float:
            machine.set_egress("allowlist", allow=[name])
            return fetch()

        def straight() -> float:
            machine.set_egress("open")
            return fetch()

        ours, raw = paired(n, proven, straight)
        what = f"egress: {_PACKAGE} fetched by {driver}, proven"
        report.add(what, "MiB/s", ours, raw, bound=_BOUND, at_least=True)
