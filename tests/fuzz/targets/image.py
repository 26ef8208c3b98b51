"""What an image says of itself: refused in words, or text that a row and an environment can hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from roost.errors import RoostError
from roost.templates.oci import image
from tests.fuzz.targets._pieces import fields

_D = "sha256:" + "0" * 64
_BLOB = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": _D, "size": 5}
_SAID = tuple(
    b"\x00" + json.dumps(each).encode()
    for each in (
        {"schemaVersion": 2, "config": {"digest": _D, "size": 2}, "layers": [_BLOB]},
        {
            "manifests": [
                {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": _D,
                    "size": 9,
                    "platform": {
                        "os": "linux",
                        "architecture": image.architecture(),
                        "variant": "v8",
                    },
                    "annotations": {image.REF_NAME: "t"},
                }
            ]
        },
        {
            "os": "linux",
            "config": {
                "Env": ["A=b", "PATH=/bin"],
                "User": "1:2",
                "WorkingDir": "w",
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Labels": {"a": "b"},
                "Entrypoint": ["/x"],
                "Cmd": ["y"],
            },
        },
    )
)
COVERS = ("roost.templates.oci.image",)
SEEDS = (*_SAID, b'\x01t{"manifests": []}')
WORDS = (
    b'"mediaType": ', b'"digest": ', b'"size": ', b'"layers": ', b'"config": ', b'"manifests": ', b'"platform": ', b'"Env": ',
    b'"ExposedPorts": ', b"\\ud800", b"\\u0000", b"1e999", b"true", b"null", b"[]", b"{}",
)  # fmt: skip


def one(data: bytes) -> None:
    tag, text = fields(data, 2)
    wanted = tag.decode(errors="replace") or None
    reads: list[Callable[[bytes], Any]] = [
        partial(image.choose, tag=wanted),
        image.manifest,
        image.config,
    ]
    for read in reads:
        try:
            found = read(text)
        except RoostError as refused:
            refused.message.encode()
            continue
        match found:
            case image.Blob():
                assert found.size >= 0
                assert len(found.hex) == 64
            case image.Manifest():
                assert len(found.layers) <= image.MAX_LAYERS
                assert found.size >= 0
            case dict():
                json.dumps(found, ensure_ascii=False).encode()
                assert not any("\0" in text for text in _texts(found))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
