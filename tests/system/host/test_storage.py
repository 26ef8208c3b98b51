"""The pool on this host: reflinks, sizes, watermarks and space given back."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from roost.errors import CapacityError, InvalidRequestError
from roost.host import files, loop, mounts
from roost.storage import PoolStorage, mounting
from roost.storage.interface import Holder

from .conftest import World

pytestmark = pytest.mark.system


def _mount(disk: Path, target: Path) -> None:
    with mounting.attached(disk) as attached:
        mounting.mount(attached, target)


async def test_a_clone_shares_its_blocks_and_differs_when_written(
    world: World, tmp_path: Path
) -> None:
    before = (await world.storage.usage()).free
    disk = await world.storage.clone(world.image, "c1", 1)
    assert before - (await world.storage.usage()).free < 8 << 20
    target = tmp_path / "m"
    _mount(disk, target)
    try:
        (target / "root/new").write_text("only here")
    finally:
        mounts.unmount_image(disk, target)
        mounts.unmount_image(disk, target)
    assert loop.devices_of(disk) == []
    assert await world.storage.list_disks() >= {"c1"}
    await world.storage.delete("c1")
    await world.storage.delete("c1")
    assert "c1" not in await world.storage.list_disks()
    check = subprocess.run(["e2fsck", "-fn", world.image.path], capture_output=True)
    assert check.returncode == 0, "the image itself is untouched"


async def test_other_sizes_are_made_once_and_are_sound(world: World) -> None:
    grown = await world.storage.clone(world.image, "big", 3)
    assert grown.stat().st_size == 3 << 30
    assert subprocess.run(["e2fsck", "-fn", grown], capture_output=True).returncode == 0
    variant = next(world.storage.pool.variants.glob("*-3.ext4"))
    made = variant.stat().st_mtime_ns
    await world.storage.clone(world.image, "big2", 3)
    assert variant.stat().st_mtime_ns == made
    for size in (0, 1025):
        with pytest.raises(InvalidRequestError):
            await world.storage.clone(world.image, "no", size)
    for name in ("big", "big2"):
        await world.storage.delete(name)


async def test_space_freed_in_a_machine_and_by_deleting_comes_back(
    world: World, tmp_path: Path
) -> None:
    def allocated() -> int:
        subprocess.run(["sync"], check=True)
        return (world.settings.data_dir / "pool.xfs").stat().st_blocks * 512

    if world.storage.pool.kind != "xfs-loop":
        pytest.skip("the pool is the file system itself")
    disk = await world.storage.clone(world.image, "trim", 1)
    target = tmp_path / "m"
    _mount(disk, target)
    with (target / "big").open("wb") as file:
        for _ in range(300):
            file.write(b"x" * (1 << 20))
    subprocess.run(["sync"], check=True)
    full = allocated()
    (target / "big").unlink()
    mounts.trim(target)
    mounts.unmount_image(disk, target)
    for _ in range(70):  # blocks count as free once the pool's log has settled
        await world.storage.trim()
        if full - allocated() > 250 << 20:
            break
        await asyncio.sleep(0.5)
    assert full - allocated() > 250 << 20
    await world.storage.delete("trim")


async def test_the_watermark_refuses_before_the_disk_is_full(world: World) -> None:
    usage = await world.storage.usage()
    with pytest.raises(CapacityError) as caught:
        await world.storage.require(max(usage.free, usage.backing_free))
    assert caught.value.code == "STORAGE_FULL"
    assert caught.value.details["reserve_bytes"] > 0


async def test_opening_again_finds_everything_and_sweeps_what_is_half_made(world: World) -> None:
    await world.storage.clone(world.image, "stays", 1)
    (world.storage.pool.tmp / "half").mkdir()
    (world.storage.pool.tmp / "half/x").write_text("x")
    later = PoolStorage(world.settings)
    await later.open()
    assert list(later.pool.tmp.iterdir()) == []
    assert "stays" in await later.list_disks()
    assert world.image.digest in {image.digest for image in await later.images()}
    await later.delete("stays")
    await later.close()


async def test_an_image_without_its_manifest_is_not_one(world: World) -> None:
    name = "f" * 64
    path = world.storage.pool.images / f"{name}.ext4"
    path.write_bytes(b"x")
    assert f"sha256:{name}" not in {i.digest for i in await world.storage.images()}
    await world.storage.delete_image(f"sha256:{name}")
    assert not path.exists()
    await world.storage.delete_image(f"sha256:{name}")


def _fill(path: Path, mib: int, at_mib: int = 0, letter: bytes = b"x") -> None:
    with open(path, "r+b") as file:
        file.seek(at_mib << 20)
        file.write(letter * (mib << 20))
        os.fsync(file.fileno())


async def test_each_block_is_answered_for_once_by_the_oldest_that_has_it(world: World) -> None:
    """A parent pays for what it wrote, its snapshot and its fork for what is theirs alone; whoever is left pays for
    what the others are gone from; and what all have of the image costs nobody anything."""
    storage = world.storage
    mib = 1 << 20

    async def shares(*ids: str) -> list[int]:
        family = [Holder(each, is_snapshot=each.startswith("s")) for each in ids]
        found = await storage.shares([family], [])
        return [round(found[each] / mib) for each in ids]

    disk = await storage.clone(world.image, "p1", 1)
    await storage.clone(world.image, "p2", 1)
    assert await shares("p1") == [0]
    _fill(disk, 40, 500)
    assert await shares("p1") == [40]
    await storage.begin_snapshot("s1")
    await storage.copy_disk("p1", "s1")
    await storage.seal_snapshot("s1", "p1")
    fork = await storage.clone_snapshot("s1", "f1")
    assert await shares("p1", "s1", "f1") == [40, 0, 0]
    _fill(fork, 5, 600, b"f")
    _fill(disk, 10, 500, b"y")  # the snapshot alone and the fork have what was there before
    assert await shares("p1", "s1", "f1") == [40, 10, 5]
    await storage.delete_snapshot("s1")
    assert await shares("p1", "f1") == [40, 15]
    await storage.delete("p1")
    assert await shares("f1") == [45]
    # Of a snapshot that is nobody's (a bake) machines pay for nothing but what they change.
    await storage.begin_snapshot("s2")
    await storage.copy_disk("f1", "s2")
    await storage.seal_snapshot("s2", "f1")
    made = await storage.clone_snapshot("s2", "m1")
    _fill(made, 3, 700)
    found = await storage.shares([[Holder("m1", is_snapshot=False)]], ["s2"])
    assert round(found["m1"] / mib) == 3
    memory = await storage.begin_memory("m1")
    (memory / "pages").write_bytes(b"m" * (8 * mib))
    files.sync(memory / "pages")
    found = await storage.shares([[Holder("m1", is_snapshot=False)]], ["s2"])
    assert round(found["m1"] / mib) == 11
    for each in ("p2", "f1", "m1"):
        await storage.delete(each)
    await storage.delete_memory("m1")
    await storage.delete_snapshot("s2")
