"""The engine's ``Storage`` over the pool. File work runs in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from roost.errors import InvalidRequestError, NotFoundError, UnsupportedError
from roost.host import files, syscalls
from roost.settings import Settings
from roost.storage import accounting, content, disks, packing, trees, volumes
from roost.storage.disks import DiskInfo
from roost.storage.homes import Homes
from roost.storage.images import Images
from roost.storage.interface import Holder, Image, PoolUsage, Snapshot
from roost.storage.pool import Pool
from roost.storage.snapshots import Memories, Snapshots

T = TypeVar("T")

_CLONE_BYTES = 16 << 20  # what a new machine writes before it does anything
_TRIM_DELAY_S = 60.0  # deletions come in bursts


class PoolStorage:
    """See ``roost.storage.interface.Storage``."""

    def __init__(self, settings: Settings) -> None:
        self.pool = Pool(settings.data_dir, settings.pool_gib, settings.pool_reserve_percent)
        self.image_store = Images(self.pool)
        self.homes = Homes(self.pool, settings.workspace_user)
        self._snapshots = Snapshots(self.pool)
        self._memories = Memories(self.pool)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="storage")
        self._trimmer: asyncio.Task[None] | None = None
        self._sizing: dict[tuple[str, int], asyncio.Lock] = {}

    async def _run(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, functools.partial(function, *args, **kwargs)
        )

    async def open(self) -> None:
        await self._run(self.pool.open)

    async def usage(self) -> PoolUsage:
        return await self._run(self.pool.usage)

    async def require(self, bytes_needed: int) -> None:
        await self._run(self.pool.require, bytes_needed)

    async def clone(self, image: Image, machine_id: str, storage_gib: int) -> Path:
        if not 1 <= storage_gib <= 1024:
            raise InvalidRequestError(
                f"storage_gib is {storage_gib}; it can be from 1 to 1024.",
                details={"field": "storage_gib"},
            )
        lock = self._sizing.setdefault((image.digest, storage_gib), asyncio.Lock())
        async with lock:  # a variant is made once, however many ask for it at the same time
            source = await self._run(self.image_store.sized, image, storage_gib)
        return await self._run(self._clone, image, source, machine_id, storage_gib)

    def _clone(self, image: Image, source: Path, machine_id: str, storage_gib: int) -> Path:
        self.pool.require(_CLONE_BYTES)
        disk = self.disk(machine_id)
        info = DiskInfo(
            source=image.digest,
            storage_gib=storage_gib,
            raw_written=image.raw_written,
            imported=image.imported,
            agent_digest=image.agent_digest,
            fresh=True,
        )
        # One directory sync (``sync_disk``) makes both names durable. The order keeps a disk from being there
        # with nothing known of it.
        disks.write(disk, info, durable=False)
        try:
            files.reflink(source, disk, durable=False)
        except BaseException:
            disk.with_suffix(".json").unlink(missing_ok=True)
            raise
        return disk

    async def make_home(self, machine_id: str) -> Path:
        await self._run(self.homes.make, machine_id)
        return self.home(machine_id)

    def home(self, machine_id: str) -> Path:
        return self.homes.at(machine_id)

    async def sync_disk(self, machine_id: str) -> None:
        if self.home(machine_id).exists():
            await self._run(_sync_file_system, self.pool.homes)
        else:
            await self._run(_sync, self.disk(machine_id))

    def disk(self, machine_id: str) -> Path:
        return self.pool.disks / f"{disks.check_id(machine_id)}.ext4"

    async def delete(self, machine_id: str) -> None:
        await self._run(self._delete, self.disk(machine_id))
        await self._run(self.homes.delete, machine_id)
        await self.delete_tree(machine_id)
        self._trim_later()

    async def delete_disk(self, machine_id: str) -> None:
        await self._run(self._delete, self.disk(machine_id))

    # --- what a directory becomes when its machine goes up the ladder ------------------------------

    async def pack_tree(self, machine_id: str, most: int) -> None:
        await self._run(packing.pack, self.home(machine_id), self.tree(machine_id), most)

    def tree(self, machine_id: str) -> Path:
        return self.pool.disks / f"{disks.check_id(machine_id)}.tar"

    async def delete_tree(self, machine_id: str) -> None:
        tree = self.tree(machine_id)
        for each in (tree, packing.half(tree)):
            await self._run(each.unlink, missing_ok=True)

    async def list_trees(self) -> set[str]:
        return await self._run(
            lambda: {
                p.name.strip(".").removesuffix(".tar")
                for p in self.pool.disks.iterdir()
                if p.suffix == ".tar"
            }
        )

    async def delete_home(self, machine_id: str) -> None:
        await self._run(self.homes.delete, machine_id)
        self._trim_later()

    async def list_homes(self) -> set[str]:
        return await self._run(self.homes.list)

    @staticmethod
    def _delete(disk: Path) -> None:
        disk.unlink(missing_ok=True)
        disk.with_suffix(".json").unlink(missing_ok=True)

    async def list_disks(self) -> set[str]:
        """A manifest alone counts as well, so that a half-made or half-deleted disk is found."""
        return await self._run(
            lambda: (
                {
                    p.stem
                    for p in self.pool.disks.iterdir()
                    if p.suffix in (".ext4", ".json") and not p.name.startswith(".")
                }
                | self.homes.list()
            )
        )

    async def images(self) -> list[Image]:
        return await self._run(self.image_store.list)

    async def image(self, digest: str) -> Image | None:
        return await self._run(self.image_store.get, digest)

    @property
    def tmp(self) -> Path:
        return self.pool.tmp

    async def content(self, image: Image) -> str:
        return await self._run(content.digest, image.path)

    async def unique_bytes(self, digests: Sequence[str], others: Sequence[str]) -> dict[str, int]:
        return await self._run(self._unique_bytes, digests, others)

    def _unique_bytes(self, digests: Sequence[str], others: Sequence[str]) -> dict[str, int]:
        def path(digest: str) -> Path:
            return self.pool.images / f"{digest.removeprefix('sha256:')}.ext4"

        _, free = accounting.look([path(each) for each in others])
        return accounting.shares([(each, [path(each)]) for each in digests], free)

    async def copy_out(self, machine_id: str) -> Path:
        await self._run(self.pool.require, _CLONE_BYTES)
        return await self._run(self._copy_out, self.disk(machine_id))

    async def copy_out_snapshot(self, snapshot_id: str) -> Path:
        await self._run(self.pool.require, _CLONE_BYTES)
        disk = self._snapshots.at(snapshot_id).disk
        if self._snapshots.at(snapshot_id).home.exists():
            raise UnsupportedError(
                f"Snapshot {snapshot_id} is of an isolated workspace: a directory, of which no template is made."
            )
        if not disk.exists():
            raise NotFoundError(
                f"Snapshot {snapshot_id} is not in the pool any more.", code="SNAPSHOT_NOT_FOUND"
            )
        return await self._run(self._copy_out, disk)

    def _copy_out(self, disk: Path) -> Path:
        made = self.pool.tmp / f"disk-{secrets.token_hex(8)}.ext4"
        files.reflink(disk, made, durable=False)
        return made

    async def keep_image(
        self, made: Path, digest: str, of: Path, manifest: Mapping[str, Any]
    ) -> Image:
        return await self._run(self._keep_image, made, digest, of, manifest)

    def _keep_image(self, made: Path, digest: str, of: Path, manifest: Mapping[str, Any]) -> Image:
        info = disks.read(of)
        known = {
            "raw_written": info is None or info.raw_written,
            "imported": info is None or info.imported,
            "agent_digest": None,
        }
        return self.image_store.add(made, digest, {**manifest, **known})

    async def delete_image(self, digest: str) -> None:
        await self._run(self.image_store.delete, digest)
        self._trim_later()

    # --- snapshots and memory -------------------------------------------------------------------

    def snapshot(self, snapshot_id: str) -> Snapshot:
        return self._snapshots.at(snapshot_id)

    async def begin_snapshot(self, snapshot_id: str) -> Snapshot:
        return await self._run(self._snapshots.begin, snapshot_id)

    async def copy_disk(self, machine_id: str, snapshot_id: str) -> None:
        home = self.home(machine_id)
        if home.exists() and not self.disk(machine_id).exists():
            await self._run(self.homes.copy, home, self._snapshots.at(snapshot_id).home)
            return
        await self._run(self._snapshots.copy_disk, self.disk(machine_id), snapshot_id)

    async def copy_memory(self, machine_id: str, snapshot_id: str) -> None:
        await self._run(self._snapshots.copy_memory, self.memory(machine_id), snapshot_id)

    async def seal_snapshot(self, snapshot_id: str, machine_id: str) -> int:
        if self._snapshots.at(snapshot_id).home.exists():
            return await self._run(self._snapshots.seal_home, snapshot_id)
        return await self._run(self._snapshots.seal, snapshot_id, self.disk(machine_id))

    async def clone_snapshot(self, snapshot_id: str, machine_id: str) -> Path:
        await self._run(self.pool.require, _CLONE_BYTES)
        home = self._snapshots.at(snapshot_id).home
        if home.exists():
            await self._run(self.homes.clone, home, machine_id)
            return self.home(machine_id)
        disk = self.disk(machine_id)
        await self._run(self._snapshots.clone, snapshot_id, disk)
        return disk

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._run(self._snapshots.delete, snapshot_id)
        self._trim_later()

    async def list_snapshots(self) -> set[str]:
        return await self._run(self._snapshots.list)

    async def shares(
        self, families: Sequence[Sequence[Holder]], free: Iterable[str]
    ) -> dict[str, int]:
        return await self._run(self._shares, families, list(free))

    def _shares(self, families: Sequence[Sequence[Holder]], free: Sequence[str]) -> dict[str, int]:
        everybodys = [*self.pool.images.glob("*.ext4"), *self.pool.variants.glob("*.ext4")]
        for snapshot_id in free:
            everybodys += self._files(Holder(snapshot_id, is_snapshot=True))
        _, costs_nothing = accounting.look(everybodys)
        found: dict[str, int] = {}
        for family in families:
            homes = {each.id: home for each in family if (home := self._home_of(each)).exists()}
            named = [(each.id, self._files(each)) for each in family if each.id not in homes]
            found |= accounting.shares(named, costs_nothing)
            found |= {id: trees.allocated(home) for id, home in homes.items()}
        return found

    def _home_of(self, holder: Holder) -> Path:
        return self._snapshots.at(holder.id).home if holder.is_snapshot else self.home(holder.id)

    def _files(self, holder: Holder) -> list[Path]:
        if holder.is_snapshot:
            place = self._snapshots.at(holder.id)
            disk, memory = place.disk, place.memory
        else:
            disk, memory = self.disk(holder.id), self.memory(holder.id)
            if not disk.exists() and (volume := self.volume(holder.id)).exists():
                return [volume]
        try:
            return [disk, *(p for p in memory.iterdir() if p.is_file() and not p.is_symlink())]
        except FileNotFoundError:
            return [disk]

    def memory(self, machine_id: str) -> Path:
        return self._memories.at(machine_id)

    async def begin_memory(self, machine_id: str) -> Path:
        return await self._run(self._memories.begin, machine_id)

    async def delete_memory(self, machine_id: str) -> None:
        await self._run(self._memories.delete, machine_id)

    async def list_memory(self) -> set[str]:
        return await self._run(self._memories.list)

    # --- volumes --------------------------------------------------------------------------------

    async def make_volume(self, volume_id: str, size_gib: int) -> None:
        await self._run(self.pool.require, _CLONE_BYTES)
        await self._run(volumes.make, self.volume(volume_id), size_gib)

    def volume(self, volume_id: str) -> Path:
        return self.pool.volumes / f"{disks.check_id(volume_id)}.ext4"

    async def delete_volume(self, volume_id: str) -> None:
        await self._run(self._delete, self.volume(volume_id))
        self._trim_later()

    async def list_volumes(self) -> set[str]:
        return await self._run(lambda: volumes.list_ids(self.pool.volumes))

    def _trim_later(self) -> None:
        if self._trimmer is None or self._trimmer.done():
            self._trimmer = asyncio.create_task(self._trim_soon(), name="pool-trim")

    async def _trim_soon(self) -> None:
        await asyncio.sleep(_TRIM_DELAY_S)
        with contextlib.suppress(OSError):
            await self.trim()

    async def trim(self) -> int:
        """Gives space freed in the pool back to what is under it; the bytes looked at."""
        return await self._run(self.pool.trim)

    async def close(self) -> None:
        """The pool stays mounted: machines outlive the daemon."""
        if self._trimmer is not None:
            self._trimmer.cancel()

    async def purge(self) -> None:
        await self._run(self.pool.purge)


def _sync_file_system(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)


def _sync(disk: Path) -> None:
    for path in (disk.with_suffix(".json"), disk):
        files.sync(path)
    files.sync_dir(disk.parent)
