"""The kernel proper, out of the self-extracting file it is packaged as.

Started as it is (by its PVH note) it skips the decompression inside the guest, which without KVM is one part
in six of a boot. It also skips choosing a random address for itself; machines restored from one snapshot
would share that anyway, and the guest's kernel is no boundary of ours.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

_TIMEOUT_S = 60
_ELF = b"\x7fELF"
_SECTOR = 512
# First bytes of the payload -> what makes them plain.
_DECOMPRESSORS = {
    b"\x02\x21\x4c\x18": ["lz4", "-d", "-c", "-q"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-d", "-c", "-q"],
}


def extract(image: Path, made: Path) -> None:
    """From the bzImage ``image``. Raises OSError where it is of a kind that is not known here."""
    data = image.read_bytes()
    if data[0x202:0x206] != b"HdrS":
        raise OSError(f"{image.name} is no bzImage")
    # The boot protocol's setup_sects (0 stands for 4), payload_offset and payload_length.
    sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (sectors + 1) * _SECTOR + offset
    payload = data[start : start + length - 4]  # the size it unpacks to follows
    argv = _DECOMPRESSORS.get(payload[:4])
    if argv is None:
        raise OSError(f"{image.name} is compressed in a way that is not known: {payload[:4].hex()}")
    with made.open("xb") as file:
        subprocess.run(argv, input=payload, stdout=file, check=True, timeout=_TIMEOUT_S)
    with made.open("rb") as file:
        if file.read(4) != _ELF:
            raise OSError(f"{image.name} holds no ELF kernel")
