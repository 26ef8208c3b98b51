"""Which machines have secrets, and who must know: the boundary, the network, the machine's own programs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
import structlog

from roost.clock import Clock
from roost.egress.interface import Intercept
from roost.errors import RoostError, bad
from roost.secrets import authority, trust
from roost.secrets.process import Process, State
from roost.secrets.secret import (
    Secret,
    SecretSpec,
    check_apart,
    check_weight,
    environment,
    from_row,
    made,
    to_row,
)
from roost.secrets.vault import Vault
from roost.store import Store
from roost.store import secrets as rows

if TYPE_CHECKING:
    from roost.agent.client import AgentClient

log = structlog.get_logger(__name__)
INSTALL_S = 15.0
_KEY = ":authority"  # no secret can be named so


class Keeper:
    """``open`` before the engine, ``close`` after it. Values pass through here and stay nowhere."""

    def __init__(self, store: Store, clock: Clock, data_dir: Path, python: Path, ca: Path) -> None:
        self._store = store
        self._clock = clock
        self._data_dir = data_dir
        self.process = Process(python, ca, self._everything)
        self._known: dict[str, tuple[Secret, ...]] = {}
        self._certificates: dict[str, str] = {}
        # One at a time reads and tells, so that what was read last is told last.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stale: set[str] = set()  # of which the boundary may know what is no more

    @functools.cached_property
    def _vault(self) -> Vault:
        return Vault.load(self._data_dir)

    async def open(self) -> None:
        found = await self._store.read(rows.everything)
        for machine_id in {row["machine_id"] for row in found}:
            try:
                await self._read(machine_id)
            except RoostError as failure:  # its names are known all the same
                log.error("secrets.sealed", machine_id=machine_id, message=failure.message)
        if found:
            self.process.start()

    async def close(self) -> None:
        await self.process.close()

    # --- what services ask ----------------------------------------------------------------------

    def put(
        self, connection: sa.Connection, tenant: str, machine_id: str, spec: SecretSpec
    ) -> bool:
        """Writes it, sealed, with the authority that a machine's first one needs; whether it is new. ``spec.value`` is
        checked. Raises VALIDATION_FAILED."""
        found = {row["name"]: row for row in rows.of_machine(connection, machine_id)}
        before = found.pop(spec.name, None)
        now = self._clock.now()
        secret = made(spec, None if before is None else from_row(before), now)
        check_apart(secret, [from_row(row) for row in found.values()])
        if spec.value is not None:
            check_weight([spec.value, *self._opened(found.values())])
            sealed = self._vault.seal(spec.value, machine_id, spec.name)
        else:
            if before is None:
                raise bad("value", "is missing")
            sealed = before["value"]
        known = {"machine_id": machine_id, "tenant_id": tenant, "value": sealed}
        rows.put(connection, {**to_row(secret), **known})
        if not self._can_sign(rows.authority(connection, machine_id)):
            rows.delete_authority(connection, machine_id)
            self._put_authority(connection, machine_id, authority.create(machine_id, now))
        return before is None

    def delete(self, connection: sa.Connection, machine_id: str, name: str) -> bool:
        """Whether there was one. The authority goes with the last."""
        gone = rows.delete(connection, machine_id, name)
        if not rows.of_machine(connection, machine_id):
            rows.delete_authority(connection, machine_id)
        return gone

    def inherit(self, connection: sa.Connection, parent_id: str, child_id: str) -> None:
        """All of the parent's for a fork of it, its authority too: processes that go on in the fork believe that."""
        for row in rows.of_machine(connection, parent_id):
            value = self._vault.open(row["value"], parent_id, row["name"])
            sealed = self._vault.seal(value, child_id, row["name"])
            rows.put(connection, {**row, "machine_id": child_id, "value": sealed})
        found = rows.authority(connection, parent_id)
        if found is not None:
            key = self._vault.open(found["key"], parent_id, _KEY)
            known = authority.Authority(found["certificate"], key)
            self._put_authority(connection, child_id, known)

    async def of(self, machine_id: str) -> tuple[Secret, ...]:
        found = await self._store.read(lambda c: rows.of_machine(c, machine_id))
        return tuple(from_row(row) for row in found)

    async def refresh(self, machine_id: str) -> None:
        """Tells the boundary what the database has; on return that holds. Raises DEPENDENCY_UNAVAILABLE."""
        async with self._turns[machine_id]:
            had = machine_id in self._known or machine_id in self._stale
            state = await self._read(machine_id)
            if state is None and not had:
                return
            self._stale.add(machine_id)
            await self.process.tell({machine_id: state})
            self._stale.discard(machine_id)

    # --- what the engine asks (engine.ports.Boundary) -------------------------------------------

    def environment(self, machine_id: str, one_user: bool = False) -> Mapping[str, str]:
        known = self._known.get(machine_id)
        return {} if known is None else {**trust.environment(one_user), **environment(known)}

    async def intercepts(self, machine_id: str) -> Sequence[Intercept]:
        """A fork's may have come with its row. Names are known also where values cannot be opened: then nobody
        answers for these hosts."""
        if machine_id not in self._known:
            await self._told(machine_id)
        names: defaultdict[tuple[int, ...], set[str]] = defaultdict(set)
        for secret in self._known.get(machine_id, ()):
            for host in secret.hosts:
                assert host.name is not None
                names[secret.ports(host)].add(host.name)
        return tuple(
            Intercept(
                names=tuple(sorted(each)),
                endpoint=self.process.endpoint,
                user=machine_id,
                password=self.process.password,
                ports=ports,
            )
            for ports, each in sorted(names.items())
        )

    async def greeted(self, machine_id: str, agent: Any, one_user: bool = False) -> None:
        """Its authority is where its programs look for it. What fails is logged: the machine then believes nobody
        who answers for these hosts, and no value goes out."""
        certificate = self._certificates.get(machine_id)
        if certificate is None:
            return
        try:
            async with asyncio.timeout(INSTALL_S):
                await trust.install(cast("AgentClient", agent), certificate, one_user)
        except (RoostError, TimeoutError, OSError) as failure:
            log.warning("secrets.install", machine_id=machine_id, error=repr(failure)[:200])

    async def bade_farewell(self, machine_id: str, agent: Any, one_user: bool = False) -> None:
        """The last secret is gone."""
        try:
            async with asyncio.timeout(INSTALL_S):
                await trust.remove(cast("AgentClient", agent), one_user)
        except (RoostError, TimeoutError, OSError) as failure:
            log.warning("secrets.remove", machine_id=machine_id, error=repr(failure)[:200])

    def erase(self, connection: sa.Connection, machine_id: str) -> None:
        rows.forget(connection, machine_id)

    async def gone(self, machine_id: str) -> None:
        self._turns.pop(machine_id, None)
        known = self._known.pop(machine_id, None) is not None
        if (known or machine_id in self._stale) and self.process.up:
            try:
                await self.process.tell({machine_id: None})
            except RoostError as failure:  # a new process is told only of what there is
                log.warning("secrets.gone", machine_id=machine_id, error=failure.code)
        self._certificates.pop(machine_id, None)
        self._stale.discard(machine_id)

    # --- helpers --------------------------------------------------------------------------------

    def _opened(self, found: Iterable[sa.RowMapping]) -> Iterator[str]:
        """Their values, but of those that cannot be opened."""
        for row in found:
            with contextlib.suppress(RoostError):
                yield self._vault.open(row["value"], row["machine_id"], row["name"])

    def _can_sign(self, row: sa.RowMapping | None) -> bool:
        if row is None:
            return False
        try:
            self._vault.open(row["key"], row["machine_id"], _KEY)
        except RoostError:  # the key of this host is another one now
            return False
        return True

    def _put_authority(
        self, connection: sa.Connection, machine_id: str, known: authority.Authority
    ) -> None:
        row = {
            "machine_id": machine_id,
            "certificate": known.certificate,
            "key": self._vault.seal(known.key, machine_id, _KEY),
            "created_at": self._clock.now(),
        }
        rows.put_authority(connection, row)

    async def _told(self, machine_id: str) -> None:
        try:
            await self.refresh(machine_id)
        except RoostError as failure:
            log.warning("secrets.tell", machine_id=machine_id, error=failure.code)

    async def _read(self, machine_id: str) -> State | None:
        """As it is in the database; None without any. Raises INTERNAL where it cannot be opened."""

        def fn(c: sa.Connection) -> tuple[list[sa.RowMapping], sa.RowMapping | None]:
            return rows.of_machine(c, machine_id), rows.authority(c, machine_id)

        found, signer = await self._store.read(fn)
        if not found or signer is None:
            self._known.pop(machine_id, None)
            self._certificates.pop(machine_id, None)
            return None
        self._known[machine_id] = tuple(from_row(row) for row in found)
        self._certificates[machine_id] = signer["certificate"]
        return self._state(found, signer)

    def _state(self, found: Sequence[sa.RowMapping], signer: sa.RowMapping) -> State:
        """One that cannot be opened is left out, and said to be."""
        opened = []
        for row in found:
            try:
                value = self._vault.open(row["value"], row["machine_id"], row["name"])
            except RoostError as failure:
                log.error("secrets.sealed", machine_id=row["machine_id"], message=failure.message)
                continue
            opened.append(from_row(row).to_boundary(value))
        key = self._vault.open(signer["key"], signer["machine_id"], _KEY)
        return {"certificate": signer["certificate"], "key": key, "secrets": opened}

    async def _everything(self) -> dict[str, State]:
        found = await self._store.read(rows.everything)
        states: dict[str, State] = {}
        for machine_id in {row["machine_id"] for row in found}:
            try:
                state = await self._read(machine_id)
            except RoostError as failure:
                log.error("secrets.sealed", machine_id=machine_id, message=failure.message)
                continue
            if state is not None:
                states[machine_id] = state
        return states
