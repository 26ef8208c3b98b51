"""A template's roost.toml, and a recipe of the same form."""

from __future__ import annotations

import json

from roost.errors import InvalidRequestError
from roost.templates.roosttoml import parse

COVERS = ("roost.templates.roosttoml", "tomllib")
SEEDS = (
    b'start = "x"\nwarmup = ["a", "b"]\nports = [80]\n[size]\nvcpu = 1\nmemory_mib = 512\n[ready]\nport = 80\n',
    b'[labels]\na = "b"\n[env]\nA = "1"\nbake = ["qemu"]\n',
    b"ports = [0x50, 1_0, 1e3, nan, 2020-01-01T00:00:00Z, true]\n",
    b"a.b.c = 1\n[[x]]\n'''",
)
WORDS = (
    b"start",
    b"ready",
    b"size",
    b"[size]\n",
    b"[ready]\n",
    b'"""',
    b"'''",
    b" = ",
    b"[[",
    b"]]",
    b"inf",
    b"nan",
)
LONGEST = 2048


def one(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        found = parse(text)
    except InvalidRequestError as refused:
        assert refused.code == "DOCKERFILE_INVALID"
        refused.message.encode(errors="surrogatepass")
        return
    json.dumps(found.config(), default=str)
