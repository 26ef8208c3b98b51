"""What a machine's programs send to their daemon: a flat object, each field of its kind."""

from __future__ import annotations

import json

from roost.errors import InvalidRequestError
from roost.services.inside.said import Answer, Body, lines, refusal

COVERS = ("roost.services.inside.said",)
SEEDS = (
    b'{"port": 80, "name": "a", "public": true}',
    b'{"key": "00112233445566778899aabbccddeeff", "count": 2}',
    b'{"\\ud800": 1}',
    b'{"name": "\\u001b[31m"}',
    b"",
)
WORDS = (b'"port": ', b'"name": ', b'"public": ', b"true", b"null", b"\\u0000", b"1e999", b"NaN")


def one(data: bytes) -> None:
    try:
        body = Body(data)
        name, port, public = body.text("name"), body.number("port", 1), body.flag("public")
        body.end()
    except InvalidRequestError as refused:
        told = refusal(refused)
        for text in (True, False):
            json.dumps(told.data, ensure_ascii=False).encode()
            told.encode(text)
        return
    for text in (True, False):
        said = lines([("name", name), ("port", port), ("public", public)])
        Answer(200, {"name": name, "port": port}, said).encode(text)
