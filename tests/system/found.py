"""What of a text can be found on the host, wherever a daemon could have left it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from tests.system.conftest import Daemon


def where(led: Daemon, secret: str, since: float) -> list[str]:
    """On the host: files of the daemon's that changed since then and have it (disks and memory of machines and of
    snapshots too), processes whose environment or command line has it."""
    subprocess.run(["sync", "-f", str(led.data_dir / "pool")], check=True)
    found = []
    for root in (led.run_dir, led.data_dir):
        for path in root.rglob("*"):
            if not path.is_file() or path.is_symlink() or path.suffix == ".xfs":
                continue
            if path.stat().st_mtime >= since and contains(path, secret.encode()):
                found.append(str(path))
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if secret.encode() in (process / name).read_bytes():
                    found.append(f"{process}/{name}")
    return found


def contains(path: Path, what: bytes) -> bool:
    """Holes of sparse files are passed over."""
    step = 8 << 20
    with path.open("rb", buffering=0) as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            except OSError:  # nothing but a hole is left
                return False
            while at < end:
                if what in os.pread(file.fileno(), step + len(what), at):
                    return True
                at += step
            at = end
    return False
