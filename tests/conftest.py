"""What there is one of in a session, whichever of its tests ask: a daemon, the guest of its microVMs, an internet."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator

import hypothesis
import pytest
from hypothesis import HealthCheck

from roost.drivers.tree import default_agent
from roost.egress.supervisor import Supervisor
from roost.guest import Guests
from roost.settings import Settings
from tests.attack.record import pytest_runtest_makereport  # noqa: F401  (the hook)
from tests.system.conftest import DATA_DIR, Daemon, leftovers, make_daemon
from tests.system.internet import internet  # noqa: F401  (the fixture)

# Upon Hypothesis' own for CI, where that is: an example that takes long under load breaks no promise.
hypothesis.settings.register_profile(
    "roost",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("roost")


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.exit("system tests need root", returncode=1)
    daemon = make_daemon()
    daemon.start()
    try:
        daemon.env["ROOST_API_KEY"] = daemon.key
        os.environ.update({k: v for k, v in daemon.env.items() if k.startswith("ROOST_")})
        daemon.delete_machines()
        daemon.build_template()
        yield daemon
        daemon.delete_machines()
        left = leftovers(daemon)
        assert not left, f"left behind: {json.dumps(left, indent=1)}"
    finally:
        if daemon.process is not None:
            daemon.stop()
        # It outlives a daemon, for machines do; here nobody comes after it.
        settings = Settings(data_dir=daemon.data_dir, run_dir=daemon.run_dir)
        asyncio.run(Supervisor(settings).purge())


@pytest.fixture(scope="session")
def templates(daemon: Daemon) -> Callable[[str], str]:
    """The name of a shipped template, built now unless this session or one before it did."""
    done: set[str] = set()

    def build(name: str) -> str:
        if name not in done:
            daemon.build_template(name)
            done.add(name)
        return name

    return build


@pytest.fixture(scope="session")
def guests() -> Guests:
    """The daemon's own, with the guest of this agent: fetched and made once for all that boot one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs QEMU (scripts/up installs it)")
    if not default_agent().exists():
        pytest.skip("needs the agent (scripts/up builds it)")
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    guests = Guests(DATA_DIR, default_agent())
    asyncio.run(guests.ensure(lambda *_: None))
    return guests
