"""What the API reads by hand of a request: paths, ranges, revisions, durations, keys, hosts."""

from __future__ import annotations

from starlette.requests import Request

from roost.api.v1 import parse
from roost.client import _wire
from roost.errors import RoostError
from roost.gateway import auth, dispatch, idempotent, metrics
from roost.services import files
from roost.units import parse_duration
from tests.fuzz.targets._pieces import fields

COVERS = ("roost.api.v1.parse", "roost.gateway", "roost.services.files", "roost.units")
SEEDS = (
    b"\x0epath=%2Fa%2Fb&x\x09bytes=0-9\x031w\x00",
    b'\x13path_b64=L2Ev%2Fw%3D\x08bytes=-5\x04"12"',
    b"\x0dpath=a&path=b\x0bbytes=5-1,7\x05never",
    b"\x08path=%ff\x04SIGT\x0630 s",
)
WORDS = (
    b"path=",
    b"path_b64=",
    b"bytes=",
    b"%00",
    b"%ff",
    b"\xff",
    b"Bearer ",
    b'W/"',
    b"SIGKILL",
    b"roost.key.",
    b"[::1]:80",
)
LONGEST = 6000


def one(data: bytes) -> None:
    query, value, rest = fields(data, 3)
    text = value.decode("latin-1")
    long = rest.decode("latin-1")
    request = Request(
        {
            "type": "http",
            "query_string": query,
            "headers": [(b"if-match", value), (b"idempotency-key", value)],
        }
    )
    try:
        path = parse.query_path(request)
        assert isinstance(path, bytes)
        files.check_path(path)
        assert b"\0" not in path
    except RoostError as refused:
        assert refused.status == 422, refused.code
    for each in (text, long):
        found = parse.byte_range(each)
        if found is not None and found.suffix is None:
            assert found.offset >= 0
            assert found.length >= 0
        for read in (
            lambda each=each: parse.signal_number(each),
            lambda each=each: parse_duration(each, allow_never=True),
            lambda each=each: files.check_owner(each),
            lambda each=each: parse.decode_b64("x", each),
            lambda each=each: parse.body_path("path", each, None),
            lambda each=each: _wire.segment(each).index("/"),
        ):
            try:
                read()
            except RoostError as refused:
                assert refused.status in (400, 422)
            except ValueError as absent:
                assert str(absent) == "substring not found"  # no slash in a segment
        assert dispatch.host_name(each) == dispatch.host_name(each).lower()
        assert len(metrics.resource_of(each)) < 100
    try:
        parse.if_match(request)
    except RoostError as refused:
        assert refused.status == 412
    for name in (b"authorization", b"x-api-key"):
        key = auth.credential([(name, value)])
        assert key is not None
        assert len(key) <= auth.MAX_KEY
        auth.prefix(key)
    auth.credential([], [long, text])
    auth.subprotocol([text])
    try:
        idempotent.key_of([(b"idempotency-key", value)])
    except RoostError as refused:
        assert refused.status in (400, 422)
