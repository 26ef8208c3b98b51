"""Names of templates and images: what is taken says itself again, and leads out of no directory."""

from __future__ import annotations

from roost.errors import RoostError
from roost.ssh import names
from roost.templates import glob, reference
from roost.templates.oci import reference as image
from tests.fuzz.targets._pieces import fields

COVERS = (
    "roost.templates.reference",
    "roost.templates.glob",
    "roost.templates.oci.reference",
    "roost.ssh.names",
)
SEEDS = (
    b"\x00base",
    b"\x00base:tag",
    b"\x00base@sha256:" + b"0" * 64,
    b"\x00docker://r.example:5000/a/b:t@sha256:" + b"0" * 64,
    b"\x00oci-archive:a/./b.tar:t",
    b"\x05a/b.coci:../x",
    b"\x04a*[b]user-1+root",
)
WORDS = (
    b"docker://",
    b"oci:",
    b"oci-archive:",
    b"docker-archive:",
    b"@sha256:",
    b"..",
    b"/",
    b"**",
    b"[a-z]",
    b"[^",
)
LONGEST = 600


def one(data: bytes) -> None:
    pattern, raw = (part.decode(errors="surrogateescape") for part in fields(data, 2))
    try:
        reference.parse(raw)
    except RoostError:
        pass
    names.parse(raw)
    glob.Pattern(pattern).matches(raw)
    try:
        found = image.parse(raw)
    except RoostError as refused:
        assert len(refused.message) < 2000
        return
    if isinstance(found, image.InContext):
        assert not found.path.startswith("/")
        assert ".." not in found.path.split("/")
    else:
        assert image.parse(str(found)) == found
        assert not set(found.place) & set(" -\n"[:1] + "\n\t;'\"$")
