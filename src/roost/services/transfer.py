"""Templates and snapshots as one file, out and in.

A template goes out as an image of one layer (``templates.oci.exported``), read inside a machine that starts from it, and
comes in as any image does: a build whose context is the file and whose Dockerfile is ``FROM oci:.``.

A snapshot goes out as it lies in the pool (``storage.parcel``). It comes in as blocks that somebody else wrote: the host
does not mount such a disk, so it is a microVM's, and its memory nobody goes on from, unless an admin says that the file
is to be trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import sqlalchemy as sa
import zstandard
from sqlalchemy.exc import IntegrityError

import roost
from roost import ids
from roost.agent.client import AgentClient
from roost.drivers.interface import Size
from roost.egress.policy import Mode, Policy
from roost.engine import keeping, metering, quotas, reservations
from roost.engine.engine import Engine
from roost.engine.machine import MemoryImage, capabilities_to_json
from roost.errors import CapacityError, ConflictError, MachineError, RoostError, UnsupportedError
from roost.host import files
from roost.services import captured, limits
from roost.services.bakes import NOBODYS, columns
from roost.services.builds import SHIPPED_ORDER
from roost.services.models import Snapshot, Template
from roost.services.snapshots import MAX_SNAPSHOTS
from roost.services.templates import Templates
from roost.storage import disks, parcel
from roost.storage.disks import DiskInfo
from roost.storage.parcel import Parcel, Part
from roost.storage.room import asked
from roost.store import keys
from roost.store import snapshots as rows
from roost.store import templates as template_rows
from roost.templates.oci import exported
from roost.templates.oci.image import Blob

AT_ONCE = 2  # exports and imports of a tenant: who sends or takes slowly holds up nobody else
_WORKING = 2  # of the host, while they read or write its disks
IMPORTED = "imported"  # in the place of the machine that a snapshot is of
_MEMORY_MIB = 512  # of the machine that a template is read in
_PIECE = 1 << 20
_LEVEL = 3
_CHECK_EVERY = 64 << 20
_MAX_TEXT = 4096
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_TEMPLATE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_DRIVER = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class Transfers:
    """Every call takes the caller's tenant first."""

    def __init__(self, engine: Engine, templates: Templates) -> None:
        self._engine = engine
        self._store = engine.store
        self._storage = engine.parts.storage
        self._templates = templates
        self._turns = asyncio.Semaphore(_WORKING)
        self._whose: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def _of(self, tenant: str) -> asyncio.Semaphore:
        return self._whose.setdefault(tenant, asyncio.Semaphore(AT_ONCE))

    # --- templates ------------------------------------------------------------------------------

    async def export_template(self, tenant: str, name: str) -> AsyncGenerator[bytes, None]:
        """The archive, in pieces. Raises TEMPLATE_NOT_FOUND, INVALID_STATE (it is not built), STORAGE_FULL, and what
        a machine's start raises."""
        template = await self._templates.resolve(tenant, name)
        async with self._of(tenant), self._work() as work:
            async with self._turns:
                layer, diff_id = await self._tree(template, work / "layer")
            tag = name.partition("@")[0].partition(":")[2] or "latest"
            content = _file(work / "layer")
            async for piece in _threaded(
                exported.pack(template.config, tag, layer, diff_id, content)
            ):
                yield piece

    async def _tree(self, template: Template, path: Path) -> tuple[Blob, str]:
        """All of its files as a layer at ``path``; the digest of what is in it."""
        packed, plain = hashlib.sha256(), hashlib.sha256()
        compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        size = 0

        def put(data: bytes) -> int:
            plain.update(data)
            return write(compressor.compress(data))

        def write(out: bytes) -> int:
            packed.update(out)
            return file.write(out)

        async with self._machine(template) as agent:
            with path.open("xb") as file:
                asked = 0
                async for piece in agent.tar_out(b"/", layer=True):
                    size += await asyncio.to_thread(put, piece)
                    if size - asked >= _CHECK_EVERY:
                        asked = size
                        await self._storage.require(_CHECK_EVERY)
                size += write(compressor.flush())
        digest = f"sha256:{packed.hexdigest()}"
        return Blob(digest, size), f"sha256:{plain.hexdigest()}"

    @contextlib.asynccontextmanager
    async def _machine(self, template: Template) -> AsyncIterator[AgentClient]:
        """One of nobody's that starts from the template and reaches nothing."""
        engine, image = self._engine, template.image
        assert image is not None
        if image.raw_written or image.imported:
            driver, _ = engine.rungs.choose("microvm", None)
        else:
            driver = self._fastest()
        capabilities = await engine.rungs.prepared(driver)
        gib = -(-image.size_bytes >> 30)
        size = engine.rungs.driver(driver).fit(Size(1.0, _MEMORY_MIB, gib))
        await self._store.write(lambda c: keys.put_tenant(c, keys.NOBODY, engine.clock.now()))
        machine = await engine.create(
            {
                **NOBODYS,
                **columns(template, driver, capabilities, size),
                "env": {},
                "egress": Policy(Mode.OFF).to_json(),
            },
            {},
        )
        try:
            await engine.settled(machine.id)
            running = engine.roster.peek(machine.id)
            if running is None:
                raise MachineError("The machine that reads the template ended.")
            yield cast(AgentClient, running.agent)
        finally:
            await asyncio.shield(engine.destroy(machine.id))

    def _fastest(self) -> str:
        """Nothing of the template runs in it but our agent."""
        rungs = self._engine.rungs
        for name in SHIPPED_ORDER:
            if name in rungs.offered and rungs.available(name):
                return name
        return rungs.choose("container", None)[0]

    # --- snapshots ------------------------------------------------------------------------------

    async def export_snapshot(
        self, tenant: str, which: str, memory: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The file, in pieces. Raises SNAPSHOT_NOT_FOUND, SNAPSHOT_INVALID (it is quarantined, and its memory was
        asked for), UNSUPPORTED (it has none)."""
        row = await captured.find(self._store, tenant, which)
        async with self._of(tenant):
            with self._engine.holding(row["id"]):
                pieces = await self._pieces(tenant, row, memory)
                async for piece in _threaded(pieces, self._turns):
                    yield piece

    async def _pieces(self, tenant: str, row: captured.Row, memory: bool) -> Iterator[bytes]:
        image = row["memory_image"] if memory else None
        if memory:
            captured.require_sound(row)
            if image is None:
                raise UnsupportedError(f"Snapshot {row['id']} is of a disk alone: export it so.")
        place = self._storage.snapshot(row["id"])
        if not row["machine"]["capabilities"]["disk_image"]:
            raise UnsupportedError(
                f"Snapshot {row['id']} is of an isolated workspace: a directory and no disk. Take its files with"
                " `roost cp`."
            )
        parts = [Part("disk", place.disk)]
        names: list[str] = []
        if image is not None:
            found = sorted(path for path in place.memory.iterdir() if path.is_file())
            names = [path.name for path in found]
            parts += [Part(f"memory-{n}", path) for n, path in enumerate(found)]
        info = await asyncio.to_thread(disks.read, place.disk)
        config = await self._store.read(
            lambda c: template_rows.find(c, tenant, row["machine"]["template_id"])
        )
        manifest = {
            "roost": roost.__version__,
            "name": row["name"],
            "created_at": row["created_at"].isoformat(),
            "machine": {key: row["machine"][key] for key in keeping.TAKEN_OVER},
            "config": dict(config["config"]) if config is not None else {},
            "raw_written": info is None or info.raw_written,
            "memory": None if image is None else {"image": image, "files": names},
            "host": self._host(),
        }
        return parcel.pack(manifest, parts)

    async def import_snapshot(
        self,
        tenant: str,
        pieces: AsyncIterator[bytes],
        name: str | None = None,
        trusted: bool = False,
        created_by: str | None = None,
    ) -> Snapshot:
        """``trusted``: its disk is mounted on the host and its memory gone on from, as if it had been made here; the
        caller has seen to it that an admin says so. Durable on return; nothing is left where it fails.

        Raises INVALID_BODY (it is none, or was changed on its way), VALIDATION_FAILED, ALREADY_EXISTS,
        QUOTA_EXCEEDED, RUNG_UNAVAILABLE and UNSUPPORTED (nothing here can use it), STORAGE_FULL."""
        limits.name(name)
        limits.no_id("name", name)
        snapshot_id = ids.new()
        async with self._of(tenant), self._work() as work:
            await self._receive(work / "parcel", pieces)
            async with self._turns:
                sent = await asyncio.to_thread(Parcel, work / "parcel")
                wanted = _Wanted(sent)
                values = await self._fitted(wanted, trusted)
                await self._store.read(lambda c: _check_quotas(c, tenant, values))
                memory = wanted.memory if trusted and wanted.host == self._host() else None
                async with self._undone(snapshot_id):
                    size = await self._put(snapshot_id, sent, wanted, memory, values, trusted)

            async def keep() -> None:
                async with self._undone(snapshot_id):
                    await self._keep(
                        tenant, snapshot_id, name, values, wanted.config, memory, size, created_by
                    )

            # Whoever goes away meanwhile does not take its row back: then its files must stay.
            await asyncio.shield(keep())
        return Snapshot.from_row(await captured.find(self._store, tenant, snapshot_id))

    @contextlib.asynccontextmanager
    async def _undone(self, snapshot_id: str) -> AsyncIterator[None]:
        """What fails leaves no files."""
        try:
            yield
        except BaseException:
            await asyncio.shield(self._storage.delete_snapshot(snapshot_id))
            raise

    async def _fitted(self, wanted: _Wanted, trusted: bool) -> dict[str, Any]:
        """The columns of machines made from it, on this host."""
        rungs = self._engine.rungs
        driver = wanted.values["driver"]
        known = rungs.capabilities(driver)
        raw = wanted.raw_written or not trusted
        if raw and known is not None and not known.raw_disk:
            try:
                driver, _ = rungs.choose("microvm", None)
            except RoostError as failure:
                raise UnsupportedError(
                    f"This is the disk of a container ({driver}), written elsewhere: the host does not mount it, and "
                    "there are no microVMs here to use it in. If you know where the file comes from, import it as an "
                    "admin with --trusted.",
                    details={"driver": driver, "remedy": "roost snapshot import --trusted"},
                ) from failure
        rungs.choose("auto", driver)
        capabilities = await rungs.prepared(driver)
        given = wanted.values
        asked = Size(given["vcpu"], given["memory_mib"], given["storage_gib"])
        size = rungs.driver(driver).fit(asked)
        reservations.check_size(self._engine.host(), size.vcpu, size.memory_mib)
        if size.storage_gib != asked.storage_gib:
            raise UnsupportedError(
                f"Machines of the {driver} driver have no disks of {asked.storage_gib} GiB."
            )
        return {
            **given,
            "driver": driver,
            "isolation": capabilities.isolation.value,
            "capabilities": capabilities_to_json(capabilities),
            "vcpu": size.vcpu,
            "memory_mib": size.memory_mib,
        }

    async def _put(
        self,
        snapshot_id: str,
        sent: Parcel,
        wanted: _Wanted,
        memory: Mapping[str, Any] | None,
        values: Mapping[str, Any],
        trusted: bool,
    ) -> int:
        """The files; bytes allocated."""
        place = await self._storage.begin_snapshot(snapshot_id)
        into = {"disk": place.disk}
        for number, name in enumerate(memory["files"] if memory else ()):
            into[f"memory-{number}"] = place.memory / name
        try:
            # The pool is everybody's, and a small file may be a disk of a TiB without a hole.
            with asked(self._storage.require, lambda: parcel.bad("it was given up")) as room:
                await asyncio.to_thread(sent.unpack, into, room=room)
        except OSError as failure:
            if failure.errno != errno.ENOSPC:
                raise
            raise CapacityError("The disk pool is full.", code="STORAGE_FULL") from failure
        info = DiskInfo(
            source=values["image_digest"],
            storage_gib=values["storage_gib"],
            raw_written=wanted.raw_written,
            imported=not trusted,
            agent_digest=None,
            fresh=False,
        )
        return await asyncio.to_thread(_seal, place.directory, place.disk, info)

    async def _keep(
        self,
        tenant: str,
        snapshot_id: str,
        name: str | None,
        values: Mapping[str, Any],
        config: Mapping[str, Any],
        memory: Mapping[str, Any] | None,
        size: int,
        created_by: str | None,
    ) -> None:
        now = self._engine.clock.now()
        image = None
        if memory is not None:
            image = MemoryImage.from_json({**memory["image"], "snapshot_id": snapshot_id})

        def fn(connection: sa.Connection) -> None:
            _check_quotas(connection, tenant, values)
            # What its machines' programs are told, as a template that nobody can name: it goes with the last of them.
            template_rows.insert(
                connection,
                {
                    "id": values["template_id"],
                    "tenant_id": tenant,
                    "name": values["template"],
                    "status": "ready",
                    "config": dict(config),
                    "created_at": now,
                    "updated_at": now,
                },
            )
            rows.insert(
                connection,
                {
                    "id": snapshot_id,
                    "tenant_id": tenant,
                    "name": name,
                    "machine_id": IMPORTED,
                    "status": "ready",
                    "for_fork": False,
                    "machine": dict(values),
                    "memory_image": None if image is None else image.to_json(),
                    "size_bytes": size,
                    "paused_ms": None,
                    "created_at": now,
                },
            )
            row = rows.get(connection, snapshot_id)
            assert row is not None
            metering.begin_snapshot(connection, row, created_by, now)

        try:
            await self._store.write(fn)
        except IntegrityError as failure:
            raise ConflictError(
                f"You have a snapshot named {name}: delete it or take another name.",
                code="ALREADY_EXISTS",
            ) from failure

    def _host(self) -> str:
        """Memory is gone on from where its agent's token is known: by the identity that made it."""
        token = self._engine.identity.agent_token(IMPORTED, 0)
        return hashlib.sha256(f"roost-export\n{token}".encode()).hexdigest()

    # --- files ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncIterator[Path]:
        """A directory of one transfer in the pool."""
        make = partial(tempfile.TemporaryDirectory, prefix="transfer-", dir=self._storage.tmp)
        directory = await asyncio.to_thread(make)
        try:
            yield Path(directory.name)
        finally:
            await asyncio.shield(asyncio.to_thread(directory.cleanup))

    async def _receive(self, path: Path, pieces: AsyncIterator[bytes]) -> None:
        size = asked = 0
        with path.open("xb") as file:
            async for piece in pieces:
                if size >= asked:
                    await self._storage.require(_CHECK_EVERY)
                    asked = size + _CHECK_EVERY
                size += await asyncio.to_thread(file.write, piece)


def _check_quotas(connection: sa.Connection, tenant: str, values: Mapping[str, Any]) -> None:
    """Before anything is written, and in the transaction that says it is there."""
    used = rows.count(connection, tenant)
    if used >= MAX_SNAPSHOTS:
        raise quotas.exceeded("snapshots", MAX_SNAPSHOTS, used, 1, "Delete one, then retry.")
    quotas.check(connection, tenant, {"storage_gib": values["storage_gib"]})


class _Wanted:
    """What a file says it is, proven to be something that can be. Raises VALIDATION_FAILED, INVALID_BODY."""

    def __init__(self, sent: Parcel) -> None:
        manifest = sent.manifest
        given = manifest.get("machine")
        if not isinstance(given, dict):
            raise parcel.bad("it does not say what it is of")
        limits.vcpu(given.get("vcpu"))  # type: ignore[arg-type]
        limits.memory(given.get("memory_mib"))  # type: ignore[arg-type]
        limits.storage(given.get("storage_gib"))  # type: ignore[arg-type]
        env = given.get("env")
        if not isinstance(env, dict):
            raise parcel.bad("it does not say what it is of")
        limits.env(env)
        self.config = _config(manifest.get("config"))
        digest, template = given.get("image_digest"), given.get("template")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise parcel.bad("it does not say what it is of")
        if not isinstance(template, str) or not _TEMPLATE.fullmatch(template):
            raise parcel.bad("it does not say what it is of")
        driver = given.get("driver")
        if not isinstance(driver, str) or not _DRIVER.fullmatch(driver):
            raise parcel.bad("it does not say what it is of")
        if sent.parts["disk"] != given["storage_gib"] << 30:
            raise parcel.bad("its disk is of another size than it says")
        self.raw_written = manifest.get("raw_written") is not False
        self.host = manifest.get("host")
        self.memory = _memory(sent)
        self.values: dict[str, Any] = {
            "template_id": ids.new(),
            "template": template,
            "image_digest": digest,
            "driver": driver,
            "vcpu": float(given["vcpu"]),
            "memory_mib": given["memory_mib"],
            "storage_gib": given["storage_gib"],
            "env": env,
        }


def _config(value: object) -> dict[str, Any]:
    """Of its template, which is not here: what that told its machines' programs."""
    given = value if isinstance(value, dict) else {}
    env = given.get("env")
    env = env if isinstance(env, dict) else {}
    limits.env(env)
    found: dict[str, Any] = {"env": env, "no_new_privs": given.get("no_new_privs") is True}
    for key in ("user", "workdir"):
        text = given.get(key)
        if isinstance(text, str) and len(text) <= _MAX_TEXT and text.isprintable():
            found[key] = text
    return found


def _memory(sent: Parcel) -> dict[str, Any] | None:
    """{image, files}; names that a directory of ours can have."""
    said = sent.manifest.get("memory")
    if said is None:
        return None
    names = said.get("files") if isinstance(said, dict) else None
    image = said.get("image") if isinstance(said, dict) else None
    if not isinstance(names, list) or not isinstance(image, dict):
        raise parcel.bad("its memory is of no kind that is known")
    wanted = {"disk", *(f"memory-{number}" for number in range(len(names)))}
    good = all(isinstance(name, str) and _FILE.fullmatch(name) for name in names)
    if not good or len(set(names)) != len(names) or set(sent.parts) != wanted:
        raise parcel.bad("its memory is of no kind that is known")
    try:
        MemoryImage.from_json({**image, "snapshot_id": None, "used": False})
    except (TypeError, KeyError, ValueError) as failure:
        raise parcel.bad("its memory is of no kind that is known") from failure
    return {"image": image, "files": names}


def _seal(directory: Path, disk: Path, info: DiskInfo) -> int:
    found = [path for path in directory.rglob("*") if path.is_file()]
    for path in found:
        files.sync(path)
    disks.write(disk, info)
    for each in (directory / "memory", directory, directory.parent):
        files.sync_dir(each)
    return sum(path.stat().st_blocks * 512 for path in found)


def _file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


async def _threaded(
    pieces: Iterator[bytes], turns: asyncio.Semaphore | None = None
) -> AsyncGenerator[bytes, None]:
    """A blocking iterator, in threads; ``turns``: one for each piece."""
    try:
        while True:
            async with turns or contextlib.nullcontext():
                piece = await asyncio.to_thread(next, pieces, None)
            if piece is None:
                return
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            await asyncio.shield(asyncio.to_thread(close))
