"""The firmware guests are booted with: qboot, which QEMU brings along.

Not microvm's own choice: that one puts the ACPI tables at the end of memory, where QEMU, for a kernel started
by its PVH note, puts the initial RAM disk afterwards. Whether a boot survives that depends on the size of the
RAM disk, to the byte. qboot keeps its tables below 1 MiB, and is the quicker of the two.
"""

from __future__ import annotations

from pathlib import Path

from roost.errors import UnsupportedError
from roost.host import run

_NAME = "qboot.rom"
_TIMEOUT_S = 20


def find(qemu: str = "qemu-system-x86_64") -> Path:
    """Raises HOST_UNSUPPORTED where QEMU is not installed, or without it."""
    try:
        told = run.run([qemu, "-L", "help"], timeout_s=_TIMEOUT_S).stdout
    except OSError as exc:
        raise UnsupportedError(
            f"QEMU does not run here ({exc}); scripts/up installs it.", code="HOST_UNSUPPORTED"
        ) from exc
    for line in told.splitlines():
        path = Path(line.strip()) / _NAME
        if path.is_file():
            return path
    raise UnsupportedError(
        f"QEMU's data directories hold no {_NAME}; install the package qemu-system-data.",
        code="HOST_UNSUPPORTED",
    )
