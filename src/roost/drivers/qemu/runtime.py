"""The VMM and all it loads, as a directory that is its whole root: ``<data_dir>/vmm/<digest>/``.

```
vmm                     the binary        firmware/   what the machine boots with
lib/..., lib64/...      its libraries     guest/  memory   where a jail puts a machine's own
```
Named by the digest of its content and never changed. A package upgrade makes another one beside it, and what was
captured with the old keeps it. World-readable, since each VMM is a user of its own; nothing in it is secret.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from roost.errors import UnsupportedError
from roost.host import files, run

# Where distributions keep them: the loaders of a kernel. What they are loaded by comes with the guest.
_FIRMWARE_DIRECTORIES = (
    Path("/usr/share/qemu"),
    Path("/usr/share/seabios"),
    Path("/usr/share/qemu-firmware"),
)
_FIRMWARE = ("pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin")
_NEEDED_FIRMWARE = _FIRMWARE[:1]
_BINARIES = ("qemu-system-x86_64",)
_MINIMUM = (9, 0)  # mapped-ram
_VERSION = re.compile(r"version (\d+)\.(\d+)\.(\d+)")
_LIBRARY = re.compile(r"(?:=>\s+)?(/\S+) \(0x[0-9a-f]+\)")
_REMEDY = "apt-get install -t bookworm-backports qemu-system-x86 seabios"


@dataclass(frozen=True, slots=True)
class Runtime:
    digest: str
    root: Path
    version: str  # "10.0.2"


class Runtimes:
    """Those of a data directory. Blocking; the first ``current`` of a process copies or digests 50 MiB or so."""

    def __init__(self, data_dir: Path) -> None:
        self._base = data_dir / "vmm"
        self._turn = threading.Lock()
        self._current: Runtime | None = None

    def current(self) -> Runtime:
        """Of the VMM that this host has installed. Raises UnsupportedError HOST_UNSUPPORTED."""
        with self._turn:
            if self._current is None:
                self._current = self._make_current()
            return self._current

    def _make_current(self) -> Runtime:
        binary, version = installed()
        contents = {"vmm": binary, **_libraries(binary), **_firmware()}
        digest = hashlib.sha256()
        for name, path in sorted(contents.items()):
            with path.open("rb") as file:
                digest.update(
                    f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
                )
        return self._ensure(digest.hexdigest(), version, contents)

    def get(self, digest: str) -> Runtime | None:
        """One kept from earlier."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            return None
        root = self._base / digest
        manifest = files.read_json(root / "manifest.json")
        return None if manifest is None else Runtime(digest, root, str(manifest["version"]))

    def sweep(self, keep: Collection[str]) -> None:
        """Deletes the others and half-made ones. Not while one is being made."""
        for path in self._base.iterdir() if self._base.is_dir() else ():
            if path.name not in keep:
                (path / "manifest.json").unlink(missing_ok=True)
                shutil.rmtree(path)

    def _ensure(self, digest: str, version: str, contents: dict[str, Path]) -> Runtime:
        if (known := self.get(digest)) is not None:
            return known
        self._base.mkdir(parents=True, exist_ok=True, mode=0o700)
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=self._base))
        try:
            for name, source in contents.items():
                target = work / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                os.chmod(target, 0o555)  # noqa: S103
            (work / "guest").mkdir()
            (work / "memory").touch()
            for directory, _, _ in os.walk(work):
                os.chmod(directory, 0o755)  # noqa: S103  (whatever the daemon's umask)
            files.write_json(work / "manifest.json", {"version": version})
            root = self._base / digest
            shutil.rmtree(root, ignore_errors=True)  # of a copy that was broken off
            work.rename(root)
            files.sync_dir(self._base)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return Runtime(digest, root, version)


def installed() -> tuple[Path, str]:
    """The VMM's binary and version. Raises UnsupportedError HOST_UNSUPPORTED."""
    found = next((path for name in _BINARIES if (path := shutil.which(name))), None)
    if found is None:
        raise _unsupported("QEMU is not installed")
    try:
        said = run.run([found, "--version"], timeout_s=10).stdout
    except (OSError, TimeoutError) as exc:
        raise _unsupported(f"QEMU does not run: {exc}") from exc
    match = _VERSION.search(said)
    if match is None or (int(match[1]), int(match[2])) < _MINIMUM:
        raise _unsupported(
            f"QEMU {_MINIMUM[0]}.{_MINIMUM[1]} or later is needed, here is {said[:60]!r}"
        )
    return Path(found).resolve(), ".".join(match.groups())


def _libraries(binary: Path) -> dict[str, Path]:
    """Name in the root -> file. The loader stays where the binary looks for it, its libraries in the first
    directory that it searches."""
    listed = run.run(["ldd", str(binary)], timeout_s=10).stdout
    contents: dict[str, Path] = {}
    for path in _LIBRARY.findall(listed):
        real = Path(path).resolve()
        name = path if "/ld-linux" in path else f"/lib/x86_64-linux-gnu/{Path(path).name}"
        contents[name.lstrip("/")] = real
    if not any("/ld-linux" in name for name in contents):
        raise _unsupported(f"what {binary} loads cannot be told")
    return contents


def _firmware() -> dict[str, Path]:
    found = {
        f"firmware/{name}": directory / name
        for name in _FIRMWARE
        for directory in reversed(_FIRMWARE_DIRECTORIES)
        if (directory / name).exists()
    }
    if missing := [n for n in _NEEDED_FIRMWARE if f"firmware/{n}" not in found]:
        raise _unsupported(f"QEMU's firmware {missing[0]} is not installed")
    return found


def _unsupported(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"This host cannot run microVMs: {why}. Install it: {_REMEDY}.",
        code="HOST_UNSUPPORTED",
        details={"remedy": _REMEDY},
    )
