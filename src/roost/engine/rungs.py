"""The drivers on offer: which one a machine gets, and what each is on this host."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence

from roost.drivers.interface import Capabilities, Driver, Isolation, Probe
from roost.engine import ladder
from roost.engine.ladder import Least, Profile
from roost.errors import InvalidRequestError, RoostError, UnavailableError

log = logging.getLogger(__name__)
TRY_AGAIN_S = 600.0
ANY = Least()


class Rungs:
    """``offered`` names drivers best first; ``drivers`` may hold more, whose machines can still be ended."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        offered: Sequence[str],
        profile: Profile = Profile.INDIE,
    ) -> None:
        self.drivers = dict(drivers)
        self.profile = profile
        self.offered = [name for name in offered if name in drivers]
        self.probes: dict[str, Probe] = {}
        self._capabilities: dict[str, Capabilities] = {}
        self._decisions: dict[str, asyncio.Task[None]] = {}
        self._try_again: dict[str, float] = {}

    async def probe(self) -> None:
        """Looks at the host again; at the start and when host() asks."""
        for name in self.drivers:
            await self._probe(name)

    async def look_again(self) -> None:
        """At drivers that could not be used: what was missing may be there, and what was refused renewed."""
        for name in self.drivers:
            if not self.available(name):
                await self._probe(name)

    async def _probe(self, name: str) -> None:
        driver = self.drivers[name]
        found = await _probed(driver)
        if not found.available and self.available(name):
            found = await _probed(driver)  # a moment's failure takes none away
        self.probes[name] = found
        if found.available:
            self._capabilities[name] = driver.capabilities()

    def driver(self, name: str) -> Driver:
        """Raises DEPENDENCY_UNAVAILABLE for a driver this daemon was not built or set up with."""
        try:
            return self.drivers[name]
        except KeyError:
            raise UnavailableError(
                f"The machine needs the driver {name}, which this daemon does not have: add it to ROOST_DRIVERS.",
                retryable=False,
            ) from None

    def capabilities(self, name: str) -> Capabilities | None:
        return self._capabilities.get(name)

    async def prepared(self, name: str) -> Capabilities:
        """Of a driver that is then ready to start machines. Raises as ``Driver.prepare``."""
        driver = self.driver(name)
        await driver.prepare()
        self._capabilities[name] = driver.capabilities()
        return self._capabilities[name]

    async def decide(self, timeout_s: float | None = None) -> None:
        """So that ``auto`` knows: a driver that comes before the one it would take now may turn out to be fast.
        One that cannot be prepared stays what it is, and is tried again later. After ``timeout_s`` that goes on
        alone."""
        for name in self.offered:
            if name == self.default:
                return
            if self.profile is Profile.MANAGED:  # a container, however fast the others are
                continue
            if self.available(name) and self.drivers[name].undecided:
                await asyncio.wait({self._decision(name)}, timeout=timeout_s)

    def _decision(self, name: str) -> asyncio.Task[None]:
        """One at a time, whoever asks."""
        last = self._decisions.get(name)
        if last is None or (last.done() and time.monotonic() > self._try_again[name]):
            last = self._decisions[name] = asyncio.create_task(self._try(name))
        return last

    async def _try(self, name: str) -> None:
        try:
            await self.prepared(name)
        except RoostError as error:
            log.warning("the driver %s could not be prepared: %s", name, error)
        self._try_again[name] = time.monotonic() + TRY_AGAIN_S

    def available(self, name: str) -> bool:
        probe = self.probes.get(name)
        return probe is not None and probe.available

    def require(self, name: str) -> None:
        """That machines of the driver may be started, as far as was looked last. Raises RUNG_UNAVAILABLE (with reason
        and remedy), DEPENDENCY_UNAVAILABLE."""
        self.driver(name)
        if not self.available(name):
            raise _unavailable(
                f"Machines of the driver {name} cannot be started on this host now. {self._why(name)} One that sleeps "
                "keeps all it has; promote takes it up the ladder (roost promote ID --isolation microvm).",
                driver=name,
            )

    @property
    def default(self) -> str | None:
        """What ``auto`` takes for who is held to nothing more."""
        return next((name for name in self._preferred() if self.available(name)), None)

    def _preferred(self) -> list[str]:
        return sorted(
            self.offered,
            key=lambda name: ladder.preference(self.profile, self._capabilities.get(name)),
        )

    def choose(
        self, isolation: str, driver: str | None, least: Least = ANY
    ) -> tuple[str, Capabilities]:
        """The driver for what was asked, of who may have ``least`` and above. Raises VALIDATION_FAILED,
        RUNG_UNAVAILABLE (with reason and remedy), RUNG_REFUSED."""
        if isolation != "auto" and isolation not in {i.value for i in Isolation}:
            raise InvalidRequestError(
                f"isolation {isolation[:40]!r} is not one of auto, "
                f"{', '.join(i.value for i in Isolation)}.",
                details={"field": "isolation"},
            )
        if driver is not None and driver not in self.offered:
            raise _unavailable(
                f"The driver {driver[:40]!r} is not offered here; these are: {', '.join(self.offered)}."
            )
        names = self._preferred() if driver is None else [driver]
        missing: list[str] = []
        for name in names:
            if not self.available(name):
                missing.append(self._why(name))
                continue
            capabilities = self._capabilities[name]
            if isolation == "auto" and driver is None and capabilities.level < least.level:
                missing.append(f"{name}: {least.why}.")
                continue
            if isolation in ("auto", capabilities.isolation.value):
                remedy = "Name another, or none."
                ladder.check(least, capabilities.isolation, f"The driver {name}", remedy)
                return name, capabilities
            if driver is not None:
                raise InvalidRequestError(
                    f"The driver {driver} is of isolation {capabilities.isolation.value}, not {isolation}.",
                    details={"field": "driver"},
                )
        asked = driver or f"isolation {isolation}"
        raise _unavailable(
            f"No driver for {asked} can be used on this host. {' '.join(missing)}".strip(),
            asked=asked,
        )

    def _why(self, name: str) -> str:
        probe = self.probes.get(name)
        if probe is None:
            return f"{name}: not looked at yet."
        remedy = f" ({probe.remedy})" if probe.remedy else ""
        return f"{name}: {probe.reason or 'not available'}{remedy}."


async def _probed(driver: Driver) -> Probe:
    """One that needs root is not even looked at by a daemon that has not got it."""
    if os.geteuid() != 0 and driver.capabilities().needs_root:
        reason = "it needs root, for namespaces, mounts and firewall rules, and this daemon has not got it"
        return Probe(False, reason=reason, remedy="sudo roost up")
    return await driver.probe()


def _unavailable(message: str, **details: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="RUNG_UNAVAILABLE", details=details)
