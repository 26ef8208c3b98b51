"""The guests of a data directory: made when something that goes into one has changed, kept by digest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from roost.errors import InternalError, RoostError
from roost.guest import cpio, firmware, modules, package, vmlinux
from roost.host import files

# (stage, percent of the whole, what is happening)
Progress = Callable[[str, int | None, str], None]

_FORMAT = 1  # what this module makes of its inputs; another number makes other guests


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest's files; none of them ever changes."""

    digest: str  # of all that went into it
    firmware: Path  # for -bios; a restored machine needs the one it was booted with
    kernel: Path
    initrd: Path
    modules: Path  # ext4, opened read-only, by any number of machines at once
    kernel_version: str
    agent_digest: str


class Guests:
    """``<data_dir>/guest``: the kernel's package under ``package``, each guest under its digest. A guest
    without its manifest is debris of a build that was broken off."""

    def __init__(self, data_dir: Path, agent: Path) -> None:
        self._root = data_dir / "guest"
        self._packages = self._root / "package"
        self._agent = agent
        self._turn = asyncio.Lock()

    async def ensure(self, progress: Progress, *, newest_kernel: bool = False) -> Guest:
        """The guest of this agent and the kernel kept here, made if it is not there. Asks the mirror only
        where no kernel is kept, or ``newest_kernel``.

        Raises HOST_UNSUPPORTED, DEPENDENCY_UNAVAILABLE (the kernel cannot be had), INTERNAL."""
        async with self._turn:
            return await asyncio.to_thread(self._ensure, progress, newest_kernel)

    def kept(self) -> Guest | None:
        """The one that ``ensure`` would give without making anything. Raises HOST_UNSUPPORTED, INTERNAL."""
        fetched = package.kept(self._packages) if self._packages.is_dir() else None
        return None if fetched is None else self.get(_digest(self._parts(fetched, self._read())))

    def get(self, digest: str) -> Guest | None:
        """A guest made earlier."""
        directory = self._root / digest
        manifest = files.read_json(directory / "manifest.json")
        if manifest is None:
            return None
        return Guest(
            digest=digest,
            firmware=directory / "firmware",
            kernel=directory / "vmlinux",
            initrd=directory / "initrd",
            modules=directory / "modules.img",
            kernel_version=str(manifest["kernel_version"]),
            agent_digest=str(manifest["agent_digest"]),
        )

    def sweep(self, keep: Collection[str]) -> None:
        """Deletes the other guests and what broken builds left. Not while one is being made."""
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if path != self._packages and path.name not in keep:
                (path / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(path, ignore_errors=True)

    def _ensure(self, progress: Progress, newest_kernel: bool) -> Guest:
        self._packages.mkdir(parents=True, exist_ok=True, mode=0o700)
        fetched = None if newest_kernel else package.kept(self._packages)
        if fetched is None:
            progress("kernel", 0, "fetching the guest's kernel")
            fetched = package.fetch(self._packages)
        agent = self._read()
        parts = self._parts(fetched, agent)
        digest = _digest(parts)
        if (guest := self.get(digest)) is not None:
            return guest
        try:
            self._make(fetched, firmware.find(), agent, digest, parts, progress)
        except RoostError:
            raise
        except (OSError, LookupError, subprocess.SubprocessError) as exc:
            raise InternalError(
                f"The guest could not be made from {fetched.name}: {exc}. Free space below {self._root}; "
                f"if that is not it, delete {fetched} to fetch it again.",
            ) from exc
        guest = self.get(digest)
        assert guest is not None
        progress("done", 100, "ready")
        return guest

    def _read(self) -> bytes:
        try:
            return self._agent.read_bytes()
        except OSError as exc:
            raise InternalError(
                f"The agent is not at {self._agent}: run scripts/up, which builds it."
            ) from exc

    def _parts(self, fetched: Path, agent: bytes) -> dict[str, object]:
        """All that goes into a guest."""
        return {
            "format": _FORMAT,
            "package": package.digest(fetched),
            "firmware": package.digest(firmware.find()),
            "agent_digest": f"sha256:{hashlib.sha256(agent).hexdigest()}",
            "modules": modules.NEEDED,
        }

    def _make(
        self,
        fetched: Path,
        rom: Path,
        agent: bytes,
        digest: str,
        parts: dict[str, object],
        progress: Progress,
    ) -> None:
        work = Path(tempfile.mkdtemp(prefix="build-", dir=self._root))
        try:
            progress("kernel", 30, "unpacking the guest's kernel")
            kernel = package.unpack(fetched, work / "tree")
            modules.index(work / "tree", kernel.version)
            made = work / "guest"
            made.mkdir()
            os.chmod(made, 0o755)  # noqa: S103  (whatever the daemon's umask)
            progress("initrd", 70, "packing the initial RAM disk")
            archive = cpio.pack(
                {
                    "init": (0o555, agent),
                    **modules.ram_disk_files(modules.load_order(kernel.modules, modules.NEEDED)),
                }
            )
            (made / "initrd").write_bytes(archive)
            shutil.copyfile(rom, made / "firmware")
            vmlinux.extract(kernel.image, made / "vmlinux")
            progress("modules", 80, "writing the modules' image")
            modules.image(kernel.modules, made / "modules.img", digest)
            for path in made.iterdir():
                _seal(path)
            target = self._root / digest
            # Of a build that was broken off between the rename and the manifest.
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
            files.sync_dir(self._root)
            digests = {path.name: package.digest(path) for path in sorted(target.iterdir())}
            files.write_json(
                target / "manifest.json",
                {
                    **parts,
                    "kernel_version": kernel.version,
                    "package_name": fetched.name,
                    "files": digests,
                },
            )
        finally:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(work)


def _digest(parts: dict[str, object]) -> str:
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def _seal(path: Path) -> None:
    """For reading by anyone, monitors with no rights of their own above all; on the disk when this returns."""
    os.chmod(path, 0o444)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
