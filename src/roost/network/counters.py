"""A named counter of nftables, asked of the kernel itself: ``nft`` would be a process for each machine and minute."""

from __future__ import annotations

import errno
import struct

from roost.network.netlink import NETFILTER, Netlink, attribute, attributes

_GETOBJ = 10 << 8 | 19  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETOBJ
_INET = 1
_TABLE, _NAME, _TYPE, _DATA, _BYTES = 1, 2, 3, 4, 1
_COUNTER = 1


def read(table: str, name: str) -> int:
    """Bytes, in the calling thread's network namespace. Raises OSError: ENOENT where there is no such counter."""
    body = struct.pack("=BBH", _INET, 0, 0)
    body += attribute(_TABLE, table.encode() + b"\0")
    body += attribute(_NAME, name.encode() + b"\0")
    body += attribute(_TYPE, struct.pack(">L", _COUNTER))
    with Netlink(NETFILTER) as netlink:
        try:
            answer = netlink.ask(_GETOBJ, body)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, f"counter {table} {name}") from exc
    data = attributes(answer[4:]).get(_DATA, b"")
    counted = attributes(data).get(_BYTES)
    if counted is None:
        raise OSError(errno.EPROTO, "an answer without a count", f"counter {table} {name}")
    return int(struct.unpack(">Q", counted)[0])
