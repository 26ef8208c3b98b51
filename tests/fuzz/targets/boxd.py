"""Messages of boxd's gRPC, as the guard reads them: understood whole, or refused."""

from __future__ import annotations

from unittest.mock import MagicMock

from roost.dialects.boxd.service import methods
from roost.dialects.boxd.wire import boxd_pb2 as pb
from roost.errors import RoostError
from roost.gateway.calls import _parse

METHODS = methods(MagicMock())
COVERS = ("roost.gateway.calls",)
SEEDS = (
    *(bytes((n,)) for n in range(len(METHODS))),
    b"\x00" + pb.Empty().SerializeToString() + b"\xfa\x3f\x01x",
    b"\x04\x0a\x01a\x12\x01b",
    b"\x05\x0a\xff\xff\xff\xff\x0f",
)


def one(data: bytes) -> None:
    if not data:
        return
    method = METHODS[data[0] % len(METHODS)]
    try:
        message = _parse(method, data[1:])
    except RoostError as refused:
        assert refused.code in ("INVALID_BODY", "UNSUPPORTED"), refused.code
        refused.message.encode()
        return
    again = _parse(method, message.SerializeToString(deterministic=True))
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )
