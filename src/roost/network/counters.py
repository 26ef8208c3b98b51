"""A named counter of nftables, asked of the kernel itself: ``nft`` would be a process for each machine and minute."""

from __future__ import annotations

import errno
import os
import socket
import struct

_NETLINK_NETFILTER = 12
_GETOBJ = 10 << 8 | 19  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETOBJ
_REQUEST = 1
_ERROR = 2
_INET = 1
_TABLE, _NAME, _TYPE, _DATA, _BYTES = 1, 2, 3, 4, 1
_COUNTER = 1
_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port
_NESTED = 0x3FFF  # without the bits that say so
_TIMEOUT_S = 2.0


def read(table: str, name: str) -> int:
    """Bytes, in the calling thread's network namespace. Raises OSError: ENOENT where there is no such counter."""
    body = struct.pack("=BBH", _INET, 0, 0)
    body += _attribute(_TABLE, table.encode() + b"\0")
    body += _attribute(_NAME, name.encode() + b"\0")
    body += _attribute(_TYPE, struct.pack(">L", _COUNTER))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(body), _GETOBJ, _REQUEST, 1, 0) + body)
        answer = sock.recv(8192)
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind == _ERROR:
        code = -struct.unpack_from("=l", answer, _HEADER.size)[0]
        raise OSError(code, os.strerror(code), f"counter {table} {name}")
    data = _attributes(answer[_HEADER.size + 4 : length]).get(_DATA, b"")
    counted = _attributes(data).get(_BYTES)
    if counted is None:
        raise OSError(errno.EPROTO, "an answer without a count", f"counter {table} {name}")
    return int(struct.unpack(">Q", counted)[0])


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & _NESTED] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found
