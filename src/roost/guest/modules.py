"""A kernel's modules: which are needed before there is a disk, in what order, and the image of all."""

from __future__ import annotations

import lzma
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from roost.host import run

# The drivers of what a machine is made of. Those that this kernel has built in need no module.
NEEDED = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng")

_DEPMOD_TIMEOUT_S = 120
_MKE2FS_TIMEOUT_S = 120
_SPARE_BYTES = 4 << 20
_BLOCK = 4096
_UNIT = 1 << 20
_SEED = uuid.UUID("0d8f4c0e-5b1b-5b57-9d1c-726f6f737430")


def index(tree: Path, version: str) -> None:
    """Writes the files by which modprobe finds modules, which a package's own set-up would write."""
    run.run(["depmod", "-b", str(tree), version], timeout_s=_DEPMOD_TIMEOUT_S)


def load_order(directory: Path, needed: Iterable[str]) -> list[Path]:
    """The files of ``needed`` in an indexed ``/lib/modules/VERSION``, each after what it depends on.
    Raises LookupError for one that the kernel has not at all."""
    dependencies = dict(_parse(directory / "modules.dep"))
    by_name = {_name(path): path for path in dependencies}
    builtin = {_name(line) for line in (directory / "modules.builtin").read_text().splitlines()}
    order: list[str] = []
    for name in needed:
        path = by_name.get(name)
        if path is None and name not in builtin:
            raise LookupError(f"the kernel has no module {name}")
        if path is not None:
            # Listed as modprobe unloads them: the deepest last.
            order += [*reversed(dependencies[path]), path]
    return [directory / path for path in dict.fromkeys(order)]


def _parse(listing: Path) -> Iterable[tuple[str, list[str]]]:
    for line in listing.read_text().splitlines():
        path, _, rest = line.partition(":")
        yield path, rest.split()


def _name(path: str) -> str:
    """Of a module's file, as the kernel calls it."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def ram_disk_files(order: Iterable[Path]) -> Mapping[str, tuple[int, bytes]]:
    """For the RAM disk: init loads them in order of name."""
    return {
        f"modules/{number:02}-{_name(path.name)}.ko": (0o400, _content(path))
        for number, path in enumerate(order)
    }


def _content(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def image(directory: Path, made: Path, digest: str) -> None:
    """An ext4 image of ``directory`` for reading only, without mounting anything. ``digest`` names it."""
    size = _SPARE_BYTES
    for parent, directories, names in os.walk(directory):
        size += _BLOCK * len(directories)
        size += sum(-(os.lstat(f"{parent}/{name}").st_size // -_BLOCK) * _BLOCK for name in names)
    with made.open("xb") as file:
        file.truncate((size + size // 20) // _UNIT * _UNIT + _UNIT)
    identity = str(uuid.uuid5(_SEED, digest))
    run.run(
        [
            "mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal,^resize_inode",
            "-L", "roost-modules", "-U", identity,
            "-E", f"hash_seed={identity},assume_storage_prezeroed=1,root_owner=0:0",
            "-d", str(directory), str(made),
        ],
        timeout_s=_MKE2FS_TIMEOUT_S,
        env={"LC_ALL": "C", "E2FSPROGS_FAKE_TIME": "1735689600"},
    )  # fmt: skip
