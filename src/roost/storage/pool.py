"""The pool: a directory on a file system that can reflink, or, of a daemon that is not root, on any."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from roost.errors import CapacityError, UnsupportedError
from roost.host import files, loop, mounts, run
from roost.storage import trees
from roost.storage.interface import PoolUsage

log = logging.getLogger(__name__)

_DIRECTORIES = ("images", "variants", "disks", "homes", "volumes", "snapshots", "memory", "tmp")
# No `discard`: freeing blocks at once costs each later sync of a new disk 10 ms and more. `trim` does it
# in bulk.
_OPTIONS = "nodiscard"
_TRIM_MIN = 256 << 10


class Pool:
    def __init__(self, data_dir: Path, size_gib: int, reserve_percent: float) -> None:
        self._data_dir = data_dir
        self._size_gib = size_gib
        self._reserve = reserve_percent / 100
        self._file = data_dir / "pool.xfs"
        self.root = data_dir / "pool"
        self.kind = ""

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def variants(self) -> Path:
        return self.root / "variants"

    @property
    def disks(self) -> Path:
        return self.root / "disks"

    @property
    def homes(self) -> Path:
        """Directories of machines that have no disk."""
        return self.root / "homes"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def memory(self) -> Path:
        """Of machines asleep."""
        return self.root / "memory"

    @property
    def tmp(self) -> Path:
        """Swept at every open: what is half made belongs here until it is renamed away."""
        return self.root / "tmp"

    def open(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.mkdir(exist_ok=True, mode=0o700)
        if mounts.is_mounted(self.root):
            self.kind = "xfs-loop"
        elif not self._file.exists() and files.can_reflink(self.root):
            self.kind = _fstype(self.root)
        elif os.geteuid() != 0:  # who cannot mount makes do: directories need no reflinks
            self.kind = "directory"
        else:
            self._make_file()
            self._mount_file()
            self.kind = "xfs-loop"
        for name in _DIRECTORIES:
            (self.root / name).mkdir(exist_ok=True, mode=0o700)
        hidden = (
            p for name in _DIRECTORIES for p in (self.root / name).glob(".*")
        )  # half-written JSON
        for left in (*self.tmp.iterdir(), *hidden):
            _remove(left)

    def _make_file(self) -> None:
        if self._file.exists():
            return
        temporary = self._data_dir / ".pool.xfs.new"
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, self._size_gib << 30)
        finally:
            os.close(fd)
        try:
            run.run(["mkfs.xfs", "-q", "-m", "reflink=1", "-K", str(temporary)], timeout_s=60)
        except (OSError, TimeoutError) as exc:
            temporary.unlink(missing_ok=True)
            raise UnsupportedError(
                f"The disk pool could not be made: {exc}. Install xfsprogs, or set ROOST_DATA_DIR to a "
                "directory on XFS or btrfs.",
                code="HOST_UNSUPPORTED",
                details={"remedy": "apt-get install xfsprogs"},
            ) from exc
        os.rename(temporary, self._file)
        files.sync_dir(self._data_dir)

    def _mount_file(self) -> None:
        for device in loop.devices_of(self._file):
            # A device of ours that lost its mount: two devices over one file would be two caches.
            loop.detach(device)
            if not loop.wait_gone(device, self._file, 5.0):
                raise UnsupportedError(
                    f"The pool file is in use on {device}; end what holds it and start again.",
                    code="HOST_UNSUPPORTED",
                    details={"remedy": f"fuser -vm {device}"},
                )
        try:
            # Buffered on purpose: the page cache of this one file is what sibling disks share, since a
            # block of a template lies at one place in it however often it is cloned.
            mounts.mount_image(self._file, self.root, _OPTIONS, fstype="xfs", direct_io=False)
        except OSError as exc:
            raise UnsupportedError(
                f"The disk pool could not be mounted: {exc}. The kernel needs XFS and loop devices.",
                code="HOST_UNSUPPORTED",
                details={"remedy": "modprobe -a loop xfs"},
            ) from exc

    def usage(self) -> PoolUsage:
        total, free = _space(self.root)
        if self.kind != "xfs-loop":
            return PoolUsage(total, free, total, free, self.kind)
        backing_total, backing_free = _space(self._data_dir)
        return PoolUsage(total, free, backing_total, backing_free, self.kind)

    def require(self, bytes_needed: int) -> None:
        usage = self.usage()
        for what, total, free in (
            ("pool", usage.total, usage.free),
            ("backing", usage.backing_total, usage.backing_free),
        ):
            reserve = int(total * self._reserve)
            if free - bytes_needed < reserve:
                raise CapacityError(
                    f"The {'disk pool' if what == 'pool' else 'disk under the pool'} is full: "
                    f"{free >> 20} MiB free, {bytes_needed >> 20} MiB asked for and {reserve >> 20} MiB "
                    "kept in reserve. Destroy machines or snapshots, or give it more space.",
                    code="STORAGE_FULL",
                    details={
                        "what": what,
                        "total_bytes": total,
                        "free_bytes": free,
                        "reserve_bytes": reserve,
                        "needed_bytes": bytes_needed,
                    },
                )

    def trim(self) -> int:
        """Gives freed blocks back to the file system under a loop-backed pool."""
        return mounts.trim(self.root, minlen=_TRIM_MIN) if self.kind == "xfs-loop" else 0

    def purge(self) -> None:
        if self.kind == "xfs-loop" or self._file.exists():
            mounts.unmount_image(self._file, self.root)
            self._file.unlink(missing_ok=True)
        trees.remove(self.root)


def _space(path: Path) -> tuple[int, int]:
    stat = os.statvfs(path)
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize


def _fstype(path: Path) -> str:
    """Of the file system that holds ``path``: the longest mount point above it."""
    real = os.path.realpath(path) + "/"
    best = max(
        (m for m in mounts.table() if real.startswith(m.target.rstrip("/") + "/")),
        key=lambda m: len(m.target),
    )
    return best.fstype


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            mounts_left = [Path(t) for t in mounts.below(path)]
            for target in reversed(mounts_left):
                mounts.unmount(target)
            try:
                trees.remove(path)
            except OSError as exc:
                # A program that outlived its workspace can write in what is left of it for ever; the daemon starts.
                log.warning("%s cannot be removed now: %s", path, exc)
        else:
            path.unlink()
