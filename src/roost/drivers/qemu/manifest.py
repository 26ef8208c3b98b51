"""What a snapshot says of itself, written last: it is there, whole, and of a machine that this one is like.

A VMM resumes whatever it is given; a state of another version, CPU or set of devices breaks the guest later,
somewhere else. So everything that must be the same is compared before, and refused by name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roost.drivers.qemu import mappedram, options
from roost.drivers.qemu.mappedram import Layout, SnapshotInvalid
from roost.host import files

FORMAT = 1
NAME = "manifest.json"
MEMORY = "memory"  # the snapshot file's name in its directory
_TSC_TOLERANCE = 1e-3  # as measured; what is left a guest's time service takes out
_SMALL_BLOCK = 16 << 20  # firmware and tables; guest memory has its own checks


@dataclass(frozen=True, slots=True)
class Manifest:
    """``state_digest`` covers all of the file but guest memory: its head, firmware, devices. Memory's length is
    checked, its content is not: reading it all would cost more than the restore."""

    format: int
    runtime: str  # digest
    vmm_version: str
    guest: str  # digest of kernel, initial RAM disk and modules
    fingerprint: Mapping[str, Any]
    pages_offset: int
    file_size: int
    state_digest: str
    memory_bytes: int  # not zero
    tsc_khz: int  # of the host's time stamp counter where that is the guest's clock, else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def write(directory: Path, manifest: Manifest, *, durable: bool) -> None:
    """Where ``durable``, the memory file's content and name must be already."""
    files.write_json(directory / NAME, manifest.to_json(), durable=durable)


def read(directory: Path) -> Manifest:
    """Raises SnapshotInvalid."""
    data = files.read_json(directory / NAME)
    if data is None:
        raise _invalid("it is not whole (no manifest)", "whole", False, True)
    return parse(data)


def parse(data: Mapping[str, Any]) -> Manifest:
    try:
        manifest = Manifest(**data)
    except TypeError as exc:
        raise _invalid("its manifest is not one", "format", None, FORMAT) from exc
    kinds = (
        (manifest.format, int),
        (manifest.runtime, str),
        (manifest.vmm_version, str),
        (manifest.guest, str),
        (manifest.fingerprint, dict),
        (manifest.pages_offset, int),
        (manifest.file_size, int),
        (manifest.state_digest, str),
        (manifest.memory_bytes, int),
        (manifest.tsc_khz, int),
    )
    if not all(type(value) is kind for value, kind in kinds) or manifest.format != FORMAT:
        raise _invalid("its manifest is of another format", "format", manifest.format, FORMAT)
    return manifest


def require(
    manifest: Manifest,
    *,
    runtime: str,
    vmm_version: str,
    guest: str,
    fingerprint: Mapping[str, Any],
    tsc_khz: int,
) -> None:
    """That the machine which is to load it is such a one. Raises SnapshotInvalid, which names the first
    difference in ``details``."""
    wanted = {"runtime": runtime, "vmm_version": vmm_version, "guest": guest, **fingerprint}
    has = {
        "runtime": manifest.runtime,
        "vmm_version": manifest.vmm_version,
        "guest": manifest.guest,
        **manifest.fingerprint,
    }
    for name in sorted({*wanted, *has}):
        if wanted.get(name) != has.get(name):
            raise _invalid(
                f"it was made with {name} {has.get(name)!r}, here it is {wanted.get(name)!r}",
                name,
                has.get(name),
                wanted.get(name),
            )
    if abs(manifest.tsc_khz - tsc_khz) > tsc_khz * _TSC_TOLERANCE:
        raise _invalid(
            "its clock is a counter of another rate", "tsc_khz", manifest.tsc_khz, tsc_khz
        )


def verify(fd: int, manifest: Manifest) -> Layout:
    """That the file is the one the manifest was written for. Raises SnapshotInvalid."""
    size = os.fstat(fd).st_size
    if size != manifest.file_size:
        raise _invalid("its memory file was cut or grew", "file_size", size, manifest.file_size)
    layout = mappedram.read_layout(fd, _memory_bytes(manifest))
    block = layout.block(options.BLOCK)
    if block.pages_offset != manifest.pages_offset or not mappedram.is_settled(fd, block):
        raise _invalid("its memory lies elsewhere", "pages_offset", block.pages_offset, None)
    if (found := digest(fd, layout)) != manifest.state_digest:
        raise _invalid("its state was altered", "state_digest", found, manifest.state_digest)
    return layout


def _memory_bytes(manifest: Manifest) -> int:
    mib = manifest.fingerprint.get("memory_mib")
    if type(mib) is not int:
        raise _invalid("its size is not told", "memory_mib", None, None)
    return mib << 20


def digest(fd: int, layout: Layout) -> str:
    """SHA-256 of every byte that is not guest memory, its bitmap, or padding."""
    sha = hashlib.sha256()
    at = 0
    for block in layout.blocks:
        sha.update(os.pread(fd, block.bitmap_offset - at, at))
        if block.name != options.BLOCK:
            if block.length > _SMALL_BLOCK:
                raise _invalid("it has memory that is not the guest's", "block", block.name, None)
            sha.update(os.pread(fd, block.bitmap_length, block.bitmap_offset))
            sha.update(os.pread(fd, block.length, block.pages_offset))
        at = block.end
    sha.update(os.pread(fd, layout.size - at, at))
    return sha.hexdigest()


def _invalid(why: str, what: str, found: Any, wanted: Any) -> SnapshotInvalid:
    return SnapshotInvalid(
        f"The memory snapshot cannot be used here: {why}. The machine can start from its disk.",
        details={"what": what, "found": found, "wanted": wanted},
    )
